"""Read documents (.txt, .md, .html, .pdf) as passages: a folder of them, or one file.

Text is split where it divides by meaning, at headings, paragraphs and sentences, by semantic-text-splitter. A passage's
title is its document's, with the heading or the page that it stands under; its id is the document's path and a number.
A file that cannot be read is left out and named, with the reason: one broken PDF among thousands is no reason to stop.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from verl_mtgrpo.data.chunks import chunk
from verl_mtgrpo.data.document_kinds import Unreadable, read_html, read_markdown, read_pdf, read_text
from verl_mtgrpo.data.notes import Notes
from verl_mtgrpo.errors import ConfigError, DataError
from verl_mtgrpo.passages import Passage

CHUNK_CHARS = 1000
"""Characters of a passage: three of them fit in what a tool may answer by default."""
TEXT, MARKDOWN, HTML, PDF = (".txt", ".text"), (".md", ".markdown"), (".html", ".htm"), (".pdf",)
DOCUMENTS = (*TEXT, *MARKDOWN, *HTML, *PDF)
_NEEDS = {"semantic_text_splitter": DOCUMENTS, "bs4": HTML, "markdownify": HTML, "pypdf": PDF}
# What Dataset.save_to_disk writes.
_SAVED = ("dataset_dict.json", "state.json")
_TITLE_CHARS = 200


@dataclass(frozen=True)
class Part:
    """A part of a document that is split on its own: all of it, or a page.

    Attributes:
        text: Its text.
        markdown: True if the text is Markdown, whose headings name passages.
        label: What the titles of its passages end with, such as ``page 3``; may be empty.
    """

    text: str
    markdown: bool = False
    label: str = ""


def is_documents(spec: Path | str) -> bool:
    """Return True if ``spec`` is a document, or a folder with one that ``Dataset.save_to_disk`` did not write."""
    path = Path(spec)
    if path.is_dir():
        saved = any((path / name).is_file() for name in _SAVED)
        return not saved and any(_is_document(file) for file in _files(path))
    return _is_document(path)


def read_documents(spec: Path | str, notes: Notes, *, chunk_chars: int = CHUNK_CHARS) -> Iterator[Passage]:
    """Stream the passages of one document, or of all documents of a folder in the order of their paths.

    Files and folders whose names begin with a dot are skipped.

    Args:
        spec: A file or a folder.
        notes: Is told of every file that was left out, with the reason.
        chunk_chars: Characters of the longest passage.

    Raises:
        ConfigError: ``chunk_chars`` is too small, or a package of the extra ``documents`` is not installed.
        DataError: None of the documents can be read.
    """
    path = Path(spec)
    if chunk_chars < 50:
        raise ConfigError(f"passages of {chunk_chars} characters hold no sentence", expected="50 or more")
    if not path.exists():
        raise DataError(f"{path} does not exist", fix="give the path of a document or of a folder")
    files = list(_files(path)) if path.is_dir() else [path]
    documents = [file for file in files if _is_document(file)]
    _refuse_missing({file.suffix.lower() for file in documents})
    for other in (file for file in files if not _is_document(file)):
        notes.other_kind(other)
    failed = 0
    for file in documents:
        name = file.relative_to(path.parent).as_posix()
        try:
            title, parts = _read(file)
            yield from _passages(name, title, parts, chunk_chars)
        except Unreadable as reason:
            failed += 1
            notes.left_out(file, str(reason))
    if failed == len(documents):
        raise DataError(
            f"none of the {len(documents)} documents in {path} can be read: {notes.reasons()}"
            if len(documents) > 1
            else f"the only document, {documents[0]}, cannot be read: {notes.reasons()}",
            fix="give documents that hold text",
        )


def _is_document(path: Path) -> bool:
    return path.suffix.lower() in DOCUMENTS


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in the order of their paths; links to folders are not followed."""
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))


def _refuse_missing(suffixes: set[str]) -> None:
    for package, of in _NEEDS.items():
        needed = sorted(suffixes & set(of))
        if needed and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"reading {', '.join(needed)} needs the package {package}, which is not installed",
                fix='pip install "verl-mtgrpo[documents]"; from a checkout: pip install ".[documents]"',
            )


def _read(path: Path) -> tuple[str, list[Part]]:
    """Return the title and the parts of a document; raise ``Unreadable`` with the reason."""
    suffix = path.suffix.lower()
    try:
        if suffix in PDF:
            title, pages = read_pdf(path)
            parts = [Part(text, label=f"page {number}") for number, text in pages]
        elif suffix in HTML:
            title, text = read_html(path)
            parts = [Part(text, markdown=True)]
        else:
            markdown = suffix in MARKDOWN
            title, text = read_markdown(path) if markdown else ("", read_text(path))
            parts = [Part(text, markdown)]
    except OSError as error:
        raise Unreadable(f"cannot be opened ({error.strerror or error})") from error
    except RecursionError as error:
        raise Unreadable("is nested too deeply") from error
    if not any(part.text.strip() for part in parts):
        raise Unreadable("has no text")
    return " ".join((title or path.stem).split())[:_TITLE_CHARS], parts


def _passages(name: str, title: str, parts: list[Part], chunk_chars: int) -> Iterator[Passage]:
    number = 0
    for part in parts:
        for heading, text in chunk(part.text, chunk_chars, markdown=part.markdown):
            number += 1
            under = part.label or heading[:_TITLE_CHARS]
            full = f"{title}: {under}" if under and under != title else title
            yield Passage(id=f"{name}#{number}", title=full, text=text)
