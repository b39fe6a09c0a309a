"""Reward presets by name (``reward.turn.preset``), and where their rewards are paid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from verl_mtgrpo.errors import ConfigError, TranscriptError
from verl_mtgrpo.rewards.paper_v1 import paper_v1
from verl_mtgrpo.rewards.transcript import Transcript, TurnRewards

RewardFunction = Callable[[Transcript, Any], TurnRewards]

PRESETS: dict[str, RewardFunction] = {"paper_v1": paper_v1}


def load_preset(name: str) -> RewardFunction:
    """The reward function called ``name``; ``ConfigError`` listing the known ones otherwise."""
    if name not in PRESETS:
        raise ConfigError(f"reward.turn.preset is {name!r}, expected one of {sorted(PRESETS)}")
    return PRESETS[name]


def pay(rewards: TurnRewards, turns: int, how: str) -> list[float]:
    """What each turn's last token is paid.

    Args:
        rewards: One intermediate reward per turn, and the outcome.
        turns: K, number of turns of the rollout.
        how: ``turns``: each turn its own reward, the last one also the outcome (a rollout cut off before
            an answer carries both there); ``merged``: everything on the last turn; ``outcome``: only the
            outcome, on the last turn.

    Returns:
        K numbers. A rollout without any turn has no token to pay: an empty list.
    """
    if len(rewards.turns) != turns:
        raise TranscriptError(
            f"the reward function gave {len(rewards.turns)} turn rewards for {turns} turns; expected one per turn"
        )
    if turns == 0:
        return []
    before, last = _split(rewards.turns)
    if how == "turns":
        return [*before, last + rewards.outcome]
    if how == "merged":
        return [0.0] * len(before) + [sum(rewards.turns) + rewards.outcome]
    if how == "outcome":
        return [0.0] * len(before) + [rewards.outcome]
    raise ConfigError(f"pay is {how!r}, expected 'turns', 'merged' or 'outcome'")


def _split(values: Sequence[float]) -> tuple[list[float], float]:
    return [float(value) for value in values[:-1]], float(values[-1])
