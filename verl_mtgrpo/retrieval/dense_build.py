"""Write passages as the files of a dense index (faiss vectors, Arrow passages)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_mtgrpo.bars import with_progress
from verl_mtgrpo.errors import ConfigError, DataError
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.retrieval.content import Content
from verl_mtgrpo.retrieval.encoders import SentenceEncoder, check_vectors
from verl_mtgrpo.retrieval.passage_file import PassageFile, PassageWriter
from verl_mtgrpo.retrieval.store import writing

if TYPE_CHECKING:
    import numpy as np

    from verl_mtgrpo.retrieval.encoders import Encoder

KINDS = ("flat", "hnsw")
VECTORS, PASSAGES = "vectors.faiss", "passages.arrow"
_BATCH = 1024
_LINKS, _EF_CONSTRUCTION = 32, 200
"""Links per vector in the graph, and candidates looked at when a vector is inserted."""


def import_faiss() -> Any:
    """Return the module ``faiss``, or raise a ``ConfigError`` that says how to install it."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(f"a dense index needs faiss ({error})", fix="pip install 'verl-mtgrpo[dense]'") from error
    return faiss


def write_dense(
    passages: Iterable[Passage],
    folder: Path,
    source: str,
    embeddings: Encoder | np.ndarray | Path | str | None,
    encoder: SentenceEncoder | None,
    kind: str,
    progress: bool,
) -> tuple[Content, int]:
    """Write all passages and their vectors into ``folder``; return their number and checksum, and the dimension."""
    faiss = import_faiss()
    content = Content(source)
    rows = _open_rows(embeddings)
    index: Any = None
    stream = iter(with_progress(passages, progress))
    with PassageWriter(folder / PASSAGES) as writer:
        while batch := [content.add(passage) for passage in islice(stream, _BATCH)]:
            texts = [f"{title}\n{text}" if title else text for _, title, text in batch]
            start = content.count - len(batch)
            vectors = _vectors(texts, start, rows, embeddings, encoder)
            vectors = check_vectors(vectors, len(batch), index.d if index else None, "the passages' vectors", start)
            index = index or _new_index(faiss, kind, vectors.shape[1])
            index.add(vectors)
            for fields in batch:
                writer.add(fields)
    content.refuse_if_empty()
    if rows is not None and len(rows) != content.count:
        raise DataError(
            f"there are {len(rows)} vectors for the {content.count} passages of {source}",
            fix="give the vectors of exactly these passages, in this order",
        )
    content.refuse_repeated_ids(lambda number: PassageFile(folder / PASSAGES)[number][0])
    with writing(folder, RuntimeError):  # what faiss raises
        faiss.write_index(index, str(folder / VECTORS))
    return content, index.d


def _vectors(texts: list[str], start: int, rows: Any, embeddings: Any, encoder: SentenceEncoder | None) -> Any:
    if rows is not None:
        if start + len(texts) > len(rows):
            raise DataError(
                f"there are {len(rows)} vectors, but the corpus has at least {start + len(texts)} passages",
                fix="give the vectors of exactly these passages, in this order",
            )
        return rows[start : start + len(texts)]
    if embeddings is not None:
        encode: Callable[[list[str]], Any] = embeddings
        return encode(texts)
    assert encoder is not None, "checked by DenseIndex.build"
    return encoder.encode(texts, "document")


def _open_rows(embeddings: Any) -> Any:
    """Return the array of vectors, memory-mapped if it is a file; None if a function makes them."""
    if embeddings is None or callable(embeddings):
        return None
    import numpy as np

    if not isinstance(embeddings, str | Path):
        rows = np.asarray(embeddings)
    else:
        try:
            rows = np.load(embeddings, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{embeddings} is not a .npy file of vectors ({error})", fix="write it with numpy.save"
            ) from error
    if rows.ndim != 2:
        raise DataError(f"the passages' vectors have the shape {rows.shape}", expected="(passages, dimension)")
    return rows


def _new_index(faiss: Any, kind: str, dimension: int) -> Any:
    if kind == "flat":
        return faiss.IndexFlatIP(dimension)
    index = faiss.IndexHNSWFlat(dimension, _LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _EF_CONSTRUCTION
    return index
