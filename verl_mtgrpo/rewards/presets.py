"""Find reward functions by name (``reward.turn.preset``), check their results, and decide where rewards are paid."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from verl_mtgrpo.errors import ConfigError, TranscriptError
from verl_mtgrpo.own_code import load_own
from verl_mtgrpo.rewards.any_tool import tool_use
from verl_mtgrpo.rewards.environment import environment
from verl_mtgrpo.rewards.metric_names import own_metrics
from verl_mtgrpo.rewards.paper_v1 import paper_v1
from verl_mtgrpo.rewards.paper_v2 import paper_v2
from verl_mtgrpo.rewards.search_r1 import search_r1_em, search_r1_format
from verl_mtgrpo.rewards.transcript import Transcript, TurnRewards

RewardFunction = Callable[[Transcript, Any], TurnRewards | Awaitable[TurnRewards]]

PRESETS: dict[str, RewardFunction] = {
    "paper_v1": paper_v1,
    "paper_v2": paper_v2,
    "search_r1_em": search_r1_em,
    "search_r1_format": search_r1_format,
    "tool_use": tool_use,
    "env": environment,
}
JUDGES = ("judge", "judge_paper")
"""Presets that ask a language model; :mod:`~verl_mtgrpo.rewards.judge` and :mod:`~verl_mtgrpo.rewards.judge_paper`."""

PACKAGED = (*PRESETS, *JUDGES)
"""Every name that ``reward.turn.preset`` may have besides a function of the user's own."""

NEED_RULES = ("paper_v2", "search_r1_em", "search_r1_format", "judge_paper")
"""Presets that read the tags of turns, so that they need the rules of the format (:data:`~.formats.FORMATS`)."""


def load_preset(name: str, key: str = "reward.turn.preset") -> RewardFunction:
    """Return the reward function that ``reward.turn.preset`` names.

    Args:
        name: A preset, or a function of the user's own as ``package.module:function`` or
            ``path/to/file.py:function``. It takes a :class:`Transcript` and the row's ground truth and
            returns :class:`TurnRewards`; it may be a coroutine function.
        key: The setting that it comes from, for messages.

    Raises:
        ConfigError: There is no such preset, module, file or function.
    """
    if name in PRESETS:
        return PRESETS[name]
    if not name.rpartition(":")[0]:
        raise ConfigError(
            f"{key} is {name!r}",
            expected=(
                f"one of {sorted(PACKAGED)}, or a function of your own as package.module:function or "
                "path/to/file.py:function"
            ),
        )
    return cast(RewardFunction, load_own(name, key, "function"))


def check_kind(rewards: Any, name: str) -> TurnRewards:
    """Check the type and the component names of a reward function's result.

    Args:
        rewards: The return value.
        name: The name of the function in messages.

    Raises:
        TranscriptError: It is not a :class:`TurnRewards`, or a component has a name that is reserved for this package.
    """
    if not isinstance(rewards, TurnRewards):
        raise TranscriptError(
            f"the reward function {name} returned {type(rewards).__name__}",
            expected="verl_mtgrpo.rewards.TurnRewards",
            fix="return TurnRewards(turns=(one reward per turn), outcome=..., components={...})",
        )
    if taken := own_metrics(rewards.components):
        raise TranscriptError(
            f"the reward function {name} names a component {', '.join(taken)}, which is a metric of verl-mtgrpo "
            "itself and would be replaced",
            fix=f"choose another name, such as {taken[0].partition('/')[0]}/my_{taken[0].rpartition('/')[2]}",
        )
    return rewards


def check_numbers(rewards: TurnRewards, turns: int, name: str) -> TurnRewards:
    """Return rewards and components as Python numbers, because those of numpy and torch cannot be written as JSON.

    Args:
        rewards: The result of the reward function.
        turns: K, number of turns of the rollout.
        name: The name of the function in messages.

    Raises:
        TranscriptError: There is not exactly one finite number per turn and one for the outcome, or the notes are not
            one text per turn.
    """
    try:
        paid = [float(one) for one in rewards.turns]
        outcome = float(rewards.outcome)
    except (TypeError, ValueError) as error:
        raise TranscriptError(
            f"the reward function {name} gave turns={rewards.turns!r} and outcome={rewards.outcome!r}",
            expected="a number for each turn and one for the outcome",
        ) from error
    _check_count(len(paid), turns, name)
    if not all(map(math.isfinite, [*paid, outcome])):
        raise TranscriptError(
            f"the reward function {name} gave turns={tuple(paid)} and outcome={outcome}",
            expected="finite numbers",
            fix="raise verl_mtgrpo.errors.DropRollout for a rollout that cannot be scored",
        )
    components = {name: plain_number(value) for name, value in rewards.components.items()}
    return replace(rewards, turns=tuple(paid), outcome=outcome, components=components, notes=_notes(rewards, name))


def _notes(rewards: TurnRewards, name: str) -> tuple[str, ...]:
    notes: tuple[Any, ...] = tuple(rewards.notes)
    if isinstance(rewards.notes, str) or not all(isinstance(note, str) for note in (*notes, rewards.outcome_note)):
        raise TranscriptError(
            f"the reward function {name} gave notes={rewards.notes!r:.200} and "
            f"outcome_note={rewards.outcome_note!r:.80}",
            expected="one text per turn, or no notes, and one text for the outcome",
        )
    if notes and len(notes) != len(rewards.turns):
        raise TranscriptError(
            f"the reward function {name} gave {len(notes)} notes for {len(rewards.turns)} turns",
            fix="give one text per turn, the last turn included, or none at all",
        )
    return notes


def plain_number(value: Any) -> Any:
    """Return a number of numpy or torch, or a boolean, as a float; return anything else unchanged."""
    if isinstance(value, bool | float):
        return float(value)
    item = getattr(value, "item", None)
    try:
        return plain_number(item()) if callable(item) else value
    except (TypeError, ValueError, RuntimeError):  # an array of several
        return value


def _check_count(given: int, turns: int, name: str) -> None:
    if given != turns:
        raise TranscriptError(
            f"the reward function {name} gave {given} turn rewards for {turns} turns",
            fix="give one per turn, the last turn included: len(turns) == len(transcript.turns)",
        )


def pay(rewards: TurnRewards, turns: int, how: str) -> list[float]:
    """Return the reward for each turn's last token.

    Args:
        rewards: One intermediate reward per turn, and the outcome.
        turns: K, number of turns of the rollout.
        how: ``turns``: each turn gets its reward, and the last one also the outcome; ``merged``: the last turn gets
            everything; ``outcome``: the last turn gets the outcome, and nothing else is paid. Our presets give the last
            turn no intermediate reward, so it is paid R^O alone (arXiv 2505.11821 v2, Eq. 9), even if it still
            searches. Your own reward function may give it one, which is added.

    Returns:
        K numbers; an empty list for a rollout without turns, which has no token to pay.
    """
    _check_count(len(rewards.turns), turns, "of this run")
    if turns == 0:
        return []
    before, last = _split(rewards.turns)
    if how == "turns":
        return [*before, last + rewards.outcome]
    if how == "merged":
        return [0.0] * len(before) + [sum(rewards.turns) + rewards.outcome]
    if how == "outcome":
        return [0.0] * len(before) + [rewards.outcome]
    raise ConfigError(f"pay is {how!r}", expected="'turns', 'merged' or 'outcome'")


def _split(values: Sequence[float]) -> tuple[list[float], float]:
    return [float(value) for value in values[:-1]], float(values[-1])
