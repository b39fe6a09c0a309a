"""Learn from pairs of an expert's action and the policy's own at the same state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from verl_mtgrpo.credit.batch import Index, read_batch
from verl_mtgrpo.credit.checks import refusal
from verl_mtgrpo.credit.registry import register_estimator
from verl_mtgrpo.credit.return_to_go import turn_rloo
from verl_mtgrpo.errors import CreditInputError

SIDES = ("expert", "own")
EQUAL = "equal"
"""Side of a row whose action is the expert's, token for token: the two gradients of such a pair cancel each other."""


@register_estimator(
    title="Pair DPO",
    words="DPO on pairs: the expert's action gets +β σ(-D) and the policy's own -β σ(-D), where D is how far the "
    "policy, compared with its reference, already prefers the expert's. Rewards play no part.",
    compares_rollouts=False,
)
def pair_dpo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    old_log_probs: Tensor,
    ref_log_prob: Tensor,
    pair_id: Sequence[Any],
    pair_side: Sequence[Any],
    *,
    beta: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Return the advantages whose policy gradient is the gradient of DPO on pairs of actions.

    For the expert's action a* and the policy's own â at the same state, with lr(a) = Σ_t log π_old - log π_ref over the
    generated tokens of a row and D = β [lr(a*) - lr(â)]:

        Â_t = +β σ(-D) at every token of a*,   Â_t = -β σ(-D) at every token of â.

    L = -log σ(D) has the gradient -β σ(-D) [∇log π(a*) - ∇log π(â)] (Rafailov et al., arXiv 2305.18290, section 4), so
    one update from these advantages, with tokens summed per row and rows averaged, is one of L averaged over the *rows*
    of the pairs: half of its mean over pairs. That is exact at ratio 1, before any clipping.

    A row without a partner, because that was dropped or failed, gets 0: there is nothing to compare it with. So does
    one whose action is the expert's own (``equal``): D is 0 there, and the two gradients cancel each other if both rows
    are in the same update.

    Args:
        token_level_rewards: ``(B, T)``. Checked, and not used.
        response_mask: ``(B, T)``, 1 at the action's tokens.
        index: ``(B,)`` group labels, not used: pairs are told by ``pair_id``.
        old_log_probs: ``(B, T)``, log π_old of each token, before the update.
        ref_log_prob: ``(B, T)``, log π_ref of each token.
        pair_id: ``(B,)``, a name that the two rows of a pair share; None or empty for a row of no pair.
        pair_side: ``(B,)``, ``expert``, ``own`` or ``equal``.
        beta: β, more than 0.

    Raises:
        CreditInputError: β is not a number above 0, a side is unknown, a pair has two rows of the same side, the shapes
            differ, or no pair of the batch is complete.
    """
    if not 0 < beta < float("inf"):
        raise refusal("beta", f"beta is {beta}", expected="a number above 0")
    batch = read_batch(token_level_rewards, response_mask, index)
    log_ratio_BT = _log_ratio(old_log_probs, ref_log_prob, response_mask)
    ratio_B1 = batch.turns.sum_over_turns(log_ratio_BT).sum(dim=1, keepdim=True)
    expert, own = _pairs(pair_id, pair_side, batch.nonempty_B1.flatten().tolist())
    margin_P1 = beta * (ratio_B1[expert] - ratio_B1[own])
    advantage_B1 = torch.zeros_like(ratio_B1)
    advantage_B1[expert] = beta * torch.sigmoid(-margin_P1)
    advantage_B1[own] = -beta * torch.sigmoid(-margin_P1)
    return batch.advantages(advantage_B1.expand(-1, batch.turns.max_turns).contiguous())


@register_estimator(
    title="Pair RLOO",
    words="RLOO on the policy's own actions beside an expert's: what the turn was paid from here on, minus the mean of "
    "the policy's other actions at this state. Nothing is learnt from the expert's action itself; it teaches the "
    "discriminator, if one pays.",
)
def pair_rloo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    pair_side: Sequence[Any],
    *,
    discount: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the advantages of :func:`~.return_to_go.turn_rloo` over the policy's own rows; 0 in the expert's.

    An expert's action was not sampled from the policy, so it is in no baseline, and its gradient would be none of the
    policy's. A row whose action both wrote (``equal``) is the policy's own.

    Args:
        token_level_rewards: ``(B, T)``, each turn's reward on its tokens.
        response_mask: ``(B, T)``, 1 at generated tokens.
        index: ``(B,)`` group labels.
        pair_side: ``(B,)``, ``expert`` for an expert's row; anything else is the policy's own.
        discount: γ ≥ 0, per turn.

    Raises:
        CreditInputError: as ``turn_rloo``, or ``pair_side`` has not one entry per row.
    """
    if len(pair_side) != len(response_mask):
        raise refusal(
            "pair_side", f"pair_side has {len(pair_side)} entries for {len(response_mask)} rows", expected="one per row"
        )
    expert = [side == SIDES[0] for side in pair_side]
    expert_B1 = torch.tensor(expert, dtype=torch.bool, device=response_mask.device)[:, None]
    return turn_rloo(token_level_rewards, response_mask.masked_fill(expert_B1, 0), index, discount=discount)


def _log_ratio(old_log_probs: Tensor, ref_log_prob: Tensor, response_mask: Tensor) -> Tensor:
    """Return log π_old - log π_ref, ``(B, T)``, and refuse what is not finite at a generated token."""
    for name, one in (("old_log_probs", old_log_probs), ("ref_log_prob", ref_log_prob)):
        if one.shape != response_mask.shape:
            raise CreditInputError(
                f"{name} has shape {tuple(one.shape)} and response_mask {tuple(response_mask.shape)}",
                expected="one number per response token",
            )
    difference_BT = (old_log_probs.detach().float() - ref_log_prob.detach().float()).where(response_mask != 0, 0.0)
    if not torch.isfinite(difference_BT).all():
        raise CreditInputError(
            "a log-prob of a generated token is NaN or infinite",
            fix="lower the learning rate, or go back to a checkpoint from before the policy diverged",
        )
    return difference_BT


def _pairs(pair_id: Sequence[Any], pair_side: Sequence[Any], nonempty: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Return the rows of the experts' actions and, in the same order, those of the policy's own."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for row, (pair, side, there) in enumerate(zip(pair_id, pair_side, nonempty, strict=True)):
        if not there or not pair or side == EQUAL:
            continue
        if side not in SIDES:
            raise CreditInputError(f"pair_side is {side!r} in row {row}", expected=f"one of {(*SIDES, EQUAL)}")
        if side in found[pair]:
            raise CreditInputError(
                f"the pair {pair} has two rows of the side {side}", expected="one of each side of a pair"
            )
        found[pair][side] = row
    complete = [sides for sides in found.values() if len(sides) == len(SIDES)]
    if found and not complete:
        raise CreditInputError(
            f"none of {len(found)} pairs has both of its rows, so there is nothing to compare",
            expected="an agent loop that returns two outputs with one pair_id, such as mtgrpo_pairs_agent",
        )
    return [sides["expert"] for sides in complete], [sides["own"] for sides in complete]
