"""Check the values of an estimator's knobs by calling the estimator on a batch of four rollouts.

The function alone defines which values are legal, and a run with illegal ones is refused at the start instead of
failing in step 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.credit.registry import ROW_NAMES
from verl_mtgrpo.errors import ConfigError, MTGRPOError
from verl_mtgrpo.integration.advantage.fields import TOKEN_FIELDS

# Two groups of two rollouts. All have two turns except the last one, and no two rewards are equal.
_MASK = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 0, 1, 0], [1, 0, 0, 1, 1], [1, 1, 0, 0, 0]])
_REWARDS = torch.tensor([[0, 0.2, 0, 0, 1.0], [0, 0.7, 0, 0.5, 0], [0.3, 0, 0, 0, 0.1], [0, 0.4, 0, 0, 0]])
_INDEX = ["a", "a", "b", "b"]


def is_ours(name: str) -> bool:
    """Return True if the estimator comes with this package."""
    return ESTIMATORS[name].function.__module__.startswith("verl_mtgrpo.")


def try_knobs(name: str, settings: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` if the estimator refuses its settings, or returns advantages that are NaN or infinite.

    An estimator that asks for fields of rollouts is not called, because we cannot make up what these fields hold,
    except for names of turns and outputs, without which every rollout is one of its own.

    Args:
        name: One of :data:`verl_mtgrpo.credit.ESTIMATORS`.
        settings: All of its knobs.
    """
    fields = ESTIMATORS[name].fields
    if not all(field in (*TOKEN_FIELDS, *ROW_NAMES) for field in fields):
        return
    given = {field: [None] * len(_INDEX) if field in ROW_NAMES else torch.zeros_like(_REWARDS) for field in fields}
    try:
        advantages, _ = ESTIMATORS[name](_REWARDS.clone(), _MASK.clone(), list(_INDEX), **given, **settings)
    except MTGRPOError as error:
        what = f"algorithm.turn of {name}: {error.args[0]}"
        raise ConfigError(what, expected=error.expected, fix=error.fix) from error
    except Exception as error:
        if is_ours(name):
            raise
        raise ConfigError(
            f"the estimator {name} fails on a small batch of four rollouts with {dict(settings)}: "
            f"{type(error).__name__}: {error}",
            fix="fix it, or its knobs (algorithm.turn)",
        ) from error
    if not torch.isfinite(advantages).all():
        raise ConfigError(
            f"algorithm.turn of {name}: {dict(settings)} gives advantages that are NaN or infinite for rewards from 0 "
            "to 1",
            fix="choose smaller values",
        )
