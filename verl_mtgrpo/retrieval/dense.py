"""Search by inner product of vectors, over an index on disk, in the process that searches.

The vectors are in a faiss index, the passages in an Arrow file; both are memory-mapped. Needs the extra ``dense``.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_mtgrpo.errors import ConfigError, IndexFormatError, MTGRPOError, RetrievalError
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.retrieval.dense_build import KINDS, PASSAGES, VECTORS, import_faiss, write_dense
from verl_mtgrpo.retrieval.encoders import SentenceEncoder, check_vectors
from verl_mtgrpo.retrieval.folder import IndexFolder
from verl_mtgrpo.retrieval.passage_file import PassageFile
from verl_mtgrpo.retrieval.query import check_queries
from verl_mtgrpo.retrieval.store import REBUILD, DenseManifest, Staging, read_manifest

if TYPE_CHECKING:
    import numpy as np

    from verl_mtgrpo.retrieval.encoders import Encoder

_EF_SEARCH = 128
"""Candidates that a search in a graph looks at: recall of 10 against the exact answer stays above 0.9 (a test)."""


class DenseIndex(IndexFolder[DenseManifest, "_Engine"]):
    """A read-only index of vectors. Make one with :meth:`build` or :meth:`open`.

    Queries become vectors by the model that the index was built with, or by ``encoder``: a function from a
    list of texts to an array of shape (texts, dimension). Threads may share one object. It pickles as its
    path and the encoder, without the model.
    """

    _kind = DenseManifest

    @property
    def fingerprint(self) -> str:
        """Identify what determines the answers: files and model. Empty with a custom encoder, which may change."""
        made = self._manifest
        return "" if self._encoder else f"dense/{made.model}/{made.query_prefix}/{sorted(made.files.items())}"

    def __init__(self, path: Path, manifest: DenseManifest, encoder: Encoder | None = None) -> None:
        super().__init__(path, manifest)
        self._encoder = encoder

    @classmethod
    def build(
        cls,
        passages: Iterable[Passage],
        out: Path | str,
        *,
        source: str,
        model: str | None = None,
        embeddings: Encoder | np.ndarray | Path | str | None = None,
        kind: str = "flat",
        query_prefix: str | None = None,
        passage_prefix: str | None = None,
        progress: bool = False,
    ) -> DenseIndex:
        """Build an index of ``passages`` in the folder ``out`` and open it.

        The passages are streamed; their vectors are held in memory (4 bytes × dimension per passage, plus 256
        bytes with ``hnsw``). Vectors are compared as they are, by inner product. An index that already exists in
        ``out`` stays complete and in use until the new one is complete.

        Args:
            passages: What can be found.
            out: Folder of the index.
            source: Free text for the manifest.
            model: sentence-transformers model of the queries, and of the passages unless ``embeddings`` are
                given. A passage is encoded as its title, a line break and its text.
            embeddings: The passages' vectors: an array or .npy file with one row per passage, in order, or a
                function from texts to vectors, which then encodes queries too (unless there is a ``model``).
            kind: ``flat`` compares with every vector and is exact. ``hnsw`` walks a graph: faster on large
                corpora, approximate, and built by several threads, so that two builds may differ.
            query_prefix: Text put before every query; None for the model's own prompt, if it has one.
            passage_prefix: The same for passages.
            progress: Count passages on the terminal.

        Raises:
            ConfigError: Neither ``model`` nor ``embeddings`` is given, or ``kind`` is unknown.
            DataError: There are no passages, two share an id, or the vectors do not fit the passages.
            IndexFormatError: ``out`` holds files that are not a dense index of verl-mtgrpo.
        """
        if kind not in KINDS:
            raise ConfigError(f"kind is {kind!r}", expected=f"one of {', '.join(KINDS)}")
        if model is None and embeddings is None:
            raise ConfigError(
                "a dense index needs vectors",
                fix=(
                    "give model= (a sentence-transformers model) or embeddings= (an array, a .npy file or a function)"
                ),
            )
        out = Path(out)
        faiss_version = f"faiss {import_faiss().__version__}, pyarrow {importlib.metadata.version('pyarrow')}"
        encoder = SentenceEncoder(model, query_prefix, passage_prefix) if model else None
        with Staging(out, DenseManifest) as staging:
            content, dimension = write_dense(passages, staging.folder, source, embeddings, encoder, kind, progress)
            staging.publish(
                DenseManifest(
                    count=content.count,
                    source=source,
                    checksum=content.checksum,
                    engine=faiss_version,
                    data=staging.folder.name,
                    kind=kind,
                    dimension=dimension,
                    model=model,
                    query_prefix=query_prefix,
                    passage_prefix=passage_prefix,
                )
            )
        return cls.open(out, encoder=embeddings if model is None and callable(embeddings) else None)

    @classmethod
    def open(cls, path: Path | str, *, encoder: Encoder | None = None) -> DenseIndex:
        """Open the index in the folder ``path``; nothing is written there.

        ``encoder`` turns queries into vectors, in place of the model that the index was built with.

        Raises:
            IndexFormatError: There is no index that this version can read.
        """
        path = Path(path).absolute()
        index = cls(path, read_manifest(path, DenseManifest), encoder)
        index._engine()
        return index

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query in order, up to ``k`` passages, best first; scores are inner products.

        A blank query gives an empty list; any other query finds the ``k`` nearest passages, however far away. Equal
        scores keep the order in which the passages were added.
        """
        texts = check_queries(queries, k)
        asked = [number for number, text in enumerate(texts) if text.strip()]
        found: list[list[Passage]] = [[] for _ in texts]
        if asked:
            engine = self._engine()
            for number, hits in zip(asked, engine.search([texts[n] for n in asked], k), strict=True):
                found[number] = hits
        return found

    def passages(self) -> Iterator[Passage]:
        """Yield all passages in the order in which they were added; ``IndexFormatError`` where one cannot be read."""
        engine = self._engine()
        try:
            for id, title, text in engine.passages:
                yield Passage(id, title, text)
        except (ValueError, OSError) as error:  # Arrow's errors are of these kinds
            raise IndexFormatError(
                f"the index at {self._path} is damaged: passages cannot be read: {error}",
                fix=REBUILD.format(path=self._path),
            ) from error

    def finds_itself(self) -> bool:
        """Return True if a search for the first passage's vector finds a score at least as good as its own."""
        return self._engine().finds_first()

    def _open_data(self, manifest: DenseManifest) -> _Engine:
        return _Engine(self._path, manifest, self._encoder)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "encoder": self._encoder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._encoder = state["encoder"]


class _Engine:
    """The opened vectors and passages, and the encoder of queries."""

    def __init__(self, path: Path, manifest: DenseManifest, encoder: Encoder | None) -> None:
        self._path, self._manifest = path, manifest
        self._own_encoder = encoder
        self._model: SentenceEncoder | None = None
        if encoder is None and manifest.model is not None:
            self._model = SentenceEncoder(manifest.model, manifest.query_prefix, manifest.passage_prefix)
        data = path / manifest.data
        self._faiss = import_faiss()
        for name in (VECTORS, PASSAGES):
            if not (data / name).is_file():
                raise FileNotFoundError(data / name)
        try:
            self._index: Any = self._faiss.read_index(str(data / VECTORS), self._faiss.IO_FLAG_MMAP_IFC)
            self.passages = PassageFile(data / PASSAGES)
        except (RuntimeError, ValueError, OSError) as error:
            raise IndexFormatError(
                f"the index data in {data}, written by {manifest.engine}, cannot be opened by faiss "
                f"{self._faiss.__version__}: {error}",
                fix=REBUILD.format(path=path),
            ) from error
        if not len(self.passages) == self._index.ntotal == manifest.count or self._index.d != manifest.dimension:
            raise IndexFormatError(
                f"the index at {path} is damaged: it holds {len(self.passages)} passages and {self._index.ntotal} "
                f"vectors of length {self._index.d}, its manifest says {manifest.count} of length {manifest.dimension}",
                fix=REBUILD.format(path=path),
            )

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        """Return the ``k`` nearest passages for each query."""
        try:
            vectors = check_vectors(
                self._encode(queries), len(queries), self._manifest.dimension, "the queries' vectors"
            )
            k = min(k, self._manifest.count)
            scores, rows = self._index.search(vectors, k, params=self._parameters(k))
            return [self._hits(*one) for one in zip(scores.tolist(), rows.tolist(), strict=True)]
        except MTGRPOError:
            raise
        except Exception as error:
            raise RetrievalError(f"search in {self._path} failed: {error}") from error

    def finds_first(self) -> bool:
        """Search for the first vector; return True if the best score is at least its own."""
        vector = self._index.reconstruct(0)[None]
        scores, _ = self._index.search(vector, 1, params=self._parameters(1))
        return float(scores[0, 0]) >= float(vector[0] @ vector[0]) * (1 - 1e-4)

    def _encode(self, queries: list[str]) -> Any:
        if self._own_encoder is not None:
            return self._own_encoder(queries)
        if self._model is not None:
            return self._model.encode(queries, "query")
        raise ConfigError(
            f"the index at {self._path} was built from given vectors and names no model, so queries cannot be encoded",
            fix="open it with DenseIndex.open(path, encoder=...), or build it with a model",
        )

    def _parameters(self, k: int) -> Any:
        if self._manifest.kind == "hnsw":
            return self._faiss.SearchParametersHNSW(efSearch=max(_EF_SEARCH, 2 * k))
        return None

    def _hits(self, scores: list[float], rows: list[int]) -> list[Passage]:
        # Row -1: a graph may find fewer than asked for.
        ranked = sorted((-score, row) for score, row in zip(scores, rows, strict=True) if row >= 0)
        return [Passage(*self.passages[row], score=-score) for score, row in ranked]
