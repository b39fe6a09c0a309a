"""Reward presets by name (``reward.turn.preset``), and where their rewards are paid."""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from verl_mtgrpo.errors import ConfigError, TranscriptError
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
}
JUDGES = ("judge", "judge_paper")
"""Presets that ask a language model; :mod:`~verl_mtgrpo.rewards.judge` and :mod:`~verl_mtgrpo.rewards.judge_paper`."""

NEED_RULES = ("paper_v2", "search_r1_em", "search_r1_format", "judge_paper")
"""Presets that read the tags of turns, so that they need the rules of the format (:data:`~.formats.FORMATS`)."""


def load_preset(name: str) -> RewardFunction:
    """The reward function that ``reward.turn.preset`` names.

    Args:
        name: A preset, or a function of the user's own as ``package.module:function`` or
            ``path/to/file.py:function``. It takes a :class:`Transcript` and the row's ground truth and
            returns :class:`TurnRewards`; it may be a coroutine function.

    Raises:
        ConfigError: no preset of this name, no such module, file or function.
    """
    if name in PRESETS:
        return PRESETS[name]
    where, _, function = name.rpartition(":")
    if not where:
        raise ConfigError(
            f"reward.turn.preset is {name!r}, expected one of {sorted([*PRESETS, *JUDGES])}, or a function of your "
            "own as package.module:function or path/to/file.py:function"
        )
    found = getattr(_load_module(where, name), function, None)
    if not callable(found):
        raise ConfigError(f"reward.turn.preset is {name!r}, but {where} has no function {function!r}; correct the name")
    return cast(RewardFunction, found)


def _load_module(where: str, name: str) -> ModuleType:
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        spec = importlib.util.spec_from_file_location(Path(where).stem, where)
        if spec is None or spec.loader is None:
            raise ImportError(f"cannot load {where}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"reward.turn.preset is {name!r}, but {where} cannot be loaded: {error}; correct it"
        ) from error


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
