"""Are the values of an estimator's knobs legal? The estimator itself is asked, on a batch of four rollouts.

So there is one definition of what is legal, the function's own, and it is asked before the run instead of in step 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from verl_mtgrpo.credit import ESTIMATORS, extra_fields
from verl_mtgrpo.errors import ConfigError, MTGRPOError
from verl_mtgrpo.integration.advantage.fields import TOKEN_FIELDS

# Two groups of two rollouts, two turns each but for the last, and no two rewards alike.
_MASK = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 0, 1, 0], [1, 0, 0, 1, 1], [1, 1, 0, 0, 0]])
_REWARDS = torch.tensor([[0, 0.2, 0, 0, 1.0], [0, 0.7, 0, 0.5, 0], [0.3, 0, 0, 0, 0.1], [0, 0.4, 0, 0, 0]])
_INDEX = ["a", "a", "b", "b"]


def is_ours(name: str) -> bool:
    """Whether the estimator comes with this package."""
    return ESTIMATORS[name].__module__.startswith("verl_mtgrpo.")


def try_knobs(name: str, settings: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` if the estimator refuses its settings, or makes advantages of them that are no numbers.

    One of the user's own that asks for fields of rollouts is not asked: what these hold is not known here.

    Args:
        name: One of :data:`verl_mtgrpo.credit.ESTIMATORS`.
        settings: All of its knobs.
    """
    fields = extra_fields(name)
    if not all(field in TOKEN_FIELDS for field in fields):
        return
    given = {field: torch.zeros_like(_REWARDS) for field in fields}
    try:
        advantages, _ = ESTIMATORS[name](_REWARDS.clone(), _MASK.clone(), list(_INDEX), **given, **settings)
    except MTGRPOError as error:
        raise ConfigError(f"algorithm.turn of {name}: {error}") from error
    except Exception as error:
        if is_ours(name):
            raise
        raise ConfigError(
            f"the estimator {name} fails on a small batch of four rollouts with {dict(settings)}: "
            f"{type(error).__name__}: {error}; correct it, or its knobs algorithm.turn"
        ) from error
    if not torch.isfinite(advantages).all():
        raise ConfigError(
            f"algorithm.turn of {name}: {dict(settings)} gives advantages that are NaN or infinite for rewards from 0 "
            "to 1; choose smaller values"
        )
