"""The interface of retrievers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from verl_mtgrpo.passages import Passage


@runtime_checkable
class Retriever(Protocol):
    """Finds passages for queries."""

    @property
    def fingerprint(self) -> str:
        """A text that changes whenever the same query might find something else; empty if unknown (no caching then)."""
        ...

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query in order, up to ``k`` passages, best first.

        A query that matches nothing gives an empty list. Raises ``RetrievalError`` if the search
        itself could not be carried out, so that "found nothing" and "is down" never look alike.
        """
        ...

    async def asearch(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Search as :meth:`search` does, without blocking the event loop."""
        ...


def content_id(*texts: str) -> str:
    """Return an id made from the content: 16 hex digits, equal for equal texts."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        raw = text.encode("utf-8", "replace")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def split_contents(contents: str) -> tuple[str, str]:
    """Return title and text of Search-R1's ``contents``: its first line, which may be in quotes, and the rest.

    A single line is the text.
    """
    first, newline, rest = contents.partition("\n")
    if not newline:
        return "", contents
    first = first.strip()
    if len(first) >= 2 and first[0] == first[-1] == '"':
        first = first[1:-1]
    return first, rest
