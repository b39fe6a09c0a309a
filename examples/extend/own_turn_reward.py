"""Write your own turn reward: evidence earns, a failed call costs, and a tool's own reward for its call counts.

mtgrpo train -- reward.turn.preset=$PWD/examples/extend/own_turn_reward.py:evidence ...
"""

from typing import Any

from verl_mtgrpo.rewards import Transcript, TurnRewards
from verl_mtgrpo.rewards.answers import accepted_answers, contains, exact_match, last_answer, searchable_answers


def evidence(transcript: Transcript, ground_truth: Any) -> TurnRewards:
    """Pay 0.5 to the first turn whose results hold an answer, -0.1 per failed call, and exact match as outcome."""
    accepted = accepted_answers(ground_truth)
    searchable = searchable_answers(accepted)  # without yes and no, which are in most results
    paid: list[float] = []
    found = False
    for turn in transcript.turns:
        hit = not found and any(contains(result, searchable) for result in turn.results)
        found = found or hit
        failed = sum(not call.ok for call in turn.tool_calls)
        paid.append(0.5 * hit - 0.1 * failed + sum(call.reward for call in turn.tool_calls))
    right = exact_match(last_answer([turn.text for turn in transcript.turns]), accepted)
    measured = {"tool/hit": float(found), "outcome/em": float(right)}  # each becomes a metric
    return TurnRewards(turns=tuple(paid), outcome=float(right), components=measured)
