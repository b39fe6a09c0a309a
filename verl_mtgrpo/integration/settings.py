"""Our settings inside verl's config: ``algorithm.turn.*`` and ``reward.turn.*``.

Each is a frozen dataclass; every key has a default, and an unknown key is an error that lists the known
ones (a misspelt knob would otherwise silently keep its default).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from verl_mtgrpo.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class TurnCreditSettings:
    """``algorithm.turn``: how turn rewards become advantages."""

    turn_coef: float = 1.0
    """c, the weight of the turn-level term."""
    discount: float = 1.0
    """α (γ) per turn; with two turns the paper's λ."""
    missing_turn: str = "zero"
    """``zero``: a rollout that stopped takes part in its last turn's statistics with 0; ``exclude``: not."""
    scale: str = "std"
    """``std``: divide by the group's standard deviation; ``none``: only centre."""
    epsilon: float = 1e-6
    """Added to the standard deviation."""


@dataclass(frozen=True)
class TurnRewardSettings:
    """``reward.turn``: which rewards are computed and where they are paid."""

    preset: str = "paper_v1"
    """Name of a reward preset."""
    pay: str = "turns"
    """``turns``: each turn's reward on its last token (MT-GRPO, MT-PPO); ``merged``: their sum with the
    outcome on the last turn (GRPO-MR, PPO-MR); ``outcome``: the outcome only (GRPO-OR, PPO-OR)."""


PAY = ("turns", "merged", "outcome")


def turn_credit_settings(algorithm: Any) -> TurnCreditSettings:
    """Read ``algorithm.turn``; verl's ``norm_adv_by_std_in_grpo=False`` means ``scale=none``.

    Args:
        algorithm: verl's ``algorithm`` node (DictConfig, mapping or dataclass) or None.
    """
    settings = _read(TurnCreditSettings, _child(algorithm, "turn"), "algorithm.turn")
    if _child(algorithm, "norm_adv_by_std_in_grpo") is False:
        settings = TurnCreditSettings(**{**settings.__dict__, "scale": "none"})
    return settings


def turn_reward_settings(reward: Any) -> TurnRewardSettings:
    """Read ``reward.turn`` from verl's ``reward`` node."""
    settings = _read(TurnRewardSettings, _child(reward, "turn"), "reward.turn")
    if settings.pay not in PAY:
        raise ConfigError(f"reward.turn.pay is {settings.pay!r}, expected one of {PAY}")
    return settings


def _child(node: Any, key: str) -> Any:
    if node is None:
        return None
    if isinstance(node, Mapping | DictConfig):
        return node.get(key)
    return getattr(node, key, None)


def _read(cls: type[T], node: Any, where: str) -> T:
    if node is None:
        return cls()
    values = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is {values!r}, expected a mapping of settings")
    known = {field.name: field.default for field in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(map(str, values)) - set(known))
    if unknown:
        listed = ", ".join(f"{name} ({default})" for name, default in known.items())
        raise ConfigError(f"{where} has unknown keys {unknown}; known keys and their defaults: {listed}")
    return cls(**{str(key): _as_type(value, known[str(key)], f"{where}.{key}") for key, value in values.items()})


def _as_type(value: Any, default: Any, where: str) -> Any:
    """Numbers may come as strings or ints from a command line; anything else must be of the default's type."""
    if isinstance(default, float) and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif isinstance(value, type(default)):
        return value
    raise ConfigError(f"{where} is {value!r}, expected a {type(default).__name__} like {default!r}")
