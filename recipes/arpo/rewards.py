"""Pay as ARPO does: -1 for a rollout without a readable answer or call, otherwise the answer's F1.

Its extra 0.1 is for answers that used both of its tools, search and Python. There is one tool here, so there is none.
Source: arXiv 2507.19849 and RUC-NLPIR/ARPO@a95cd08, deep_research.py. No turn earns anything by itself.
"""

from __future__ import annotations

from typing import Any

from verl_mtgrpo.rewards import Transcript, TurnRewards
from verl_mtgrpo.rewards.answers import accepted_answers, exact_match, f1, last_answer
from verl_mtgrpo.rewards.measures import BAD_ARGUMENTS


def arpo(transcript: Transcript, ground_truth: Any) -> TurnRewards:
    """Return -1, or the F1 of the last turn's ``<answer>`` with the closest accepted answer."""
    accepted = accepted_answers(ground_truth)
    answer = last_answer([turn.text for turn in transcript.turns])
    calls = [call for turn in transcript.turns for call in turn.tool_calls]
    readable = answer is not None and all(call.error_kind != BAD_ARGUMENTS for call in calls)
    score = f1(answer, accepted)
    components: dict[str, float | None] = {
        "outcome/em": float(exact_match(answer, accepted)),
        "outcome/f1": score,
        "outcome/format": float(readable),
    }
    return TurnRewards(turns=(0.0,) * len(transcript.turns), outcome=score if readable else -1.0, components=components)
