"""Pay each turn what its calls are worth to the tools themselves, and the answer 1 if it is right.

reward.turn.preset=examples/tools/call_rewards.py:calls
"""

from __future__ import annotations

from verl_mtgrpo.rewards import Transcript, TurnRewards
from verl_mtgrpo.rewards.answers import accepted_answers, exact_match, last_answer


def calls(transcript: Transcript, ground_truth: object) -> TurnRewards:
    """Return R^I_k, the sum of ``call.reward`` of turn k, and R^O, 1 for a right answer between answer tags."""
    answer = last_answer([turn.text for turn in transcript.turns])
    right = float(exact_match(answer, accepted_answers(ground_truth)))
    worth = [sum(call.reward for call in turn.tool_calls) for turn in transcript.turns]
    return TurnRewards(tuple(worth), right, {"outcome/em": right})
