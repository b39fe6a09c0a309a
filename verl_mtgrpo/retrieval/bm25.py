"""BM25 search over an index on disk, in the process that searches.

The index is memory-mapped and never written after the build, so any number of workers can open the same
folder and share its pages. The engine is tantivy; only the modules ``bm25*`` know it.

Titles and texts are searched as one field. A query is split into words by the same rule as the passages
and matched word by word; there is no query language, so anything a model writes is just words.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from verl_mtgrpo.bars import with_progress
from verl_mtgrpo.errors import ConfigError, IndexFormatError, RetrievalError
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.retrieval.bm25_build import ANALYSERS, engine_version, make_analyser, stored_text, write_index
from verl_mtgrpo.retrieval.bm25_query import WordSearch, rank_score
from verl_mtgrpo.retrieval.folder import IndexFolder
from verl_mtgrpo.retrieval.query import check_queries
from verl_mtgrpo.retrieval.store import BM25Manifest, Staging, read_manifest

if TYPE_CHECKING:
    import tantivy

MAX_QUERY_CHARS = 20_000
MAX_QUERY_WORDS = 128
"""Longer queries are cut to this many words: more of them only cost time."""

_PAGE = 10_000


class BM25Index(IndexFolder[BM25Manifest, "_Engine"]):
    """A read-only BM25 index. Make one with :meth:`build` or :meth:`open`.

    Threads may share one object (a search holds no lock of Python). It pickles as its path: the copy
    opens the index at its first search, and raises if other content has been built there in the meantime.
    """

    _kind = BM25Manifest

    @classmethod
    def build(
        cls,
        passages: Iterable[Passage],
        out: Path | str,
        *,
        source: str,
        progress: bool = False,
        analyser: str = "english",
    ) -> BM25Index:
        """Build an index of ``passages`` in the folder ``out`` and open it.

        The passages are streamed. An index that already exists in ``out`` stays complete and in use until the
        new one is complete. ``source`` is free text for the manifest. Equal passages in equal order
        give an index that answers equally.

        Raises:
            DataError: There are no passages, or two share an id.
            IndexFormatError: ``out`` holds files that are not an index of verl-mtgrpo.
        """
        if analyser not in ANALYSERS:
            raise ConfigError(f"analyser is {analyser!r}", expected=f"one of {', '.join(ANALYSERS)}")
        out = Path(out)
        with Staging(out, BM25Manifest) as staging:
            content = write_index(with_progress(passages, progress), staging.folder, analyser, source)
            manifest = BM25Manifest(
                count=content.count,
                analyser=analyser,
                source=source,
                checksum=content.checksum,
                engine=engine_version(),
                data=staging.folder.name,
            )
            staging.publish(manifest)
        return cls.open(out)

    @classmethod
    def open(cls, path: Path | str) -> BM25Index:
        """Open the index in the folder ``path``; nothing is written there.

        Raises:
            IndexFormatError: There is no index that this version can read.
        """
        path = Path(path).absolute()
        index = cls(path, read_manifest(path, BM25Manifest))
        index._engine()
        return index

    @property
    def fingerprint(self) -> str:
        """Identify what determines the answers: passages and analyser."""
        return f"bm25/{self._manifest.analyser}/{self._manifest.checksum}"

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query in order, up to ``k`` passages, best first, with their scores.

        A query without a word of the corpus gives an empty list. Equal scores keep the order in which
        the passages were added (among the first 256 of them).
        """
        queries, engine = check_queries(queries, k), self._engine()
        return [engine.search(query, k) for query in queries]

    def passages(self) -> Iterator[Passage]:
        """Yield all passages in the order in which they were added; ``IndexFormatError`` where one cannot be read."""
        engine = self._engine()
        for start in range(0, len(self), _PAGE):
            yield from engine.page(start)

    def finds_itself(self) -> bool:
        """Return True if a search for the words of one of the first passages finds anything; True without words."""
        engine = self._engine()
        texts = (f"{passage.title}\n{passage.text}" for passage in islice(self.passages(), 100))
        text = next((text for text in texts if engine.has_words(text)), None)
        return text is None or bool(engine.search(text, 1))

    def _open_data(self, manifest: BM25Manifest) -> _Engine:
        return _Engine(self._path, manifest)


class _Engine:
    """An opened tantivy index."""

    def __init__(self, path: Path, manifest: BM25Manifest) -> None:
        if manifest.analyser not in ANALYSERS:
            raise IndexFormatError(
                f"the index at {path} uses the analyser {manifest.analyser!r}, this verl-mtgrpo knows "
                f"{', '.join(ANALYSERS)}",
                fix="upgrade verl-mtgrpo or build the index again",
            )
        self._path = path
        self._analyser = make_analyser(manifest.analyser)
        self._searcher, self._schema = _open_read_only(path / manifest.data, manifest)
        self._words = WordSearch(self._searcher, self._schema)
        if self._searcher.num_docs != manifest.count:
            raise IndexFormatError(
                f"the index at {path} is damaged: it holds {self._searcher.num_docs} passages, its manifest says "
                f"{manifest.count}",
                fix=f"build it again with: mtgrpo index CORPUS --out {path}",
            )

    def search(self, query: str, k: int) -> list[Passage]:
        """Return the best ``k`` passages for one query."""
        with _as_error(RetrievalError, f"search in {self._path} failed"):
            return self._search(query[:MAX_QUERY_CHARS], k)

    def has_words(self, text: str) -> bool:
        """Return True if the analyser finds a word in ``text``."""
        return bool(self._analyser.analyze(text))

    def page(self, start: int) -> list[Passage]:
        """Return the passages from number ``start`` on, ``_PAGE`` of them or as many as are left."""
        import tantivy

        end = min(start + _PAGE, self._searcher.num_docs)
        unsigned = tantivy.FieldType.Unsigned
        query = tantivy.Query.range_query(self._schema, "ordinal", unsigned, start, end - 1)
        with _as_error(IndexFormatError, f"the index at {self._path} is damaged: passages cannot be read"):
            hits = self._searcher.search(query, end - start, False).hits
            documents = sorted((self._searcher.doc(address) for _, address in hits), key=_ordinal)
            return [_to_passage(document, 0.0) for document in documents]

    def _search(self, query: str, k: int) -> list[Passage]:
        words = self._analyser.analyze(query)[:MAX_QUERY_WORDS]
        if not words:
            return []
        hits = self._words.best(words, k)
        documents = [(rank_score(score), self._searcher.doc(address)) for score, address in hits]
        documents.sort(key=_rank)
        return [_to_passage(document, score) for score, document in documents[:k]]


def _rank(hit: tuple[float, tantivy.Document]) -> tuple[float, int]:
    score, document = hit
    return -score, _ordinal(document)


def _ordinal(document: tantivy.Document) -> int:
    return int(document.get_first("ordinal") or 0)


@contextlib.contextmanager
def _as_error(kind: type[RetrievalError], what: str) -> Generator[None, None, None]:
    """Turn whatever the engine raises into an error of kind ``kind``."""
    try:
        yield
    except Exception as error:
        raise kind(f"{what}: {error}") from error
    except BaseException as error:
        # A Rust panic arrives as a BaseException that no ordinary handler would see.
        if type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what} inside tantivy: {error}") from error


def _to_passage(document: tantivy.Document, score: float) -> Passage:
    return Passage(
        id=stored_text(document, "id"),
        title=stored_text(document, "title"),
        text=stored_text(document, "text"),
        score=score,
    )


def _open_read_only(data: Path, manifest: BM25Manifest) -> tuple[tantivy.Searcher, tantivy.Schema]:
    """Open tantivy's files without writing to their folder.

    tantivy takes a lock file in the folder it opens, which fails on a read-only disk. It gets a
    temporary folder of links instead, which is removed as soon as the files are mapped. Raises
    ``FileNotFoundError`` if the data is not there (any more).
    """
    import tantivy

    with _short_lived_folder() as view:
        for entry in os.scandir(data):
            if not entry.name.endswith(".lock"):
                os.symlink(os.path.abspath(entry.path), os.path.join(view, entry.name))
        try:
            index = tantivy.Index.open(view)
            index.config_reader("manual")
            return index.searcher(), index.schema
        except Exception as error:
            if not data.exists():
                raise FileNotFoundError(data) from error
            raise IndexFormatError(
                f"the index data in {data}, written by {manifest.engine}, cannot be opened by {engine_version()}: "
                f"{error}",
                fix=f"build it again with: mtgrpo index CORPUS --out {data.parent}",
            ) from error


@contextlib.contextmanager
def _short_lived_folder() -> Generator[str, None, None]:
    """Yield a temporary folder and delete it, repeatedly if need be.

    tantivy watches a folder it opened from a thread, which may put its lock file back while we delete.
    ``TemporaryDirectory`` fails then.
    """
    folder = tempfile.mkdtemp(prefix="mtgrpo-index-")
    try:
        yield folder
    finally:
        for _ in range(100):
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):
                break
            time.sleep(0.01)
