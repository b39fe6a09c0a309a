"""Check whether the index can answer the questions: does a search for the question itself find a gold answer?

The comparison is the one that counts as a hit in the reward ``paper_v2``: an accepted answer occurs in a result, both
normalised, a short one as a whole word (:func:`~verl_mtgrpo.rewards.answers.contains`). It proves nothing in either
direction: a multi-hop question may need several searches, so its share is a lower bound, and a short answer may
occur in a passage by chance. "Yes" and "no" occur in most passages and prove nothing, so they are counted separately
(:func:`~verl_mtgrpo.rewards.answers.searchable_answers`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from verl_mtgrpo.data.questions import Question
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.retrieval.query import clean_query
from verl_mtgrpo.retrieval.types import Retriever
from verl_mtgrpo.rewards.answers import contains, searchable_answers

_BATCH = 64


@dataclass
class Tally:
    """Counts what was found for one set's questions in one split; ``yes_no`` are not searched for."""

    questions: int = 0
    yes_no: int = 0
    answerable: int = 0

    def add(self, found: bool | None) -> None:
        """Count one question's result."""
        self.questions += 1
        self.yes_no += found is None
        self.answerable += found is True

    def manifest(self) -> dict[str, Any]:
        """Return the counts, and the share of the searched questions with a gold answer (None if there are none)."""
        searched = self.questions - self.yes_no
        share = round(self.answerable / searched, 4) if searched else None
        return {"searched": searched, "answerable": self.answerable, "share": share, "yes_no": self.yes_no}


class AnswerCheck:
    """Looks questions up and counts by split and set."""

    def __init__(self, retriever: Retriever, *, top: int, name: str) -> None:
        """Look into ``top`` passages per question; ``name`` says in the manifest where they come from."""
        if top < 1:
            raise ConfigError(f"the number of passages to look into is {top}", expected="at least 1")
        self._retriever, self._top, self._name = retriever, top, name
        self._tallies: dict[str, dict[str, Tally]] = {}

    def check(self, questions: Iterable[Question], split: str) -> Iterator[tuple[Question, bool | None]]:
        """Yield each question with True if a gold answer was found, else False; None for a yes/no question.

        Raises:
            RetrievalError: The search failed.
        """
        tallies = self._tallies.setdefault(split, {})
        stream = iter(questions)
        while batch := list(islice(stream, _BATCH)):
            for question, found in zip(batch, self._look_up(batch), strict=True):
                tallies.setdefault(question.source, Tally()).add(found)
                yield question, found

    def manifest(self) -> dict[str, Any]:
        """Return the index, the number of passages, and the counts by split and set."""
        return {
            "index": self._name,
            "fingerprint": self._retriever.fingerprint,
            "top": self._top,
            "splits": {
                split: {source: tally.manifest() for source, tally in sorted(tallies.items())}
                for split, tallies in self._tallies.items()
            },
        }

    def _look_up(self, questions: Sequence[Question]) -> list[bool | None]:
        wanted = {id(question): searchable_answers(question.answers) for question in questions}
        asked = [question for question in questions if wanted[id(question)]]
        hits = self._retriever.search([clean_query(question.question) for question in asked], self._top)
        found = {
            id(question): any(contains(f"{hit.title}\n{hit.text}", wanted[id(question)]) for hit in passages)
            for question, passages in zip(asked, hits, strict=True)
        }
        return [found.get(id(question)) for question in questions]
