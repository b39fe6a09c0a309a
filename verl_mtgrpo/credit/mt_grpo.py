"""MT-GRPO: one advantage per turn from turn-level and outcome rewards."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verl_mtgrpo.credit.checks import check_estimator_input
from verl_mtgrpo.credit.groups import group_rows, normalize_within_group
from verl_mtgrpo.credit.turns import Turns, segment_turns
from verl_mtgrpo.errors import CreditInputError

MISSING_TURN = ("zero", "exclude")


@dataclass(frozen=True)
class TurnCredit:
    """Everything an advantage is made of, one column per turn: the answer to "why this advantage?".

    Attributes:
        turns: Where the turns are.
        reward_BK: R_{i,k}, the summed reward of each turn.
        intermediate_BK: Â^I_{i,k}, the normalised intermediate reward; 0 where the turn takes no part.
        outcome_B1: Â^O_i, the normalised outcome reward, ``(B, 1)``.
        advantage_BK: A_{i,k}, 0 where there is no turn.
    """

    turns: Turns
    reward_BK: Tensor
    intermediate_BK: Tensor
    outcome_B1: Tensor
    advantage_BK: Tensor


def mt_grpo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Sequence[Hashable] | np.ndarray | Tensor,
    *,
    turn_coef: float = 1.0,
    discount: float = 1.0,
    missing_turn: str = "zero",
    scale: str = "std",
    epsilon: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Compute K-turn MT-GRPO advantages.

    With R_{i,k} the summed reward of turn k = 1..K_i, R^O_i = R_{i,K_i} and R^I_{i,k} = R_{i,k} (k < K_i)::

        Â^I_{·,k} = norm(R^I_{·,k})       over the rollouts of the group that are alive at k (K_i ≥ k)
        Â^O       = norm(R^O)             over the rollouts of the group
        A_{i,k}   = c Σ_{l=k}^{K_i} α^{l-k} Â^I_{i,l} + α^{K_i-k} Â^O_i

    Two turns: A_1 = c Â^T + α Â^O and A_2 = Â^O, the two-turn form of the paper with λ = α. No turn
    rewards and α = 1: verl's own ``grpo``. norm is :func:`normalize_within_group`.

    A rollout whose last turn is k has no R^I_{i,k}. ``missing_turn="zero"``: it takes part with 0 and
    also receives the centred value, so not calling the tool costs what calling it earns. ``"exclude"``:
    only rollouts with K_i > k take part and Â^I_{i,K_i} = 0.

    With variable turn counts the sum over l holds a number of baselines that depends on where the
    rollout stopped, which biases the gradient (verl RFC #7244); ``turn_rloo`` does not have this.

    Source: Zeng et al., *Reinforcing Multi-Turn Reasoning in LLM Agents via Turn-Level Reward Design*,
    arXiv 2505.11821 (v1: two turns; v2: K turns). The paper's code uses epsilon 1e-4 and another rule
    for rollouts without a tool call: ``mt_grpo_v1``.

    Args:
        token_level_rewards: ``(B, T)`` float; turn rewards anywhere inside their turn, the outcome in
            the last turn. Rewards outside every turn are ignored.
        response_mask: ``(B, T)``, 1 at generated tokens, 0 at observations and padding.
        index: ``(B,)`` group labels (verl's ``uid``).
        turn_coef: c, weight of the turn-level term.
        discount: α ≥ 0, per turn.
        missing_turn: ``"zero"`` or ``"exclude"``.
        scale: ``"std"`` or ``"none"`` (only centre).
        epsilon: Added to the standard deviation.

    Returns:
        ``(advantages, returns)``, both ``(B, T)`` float32, exactly 0 where the mask is 0. There is no
        critic, so returns equal advantages, as in verl's ``grpo``. Rows without a generated token get 0
        and enter no statistic.

    Raises:
        CreditInputError: shapes differ, rewards are not finite, the mask is not 0/1, or a setting is
            out of range.
    """
    credit = mt_grpo_credit(
        token_level_rewards,
        response_mask,
        index,
        turn_coef=turn_coef,
        discount=discount,
        missing_turn=missing_turn,
        scale=scale,
        epsilon=epsilon,
    )
    advantages = credit.turns.spread(credit.advantage_BK)
    return advantages, advantages


def mt_grpo_credit(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Sequence[Hashable] | np.ndarray | Tensor,
    *,
    turn_coef: float = 1.0,
    discount: float = 1.0,
    missing_turn: str = "zero",
    scale: str = "std",
    epsilon: float = 1e-6,
) -> TurnCredit:
    """:func:`mt_grpo` before it is spread over tokens, with every term kept."""
    check_estimator_input(token_level_rewards, response_mask, discount=discount, epsilon=epsilon)
    if missing_turn not in MISSING_TURN:
        raise CreditInputError(f"missing_turn is {missing_turn!r}, expected one of {MISSING_TURN}")
    turns = segment_turns(response_mask)
    groups = group_rows(index, len(response_mask), response_mask.device)
    reward_BK = turns.sum_rewards(token_level_rewards)
    alive_BK, last_BK = turns.alive_BK, turns.last_BK
    takes_part_BK = alive_BK if missing_turn == "zero" else alive_BK & ~last_BK

    def norm(values: Tensor, valid: Tensor) -> Tensor:
        return normalize_within_group(values, valid, groups, scale=scale, epsilon=epsilon)

    intermediate_BK = norm(reward_BK.masked_fill(last_BK, 0.0), takes_part_BK)
    outcome = reward_BK.masked_fill(~last_BK, 0.0).sum(dim=1, keepdim=True)
    outcome_B1 = norm(outcome, turns.count_B[:, None] > 0)

    # Putting Â^O at the last turn makes both terms of the equation one discounted sum.
    per_turn_BK = turn_coef * intermediate_BK + outcome_B1 * last_BK
    advantage_BK = discounted_sum(per_turn_BK, discount).masked_fill(~alive_BK, 0.0)
    return TurnCredit(turns, reward_BK, intermediate_BK, outcome_B1, advantage_BK)


def discounted_sum(values_BK: Tensor, discount: float) -> Tensor:
    """G_{i,k} = Σ_{l≥k} discount^{l-k} x_{i,l}, ``(B, K)``."""
    turn = torch.arange(values_BK.shape[1], device=values_BK.device)
    later = turn[:, None] - turn[None, :]  # [l, k] = l - k
    weights = torch.where(later >= 0, float(discount) ** later.clamp(min=0), 0.0)
    # Not a matrix product: those round inputs to TF32 on some GPUs.
    return (values_BK[:, :, None] * weights.to(values_BK.dtype)).sum(dim=1)
