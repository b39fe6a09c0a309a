"""Passages: what a corpus holds, a search returns, and a transcript keeps of a tool call."""

from __future__ import annotations

from dataclasses import dataclass


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
