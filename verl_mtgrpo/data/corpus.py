"""Read corpora as passages.

A record is recognised by its columns, whatever file it comes from:

* ``{id, contents}``: Search-R1's layout; the first line of ``contents`` is the title, which may be in quotes.
* ``{id?, title?, text}``.
* ``{data: [{title, paragraphs: [{context}]}]}``: SQuAD, one passage per paragraph.
* ``{title: [sentence, ...], ...}`` as a whole file: HippoRAG's corpora.
* Question sets that carry passages: ``ctxs`` (NQ-open), ``context`` (HotpotQA), ``paragraphs`` (MuSiQue),
  ``paragraph_text`` (QED).

Passages without an id get one made from their content, and are returned once, however often they occur.
Documents (.txt, .md, .html, .pdf), and folders of them, are split into passages (``documents``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from verl_mtgrpo.data.documents import CHUNK_CHARS, is_documents, read_documents
from verl_mtgrpo.data.files import describe, read_records
from verl_mtgrpo.data.hub import dataset_records, is_dataset
from verl_mtgrpo.data.notes import Notes
from verl_mtgrpo.errors import DataError
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.retrieval.types import content_id, split_contents

_EXPECTED = (
    "{id, contents}, {id?, title?, text}, SQuAD's {data: [{title, paragraphs}]}, a file of "
    "{title: [sentences]}, or questions with ctxs, context or paragraphs"
)
_Unnamed = tuple["str | None", str, str]
"""(id or None, title, text)"""


def read_corpus(path: Path | str) -> Iterator[Passage]:
    """Stream the passages of one file or dataset (``hub``); raise ``DataError`` for any other layout."""
    return read_corpora([path])


def read_corpora(
    paths: Sequence[Path | str], *, notes: Notes | None = None, chunk_chars: int = CHUNK_CHARS
) -> Iterator[Passage]:
    """Stream the passages of several files, datasets or folders of documents.

    Args:
        paths: Where they are; a passage without an id is returned once overall.
        notes: Is told of documents that are left out.
        chunk_chars: Characters of the longest passage that a document is split into.
    """
    seen: set[str] = set()
    for path in paths:
        if is_documents(path):
            yield from read_documents(path, notes or Notes(), chunk_chars=chunk_chars)
            continue
        for where, record in dataset_records(path) if is_dataset(path) else read_records(path):
            for id, title, text in _passages_of(where, record):
                if id is None:
                    id = content_id(title, text)
                    if id in seen:
                        continue
                    seen.add(id)
                yield Passage(id=id, title=title, text=text)


def _passages_of(where: str, record: Any) -> Iterable[_Unnamed]:
    if not isinstance(record, dict):
        raise DataError(f"{where} is {describe(record)}", expected=_EXPECTED)
    fields = cast("dict[str, Any]", record)
    try:
        # First, because a title may be any word, even the name of a column.
        if any(fields.values()) and all(_is_sentences(value) for value in fields.values()):
            return [(None, title, _join(value)) for title, value in fields.items()]
        if "contents" in fields:
            return [_from_contents(fields)]
        if "text" in fields:
            if not isinstance(fields["text"], str):
                raise TypeError(f"text is a {type(fields['text']).__name__}, not a string")
            return [(_own_id(fields), str(fields.get("title") or ""), fields["text"])]
        if isinstance(fields.get("data"), list):
            return list(_from_squad(fields["data"]))
        if "ctxs" in fields:
            return [(None, str(c.get("title") or ""), str(c["text"])) for c in fields["ctxs"]]
        if isinstance(fields.get("context"), list):
            return [(None, str(title), _join(sentences)) for title, sentences in fields["context"]]
        if isinstance(fields.get("context"), dict):
            # The same columns, as the Hugging Face hub stores them.
            both = zip(fields["context"]["title"], fields["context"]["sentences"], strict=True)
            return [(None, str(title), _join(sentences)) for title, sentences in both]
        if "paragraph_text" in fields:
            return [(None, str(fields.get("title_text") or ""), str(fields["paragraph_text"]))]
        if "paragraphs" in fields:
            return [(None, str(p["title"]), str(p["paragraph_text"])) for p in fields["paragraphs"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{where} looks like a known layout but is broken ({type(error).__name__}: {error})",
            expected=_EXPECTED,
        ) from error
    raise DataError(f"{where} has {describe(record)}", expected=_EXPECTED)


def _from_contents(fields: dict[str, Any]) -> _Unnamed:
    contents = fields["contents"]
    if not isinstance(contents, str):
        raise TypeError(f"contents is a {type(contents).__name__}, not a string")
    return _own_id(fields), *split_contents(contents)


def _from_squad(articles: list[Any]) -> Iterator[_Unnamed]:
    for article in articles:
        for paragraph in article["paragraphs"]:
            yield None, article_title(article), str(paragraph["context"])


def article_title(article: dict[str, Any]) -> str:
    """Title of a SQuAD article as text (``Super_Bowl_50`` -> ``Super Bowl 50``)."""
    return str(article.get("title") or "").replace("_", " ")


def _own_id(fields: dict[str, Any]) -> str | None:
    value = fields.get("id", fields.get("_id"))
    return None if value is None else str(value)


def _is_sentences(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in cast("list[Any]", value))


def _join(sentences: Any) -> str:
    if isinstance(sentences, str):
        return sentences
    text = ""
    for sentence in sentences:
        gap = "" if not text or text[-1].isspace() or sentence[:1].isspace() else " "
        text += gap + sentence
    return text.strip()
