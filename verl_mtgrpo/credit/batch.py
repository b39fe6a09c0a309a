"""Reduce a batch to turn rewards, which every estimator starts from, and hand turn advantages back to tokens."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verl_mtgrpo.credit.checks import refusal
from verl_mtgrpo.credit.groups import Groups, group_rows
from verl_mtgrpo.credit.turns import Turns, segment_turns_and_fetch
from verl_mtgrpo.errors import CreditInputError

Index = Sequence[Hashable] | np.ndarray | Tensor

LARGEST = 1e12
"""The largest sum of the magnitudes of one rollout's rewards, and the largest value of a critic, that is accepted.
Standard deviations square it and add it up over all tokens of a batch, in float32, which ends at 3.4e38: beyond that,
advantages would silently be NaN or 0. No reward function pays as much on purpose."""


@dataclass(frozen=True)
class TurnBatch:
    """A batch of rollouts, reduced from tokens to turns.

    Attributes:
        turns: Where the turns are.
        groups: Which rollouts belong together.
        reward_BK: R_{i,k}, the summed reward of each turn, float32, 0 where there is no turn.
    """

    turns: Turns
    groups: Groups
    reward_BK: Tensor

    @property
    def nonempty_B1(self) -> Tensor:
        """Return ``(B, 1)`` bool, True for rollouts with at least one generated token."""
        return self.turns.count_B[:, None] > 0

    @property
    def intermediate_BK(self) -> Tensor:
        """Return R^I_{i,k} = R_{i,k} for k < K_i, 0 at the last turn."""
        return self.reward_BK.masked_fill(self.turns.last_BK, 0.0)

    @property
    def outcome_B1(self) -> Tensor:
        """Return R^O_i = R_{i,K_i}, the reward of the last turn, ``(B, 1)``."""
        return self.reward_BK.masked_fill(~self.turns.last_BK, 0.0).sum(dim=1, keepdim=True)

    def return_to_go(self, discount: float) -> Tensor:
        """Return G_{i,k} = Σ_{l≥k} γ^{l-k} R_{i,l}, ``(B, K)``, 0 where there is no turn."""
        return discounted_sum(self.reward_BK, discount)

    def advantages(self, advantage_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Give every token its turn's advantage; return ``(advantages, returns)``, as every estimator does.

        Without a critic nothing is trained on the returns; they equal the advantages, as in verl's ``grpo``.
        """
        tokens = self.turns.spread(advantage_BK)
        return tokens, tokens


def read_batch(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    values: Tensor | None = None,
    values_after: Tensor | None = None,
) -> TurnBatch:
    """Check the input of an estimator and reduce it to turns, with one host synchronisation.

    The result is a constant: no gradient flows back into rewards or values that require one.

    Args:
        token_level_rewards: ``(B, T)`` float. Rewards outside every turn are ignored, NaN included.
        response_mask: ``(B, T)``, 1 at generated tokens.
        index: ``(B,)`` group labels.
        values: ``(B, T)`` float, a critic's values, checked in the same synchronisation; None without a critic.
            Values outside every turn are ignored.
        values_after: ``(B, T)`` float, the same after each token, checked in the same way.

    Raises:
        CreditInputError: shapes differ, the mask holds something other than 0 and 1, the number of group labels is not
            the number of rollouts, or, at generated tokens, a reward or value is NaN or infinite, the magnitudes of a
            rollout's rewards add up to more than :data:`LARGEST`, or a value is larger than that.
    """
    if token_level_rewards.shape != response_mask.shape or token_level_rewards.dim() != 2:
        raise CreditInputError(
            f"token_level_rewards has shape {tuple(token_level_rewards.shape)} and response_mask "
            f"{tuple(response_mask.shape)}",
            expected="the same (rollouts, response_length) for both",
        )
    groups = group_rows(index, len(response_mask), response_mask.device)
    rewards = token_level_rewards.detach().float()
    # One pass over all tokens; masked ones are left out, and rows looked at one by one, only if a reward is odd.
    critic = {"values": values, "values_after": values_after}
    turns, (odd, *bad) = segment_turns_and_fetch(
        response_mask,
        _any_odd(rewards),
        *(_count_bad_values(name, one, response_mask) for name, one in critic.items() if one is not None),
    )
    if odd:
        rewards = rewards.masked_fill(response_mask == 0, 0.0)
        _refuse_bad_rewards(rewards)
    for name, count in zip((name for name, one in critic.items() if one is not None), bad, strict=True):
        if count:
            raise refusal(
                "values",
                f"{name} is NaN, infinite or beyond {LARGEST:g} at {count} generated tokens: the critic has diverged",
                fix="lower its learning rate, or go back to a checkpoint from before it diverged",
            )
    return TurnBatch(turns, groups, turns.sum_over_turns(rewards))


def discounted_sum(values_BK: Tensor, discount: float) -> Tensor:
    """Return Σ_{l≥k} discount^{l-k} x_{i,l}, ``(B, K)``."""
    turn = torch.arange(values_BK.shape[1], device=values_BK.device)
    later = turn[:, None] - turn[None, :]  # [l, k] = l - k
    weights = torch.where(later >= 0, float(discount) ** later.clamp(min=0).double(), 0.0)
    # In double precision: float32 products may be rounded to TF32 on a GPU.
    return (values_BK.double() @ weights).to(values_BK.dtype)


def _count_bad_values(name: str, values: Tensor, response_mask: Tensor) -> Tensor:
    """Count the generated tokens whose value is NaN or beyond :data:`LARGEST`; return a scalar."""
    if values.shape != response_mask.shape:
        raise CreditInputError(
            f"{name} has shape {tuple(values.shape)} and response_mask {tuple(response_mask.shape)}",
            expected="one value per response token",
        )
    values = values.detach().float()
    ordinary = (values >= -LARGEST).logical_and_(values <= LARGEST)  # False for NaN
    return torch.count_nonzero(ordinary.logical_not_().logical_and_(response_mask != 0))


def _any_odd(rewards: Tensor) -> Tensor:
    """Return a scalar, not 0 if a reward is NaN, or so large that a row of such rewards may exceed :data:`LARGEST`."""
    if not rewards.numel():
        return torch.zeros((), dtype=torch.bool, device=rewards.device)
    low, high = rewards.aminmax()  # NaN if a reward is NaN
    limit = LARGEST / rewards.shape[1]
    return ~((low >= -limit) & (high <= limit))


def _refuse_bad_rewards(rewards: Tensor) -> None:
    """Raise ``CreditInputError`` if a row of rewards (0 outside turns) is not finite or too large."""
    finite_B = torch.isfinite(rewards).all(dim=1)
    if not finite_B.all():
        raise CreditInputError(
            f"token_level_rewards is NaN or infinite in {_listed(~finite_B)}",
            fix="check the reward function's values for these rollouts",
        )
    large_B = rewards.abs().sum(dim=1) > LARGEST
    if large_B.any():
        raise CreditInputError(
            f"token_level_rewards adds up to more than {LARGEST:g} in {_listed(large_B)} (largest reward: "
            f"{float(rewards.abs().max()):.3g}), too much for a standard deviation in float32",
            fix="scale them down in the reward function",
        )


def _listed(rows_B: Tensor) -> str:
    rows = rows_B.nonzero().flatten().tolist()
    return f"{len(rows)} of {len(rows_B)} rows ({', '.join(map(str, rows[:10]))}{', ...' if len(rows) > 10 else ''})"
