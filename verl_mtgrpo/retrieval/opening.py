"""What a user writes in a config -> a retriever."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.retrieval.addresses import is_address
from verl_mtgrpo.retrieval.bm25 import BM25Index
from verl_mtgrpo.retrieval.client import HTTPRetriever
from verl_mtgrpo.retrieval.dense import DenseIndex
from verl_mtgrpo.retrieval.hybrid import HybridRetriever
from verl_mtgrpo.retrieval.store import BM25Manifest, read_format
from verl_mtgrpo.retrieval.types import Retriever

Spec = str | Path | Sequence[str | Path]


def open_retriever(
    spec: Spec,
    *,
    patience_s: float = 20.0,
    request_timeout_s: float = 10.0,
    concurrency: int = 64,
    token_env: str | None = None,
) -> Retriever:
    """Open what ``spec`` names.

    * the folder of an index that ``mtgrpo index`` built, of either kind;
    * ``http://…`` or ``https://…``: a search service; the other arguments are :class:`HTTPRetriever`'s;
    * a list of these: all of them, merged by reciprocal rank.

    Raises:
        ConfigError: ``spec`` is empty or something else.
        IndexFormatError: A folder holds no index that this version can read.
    """
    parts = [spec] if isinstance(spec, str | Path) else spec
    if not isinstance(parts, Sequence) or not parts:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"the index is {spec!r}", expected="a folder, an http(s) address, or a list of these")

    def open_one(part: str) -> Retriever:
        if is_address(part):
            return HTTPRetriever(
                part,
                patience_s=patience_s,
                request_timeout_s=request_timeout_s,
                concurrency=concurrency,
                token_env=token_env,
            )
        return open_index(part)

    opened = [open_one(str(part)) for part in parts]
    if len(opened) == 1:
        return opened[0]
    return HybridRetriever(opened)


def open_index(path: Path | str) -> BM25Index | DenseIndex:
    """Open an index folder of either kind; ``IndexFormatError`` if this version cannot read it."""
    if not str(path).strip():
        raise ConfigError("the index is an empty text", expected="a folder, an http(s) address, or a list of these")
    if read_format(Path(path)) == BM25Manifest.format:
        return BM25Index.open(path)
    return DenseIndex.open(path)
