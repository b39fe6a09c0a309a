"""Write passages as the files of a BM25 index (tantivy)."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from verl_mtgrpo.passages import Passage
from verl_mtgrpo.retrieval.content import Content
from verl_mtgrpo.retrieval.store import writing

if TYPE_CHECKING:
    import tantivy

ANALYSERS = ("english", "plain")
"""``english``: words, lower case, accents removed, stemmed. ``plain``: the same without stemming."""

_WRITER_BYTES = 1_000_000_000
"""Memory of a build. A segment is written each time it is full, and a query visits every segment."""


def engine_version() -> str:
    """Return the name and version of the search engine, for the manifest."""
    return f"tantivy {importlib.metadata.version('tantivy')}"


def write_index(passages: Iterable[Passage], folder: Path, analyser: str, source: str) -> Content:
    """Write all passages into ``folder``; ``DataError`` if there are none or two share an id.

    Raises:
        StorageError: tantivy could not write (it raises ``ValueError`` for everything).
    """
    import tantivy

    with writing(folder, ValueError):
        index = tantivy.Index(_make_schema(), str(folder))
        index.register_tokenizer("mtgrpo", make_analyser(analyser))
        # One thread: passages keep their order, so that equal corpora give equal answers.
        writer = index.writer(_WRITER_BYTES, 1)
        content = Content(source)
        try:
            for ordinal, passage in enumerate(passages):
                writer.add_document(_to_document(ordinal, *content.add(passage)))
            content.refuse_if_empty()
            writer.commit()
            writer.wait_merging_threads()
        finally:
            del writer  # its threads must be gone before the folder may be removed
        index.reload()
    content.refuse_repeated_ids(lambda ordinal: _id_at(index, ordinal))
    return content


def make_analyser(name: str) -> tantivy.TextAnalyzer:
    """Return the rule that turns text into words, the same for passages and queries."""
    from tantivy import Filter, TextAnalyzerBuilder, Tokenizer

    builder = TextAnalyzerBuilder(Tokenizer.simple()).filter(Filter.remove_long(100))
    builder = builder.filter(Filter.lowercase()).filter(Filter.ascii_fold())
    if name == "english":
        builder = builder.filter(Filter.stemmer("english"))
    return builder.build()


def _make_schema() -> tantivy.Schema:
    import tantivy

    builder = tantivy.SchemaBuilder()
    builder.add_text_field("body", tokenizer_name="mtgrpo", index_option="freq")
    for name in ("id", "title", "text"):
        # Bytes, because the engine indexes every text field: each passage would add one long word.
        builder.add_bytes_field(name, stored=True)
    builder.add_unsigned_field("ordinal", stored=True, indexed=True, fast=True)
    return builder.build()


def _to_document(ordinal: int, id: str, title: str, text: str) -> tantivy.Document:
    import tantivy

    document = tantivy.Document()
    document.add_bytes("id", id.encode())
    document.add_bytes("title", title.encode())
    document.add_bytes("text", text.encode())
    document.add_text("body", f"{title}\n{text}")
    document.add_unsigned("ordinal", ordinal)
    return document


def stored_text(document: tantivy.Document, name: str) -> str:
    """Return the value of the stored field ``name``."""
    return bytes(document.get_first(name) or b"").decode()


def _id_at(index: tantivy.Index, ordinal: int) -> str:
    import tantivy

    query = tantivy.Query.range_query(index.schema, "ordinal", tantivy.FieldType.Unsigned, ordinal, ordinal)
    searcher = index.searcher()
    return stored_text(searcher.doc(searcher.search(query, 1, False).hits[0][1]), "id")
