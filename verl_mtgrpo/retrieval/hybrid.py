"""Several retrievers as one: reciprocal rank fusion.

Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods",
SIGIR 2009 (https://doi.org/10.1145/1571941.1572114):

    score(d) = Σ_r 1 / (60 + rank_r(d)),   over the retrievers r that found d; the best hit has rank 1
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from verl_mtgrpo.errors import ConfigError, RetrievalError
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.retrieval.query import check_queries
from verl_mtgrpo.retrieval.types import Retriever

CONSTANT = 60
"""The paper's k: the larger, the less the first ranks count."""


class HybridRetriever:
    """Searches with every part and merges their rankings by reciprocal rank; scores are the sums of the formula above.

    Parts name the same passage by the same id. An error in one part is an error of the search: half the
    results would look like complete ones.

    Args:
        parts: Two retrievers or more over the same corpus.
        depth: Hits requested from each part (more if the search asks for more); below it a passage has no rank.
    """

    def __init__(self, parts: Sequence[Retriever], *, depth: int = 50) -> None:
        if len(parts) < 2:
            raise ConfigError(f"a hybrid search has {len(parts)} parts", expected="at least 2")
        if depth < 1:
            raise ConfigError(f"depth is {depth}", expected="at least 1")
        self.parts = tuple(parts)
        self.depth = depth

    @property
    def fingerprint(self) -> str:
        """The fingerprints of all parts; empty if one part has none."""
        parts = [part.fingerprint for part in self.parts]
        return f"hybrid/{self.depth}/" + " ".join(parts) if all(parts) else ""

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query in order, up to ``k`` passages, best first.

        Equal scores are ordered by the better single rank, then by the order of the parts.
        """
        check_queries(queries, k)
        return self._fuse([part.search(queries, max(k, self.depth)) for part in self.parts], len(queries), k)

    async def asearch(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Search as :meth:`search` does, with all parts at the same time and without blocking the event loop."""
        check_queries(queries, k)
        found = await asyncio.gather(*(part.asearch(queries, max(k, self.depth)) for part in self.parts))
        return self._fuse(found, len(queries), k)

    def _fuse(self, found: Sequence[list[list[Passage]]], queries: int, k: int) -> list[list[Passage]]:
        for part, lists in zip(self.parts, found, strict=True):
            if len(lists) != queries:
                raise RetrievalError(f"{part!r} returned results for {len(lists)} queries", expected=str(queries))
        return [fuse(rankings, k) for rankings in zip(*found, strict=True)]

    def __repr__(self) -> str:
        return f"HybridRetriever({', '.join(map(repr, self.parts))})"


def fuse(rankings: Sequence[Sequence[Passage]], k: int) -> list[Passage]:
    """Return the best ``k`` of several rankings by reciprocal rank; raise ``RetrievalError`` if an id has two texts."""
    passages: dict[str, Passage] = {}
    scores: dict[str, float] = {}
    best: dict[str, tuple[int, int]] = {}
    for part, ranking in enumerate(rankings):
        for rank, hit in enumerate(ranking, start=1):
            known = passages.setdefault(hit.id, hit)
            if known.text.split() != hit.text.split():
                raise RetrievalError(
                    f"the parts of a hybrid search give different texts for the passage {hit.id!r} "
                    f"({known.text[:40]!r}, {hit.text[:40]!r})",
                    fix="build them from the same corpus",
                )
            scores[hit.id] = scores.get(hit.id, 0.0) + 1 / (CONSTANT + rank)
            best[hit.id] = min(best.get(hit.id, (rank, part)), (rank, part))
    order = sorted(scores, key=lambda id: (-round(scores[id], 12), best[id]))
    return [
        Passage(id=id, title=passages[id].title, text=passages[id].text, score=scores[id]) for id in order[: max(k, 0)]
    ]
