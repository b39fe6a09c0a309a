"""What every estimator demands of its input."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verl_mtgrpo.errors import CreditInputError


def check_estimator_input(
    token_level_rewards: Tensor, response_mask: Tensor, *, discount: float, epsilon: float
) -> None:
    """Raise ``CreditInputError`` for shapes that differ, rewards that are not finite, bad settings."""
    if token_level_rewards.shape != response_mask.shape or token_level_rewards.dim() != 2:
        raise CreditInputError(
            f"token_level_rewards has shape {tuple(token_level_rewards.shape)} and response_mask "
            f"{tuple(response_mask.shape)}; expected the same (rollouts, response_length) for both"
        )
    if not (math.isfinite(discount) and discount >= 0):
        raise CreditInputError(f"discount is {discount}, expected a finite number >= 0")
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise CreditInputError(f"epsilon is {epsilon}, expected a finite number >= 0")
    finite = torch.isfinite(token_level_rewards) | (response_mask == 0)
    if not finite.all():
        rows = (~finite).any(dim=1).nonzero().flatten().tolist()
        shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
        raise CreditInputError(
            f"token_level_rewards is NaN or infinite in {len(rows)} of {len(finite)} rows ({shown}); "
            "check the reward function's values for these rollouts"
        )
