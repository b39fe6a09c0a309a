"""Pay what an environment says: the reward of each step to the turn that took it, and an outcome at the end.

For a rollout of K turns::

    R^I_k = reward of the step of turn k
    R^O   = info["outcome"], the last that the environment gave

An environment that gives no outcome has one all the same, its last reward: R^O = R^I_K and R^I_K = 0. So nothing is
paid twice, and the turns of a rollout together always earn the episode's return, plus the outcome if there is one.
"""

from __future__ import annotations

from typing import Any

from verl_mtgrpo.rewards.transcript import DONE, Transcript, TurnRewards

OUTCOME = "outcome"
"""Name of the outcome reward in an environment's ``info``."""
PREFIX = "env/"
"""What the names of an environment's metrics begin with."""


def environment(transcript: Transcript, ground_truth: Any) -> TurnRewards:
    """Score one rollout of the agent loop ``mtgrpo_env_agent``.

    Args:
        transcript: The rollout; each step is recorded as a tool call.
        ground_truth: Not used: the environment knows the row.

    Returns:
        The rewards above. A turn without a step, because the response was full, earns 0. The components are
        ``env/return``, the sum of all step rewards, ``env/done``, 1 if the environment ended the episode, and each
        number of ``info`` as ``env/<name>``.
    """
    steps = [sum(call.reward for call in turn.tool_calls) for turn in transcript.turns]
    numbers = {name: value for name, value in transcript.info.items() if isinstance(value, int | float)}
    components = {f"{PREFIX}{name}": float(value) for name, value in numbers.items()}
    components |= {f"{PREFIX}return": float(sum(steps)), f"{PREFIX}done": float(transcript.end_reason == DONE)}
    if OUTCOME in numbers or not steps:
        return TurnRewards(tuple(steps), float(numbers.get(OUTCOME, 0.0)), components)
    return TurnRewards((*steps[:-1], 0.0), steps[-1], components)
