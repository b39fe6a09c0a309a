"""What a user writes in a config -> a retriever."""

from __future__ import annotations

from typing import Any

from verl_mtgrpo.retrieval.bm25 import BM25Index
from verl_mtgrpo.retrieval.types import Retriever


def open_retriever(spec: Any, **service: Any) -> Retriever:
    """Open an index folder or the address of a search service (whose settings ``service`` are)."""
    if str(spec).startswith(("http://", "https://")):
        from verl_mtgrpo.retrieval.client import HTTPRetriever

        return HTTPRetriever(spec, **service)
    return BM25Index.open(spec)
