"""What a search takes and gives back, whatever carries it out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Passage:
    """One passage of a corpus, or one hit of a search.

    Attributes:
        id: Name of the passage, unique in its corpus.
        title: Title of the article it comes from; may be empty.
        text: The passage itself, without the title.
        score: How well it matches the query that found it, higher is better; 0.0 outside a search.
    """

    id: str
    title: str
    text: str
    score: float = 0.0


@runtime_checkable
class Retriever(Protocol):
    """Finds passages for queries."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same query might find something else; empty if that is not known (no caching then)."""
        ...

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query in order, up to ``k`` passages, best first.

        A query that matches nothing gives an empty list. Raises ``RetrievalError`` when the search
        itself could not be carried out, so that "found nothing" and "is down" never look alike.
        """
        ...

    async def asearch(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """As :meth:`search`, without blocking the event loop meanwhile."""
        ...


def content_id(*texts: str) -> str:
    """An id made from the content: 16 hex digits, equal for equal texts."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        raw = text.encode("utf-8", "replace")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()
