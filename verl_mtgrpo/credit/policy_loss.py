"""Compute policy losses that treat a turn as one action."""

from __future__ import annotations

import torch
from torch import Tensor

from verl_mtgrpo.credit.checks import check_number
from verl_mtgrpo.credit.turns import segment_turns
from verl_mtgrpo.errors import CreditInputError

_LARGEST_LOG_RATIO = 10.0  # as in verl's gspo: e^10 is clipped anyway, and larger ratios overflow


def turn_gspo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, Tensor]:
    """Compute the clipped policy-gradient loss of each token with one importance ratio per turn.

    With π_t the new and π°_t the old probability of token t, n_k the length of turn k and sg the stop-gradient::

        s_k = (Π_{t in turn k} π_t / π°_t)^(1/n_k)            geometric mean of the turn's token ratios
        s_{k,t} = sg[s_k] · π_t / sg[π_t]                     of value s_k, with the gradient of token t
        loss_t = max(-A_t s_{k,t}, -A_t clip(s_{k,t}, 1 - ε_low, 1 + ε_high))

    A turn whose tokens share one advantage is clipped as a whole or not at all, and the tokens of one turn do not
    move the ratio of another, as they would with one ratio for the whole rollout.

    One turn: verl's ``gspo``. One-token turns: verl's ``vanilla`` (PPO) without its second bound on the loss of
    negative advantages (``clip_ratio_c``), which ``gspo`` does not have either.

    Source: GSPO-token, arXiv 2507.18071, applied per turn; the ratio per turn is ReMA's,
    arXiv 2503.09501.

    Args:
        log_prob: ``(B, T)`` float, log π_t; the loss is differentiable in it.
        old_log_prob: ``(B, T)`` float, log π°_t.
        advantages: ``(B, T)`` float.
        response_mask: ``(B, T)``, 1 (True) at generated tokens, 0 at observations and padding. Turns are its runs
            of 1s: if single tokens were rejected and masked afterwards, turns fall into pieces.
        clip_low: ε_low ≥ 0.
        clip_high: ε_high ≥ 0.

    Returns:
        ``(loss, clipped)``: ``(B, T)`` float, to be aggregated over the mask, and ``(B, T)`` bool, True where the
        clipped form is the larger. Values where the mask is 0 are undefined.

    Raises:
        CreditInputError: shapes differ, the mask is not 0/1, or a clip range is negative.
    """
    check_number("clip_low", clip_low)
    check_number("clip_high", clip_high)
    shapes = {tuple(x.shape) for x in (log_prob, old_log_prob, advantages, response_mask)}
    if len(shapes) > 1:
        raise CreditInputError(
            f"log_prob, old_log_prob, advantages and response_mask have the shapes {tuple(log_prob.shape)}, "
            f"{tuple(old_log_prob.shape)}, {tuple(advantages.shape)} and {tuple(response_mask.shape)}",
            expected="the same (rollouts, response_length) for all",
        )
    turns = segment_turns(response_mask)
    log_ratio = (log_prob.detach() - old_log_prob).masked_fill(response_mask == 0, 0.0)
    mean_BK = turns.sum_over_turns(log_ratio) / turns.tokens_BK.clamp(min=1)
    log_turn_ratio = turns.spread(mean_BK) + log_prob - log_prob.detach()
    ratio = log_turn_ratio.clamp(max=_LARGEST_LOG_RATIO).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.maximum(plain, clipped), clipped > plain
