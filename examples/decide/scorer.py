"""A scorer without a model: prefer searches, and answers that are words of a result (docs/deciders.md)."""

from __future__ import annotations

from verl_mtgrpo.rewards import Transcript, Turn
from verl_mtgrpo.rewards.answers import last_answer


def supported(transcript: Transcript, turn: Turn) -> float:
    """Return 1 for an answer that a result of the rollout contains, 0.5 for a search, 0 for anything else."""
    if turn.tool_calls:
        return 0.5
    answer = last_answer([turn.text])
    results = [result for earlier in transcript.turns for result in earlier.results]
    return float(bool(answer) and any(str(answer) in result for result in results))
