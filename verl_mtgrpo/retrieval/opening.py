"""What a user writes in a config -> a retriever."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.retrieval.bm25 import BM25Index
from verl_mtgrpo.retrieval.store import BM25Manifest, read_format
from verl_mtgrpo.retrieval.types import Retriever

Spec = str | Path | Sequence[str | Path]


def open_retriever(spec: Spec) -> Retriever:
    """Open what ``spec`` names.

    * the folder of an index that ``mtgrpo index`` built, of either kind;
    * ``http://…`` or ``https://…``: a search service;
    * a list of these: all of them, merged by reciprocal rank.

    Raises:
        ConfigError: ``spec`` is empty or something else.
        IndexFormatError: A folder holds no index that this version can read.
    """
    if isinstance(spec, str | Path):
        return _open_one(str(spec))
    if not isinstance(spec, Sequence) or not spec:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"the index is {spec!r}, expected a folder, an http(s) address, or a list of these")
    if len(spec) == 1:
        return open_retriever(spec[0])
    from verl_mtgrpo.retrieval.hybrid import HybridRetriever

    return HybridRetriever([open_retriever(part) for part in spec])


def _open_one(spec: str) -> Retriever:
    if not spec.strip():
        raise ConfigError("the index is an empty text, expected a folder, an http(s) address, or a list of these")
    if spec.startswith(("http://", "https://")):
        from verl_mtgrpo.retrieval.client import HTTPRetriever  # pyright: ignore[reportMissingImports]

        return HTTPRetriever(spec)
    if read_format(Path(spec)) == BM25Manifest.format:
        return BM25Index.open(spec)
    from verl_mtgrpo.retrieval.dense import DenseIndex

    return DenseIndex.open(spec)
