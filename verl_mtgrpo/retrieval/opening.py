"""From what a user writes to a retriever."""

from __future__ import annotations

from typing import Any

from verl_mtgrpo.retrieval.bm25 import BM25Index
from verl_mtgrpo.retrieval.types import Retriever


def open_retriever(spec: Any, **service: Any) -> Retriever:
    """Open an index folder."""
    return BM25Index.open(spec)
