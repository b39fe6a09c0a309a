"""Find passages for a query and render them for the model.

Imports nothing heavy: an engine is loaded by the first index that is opened or built with it, the HTTP client by
the first request. The service (``retrieval.server``) needs the extra ``serve`` and is imported by name.
"""

from verl_mtgrpo.passages import Passage
from verl_mtgrpo.retrieval.bm25 import BM25Index
from verl_mtgrpo.retrieval.check import check_index
from verl_mtgrpo.retrieval.client import HTTPRetriever
from verl_mtgrpo.retrieval.dense import DenseIndex
from verl_mtgrpo.retrieval.hybrid import HybridRetriever
from verl_mtgrpo.retrieval.opening import open_index, open_retriever
from verl_mtgrpo.retrieval.render import DEFAULT_TEMPLATE, NOTHING_FOUND, check_template, render_passages
from verl_mtgrpo.retrieval.types import Retriever

__all__ = [
    "DEFAULT_TEMPLATE",
    "NOTHING_FOUND",
    "BM25Index",
    "DenseIndex",
    "HTTPRetriever",
    "HybridRetriever",
    "Passage",
    "Retriever",
    "check_index",
    "check_template",
    "open_index",
    "open_retriever",
    "render_passages",
]
