"""Pay the answer its F1, as MHGPO does (arXiv 2506.02718), and watch the search without paying for it."""

from __future__ import annotations

from typing import Any

from verl_mtgrpo.rewards import Transcript, TurnRewards
from verl_mtgrpo.rewards.answers import (
    accepted_answers,
    exact_match,
    f1,
    hit_components,
    last_answer,
    searchable_answers,
)
from verl_mtgrpo.rewards.paper_v1 import first_hit


def answer_f1(transcript: Transcript, ground_truth: Any) -> TurnRewards:
    """Return the F1 of the last ``<answer>`` with the closest accepted answer; 0 without one. Turns earn nothing."""
    accepted = accepted_answers(ground_truth)
    answer = last_answer([turn.text for turn in transcript.turns])
    score = f1(answer, accepted)
    components: dict[str, float | None] = {
        "outcome/em": float(exact_match(answer, accepted)),
        "outcome/f1": score,
        "outcome/format": float(answer is not None),
    }
    return TurnRewards(turns=(0.0,) * len(transcript.turns), outcome=score, components=components)


def watched(transcript: Transcript, ground_truth: Any) -> TurnRewards:
    """Pay nothing, and report ``tool/hit``: whether a result has an accepted answer. For the role that searches."""
    return _of_search(transcript, ground_truth, 0.0)


def paid_for_hits(transcript: Transcript, ground_truth: Any) -> TurnRewards:
    """Pay 0.5 if a result has an accepted answer: a turn reward for the role that searches. MHGPO has none."""
    return _of_search(transcript, ground_truth, 0.5)


def _of_search(transcript: Transcript, ground_truth: Any, hit: float) -> TurnRewards:
    searchable = searchable_answers(accepted_answers(ground_truth))
    first = first_hit(transcript.turns, searchable)
    turns = tuple(hit * (k == first) for k in range(len(transcript.turns)))
    return TurnRewards(turns=turns, outcome=0.0, components={**hit_components(first is not None, searchable)})
