"""``mtgrpo`` with an index whose searches take their time: the query ``sleep 1.5 uid7`` takes 1.5 s, and ``break``
makes the search fail; with MTGRPO_TEST_BROKEN every search fails."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from verl_mtgrpo.cli.main import main
from verl_mtgrpo.errors import RetrievalError
from verl_mtgrpo.retrieval import BM25Index, Passage

_search = BM25Index.search


def search(self: BM25Index, queries: Sequence[str], k: int) -> list[list[Passage]]:
    if "break" in queries or "MTGRPO_TEST_BROKEN" in os.environ:
        raise RetrievalError("the disk is gone")
    for query in queries:
        if query.startswith("sleep "):
            time.sleep(float(query.split()[1]))
    return _search(self, queries, k)


if __name__ == "__main__":
    BM25Index.search = search  # type: ignore[method-assign]
    sys.exit(main())
