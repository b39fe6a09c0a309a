"""Compute policy losses that treat a turn as one action."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verl_mtgrpo.credit.checks import check_number, refusal
from verl_mtgrpo.credit.turns import Turns, segment_turns
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
    turns = _checked_turns(log_prob, old_log_prob, advantages, response_mask)
    ratio = _turn_ratio(turns, log_prob, old_log_prob, response_mask, _LARGEST_LOG_RATIO)
    return _clipped_loss(advantages, ratio, clip_low, clip_high)


def turn_rema_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = 3.0,
    largest_log_ratio: float = 3.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ReMA's loss: one clipped term per turn, averaged over the turns of a rollout.

    With n_k the tokens of turn k, K the rollout's turns and A_k the mean advantage of the turn's tokens::

        ρ_k = exp(min(mean_t(log π_t - log π°_t), 3))
        L_k = max(-A_k ρ_k, -A_k clip(ρ_k, 1 - ε_low, 1 + ε_high))
        L_k = min(L_k, -3 A_k)   where A_k < 0 (dual clip)
        loss_t = L_k / (n_k K)   for the tokens t of turn k

    The sum over a rollout's tokens is the mean of its turns' terms, so it has to be aggregated as a sum over tokens and
    a mean over rollouts (verl's ``seq-mean-token-sum``), and then does not depend on how a batch is cut into
    micro-batches. A rollout without a generated token has the loss 0.

    One turn per rollout and no dual clip: verl's ``gspo`` with ``seq-mean-token-mean``, as long as a turn's tokens
    share one advantage. One token per turn: PPO, each rollout's mean.

    Source: ReMA, arXiv 2503.09501, and ziyuwan/ReMA-public@24b5b47, rema_trainer/ppo/core_algos.py, with its
    ``clip_mode=turn`` and ``agg_mode=trajectory``. Theirs averages over each micro-batch.

    Args:
        log_prob: ``(B, T)`` float, log π_t; the loss is differentiable in it.
        old_log_prob: ``(B, T)`` float, log π°_t.
        advantages: ``(B, T)`` float.
        response_mask: ``(B, T)``, 1 (True) at generated tokens, 0 at observations and padding. Turns are its runs
            of 1s.
        clip_low: ε_low ≥ 0.
        clip_high: ε_high ≥ 0.
        dual_clip: The bound on losses of negative advantages, > 1; None: no bound.
        largest_log_ratio: The mean log ratio of a turn is cut off above this; a turn beyond it has no gradient.

    Returns:
        ``(loss, clipped, bounded)``: ``(B, T)`` float, to be summed over the mask, and ``(B, T)`` bool twice: where the
        clipped form is the larger, and where the dual clip holds. Values where the mask is 0 are undefined.

    Raises:
        CreditInputError: shapes differ, the mask is not 0/1, a clip range is negative, or the dual clip is not above 1.
    """
    if dual_clip is not None and not dual_clip > 1:
        raise refusal("dual_clip", f"dual_clip is {dual_clip}", expected="a number above 1, or None")
    turns = _checked_turns(log_prob, old_log_prob, advantages, response_mask)
    ratio = _turn_ratio(turns, log_prob, old_log_prob, response_mask, largest_log_ratio)
    advantage = turns.spread(_turn_means(turns, advantages, response_mask))
    loss, clipped = _clipped_loss(advantage, ratio, clip_low, clip_high)
    bound = -(math.inf if dual_clip is None else dual_clip) * advantage
    bounded = (advantage < 0) & (bound < loss)
    share = turns.spread(1.0 / (turns.tokens_BK * turns.count_B[:, None]).clamp(min=1))
    return bound.where(bounded, loss) * share, clipped, bounded


def _clipped_loss(advantages: Tensor, ratio: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """Return PPO's clipped loss of each token, and True where the clipped form is the larger."""
    check_number("clip_low", clip_low)
    check_number("clip_high", clip_high)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.maximum(plain, clipped), clipped > plain


def _turn_ratio(turns: Turns, log_prob: Tensor, old_log_prob: Tensor, mask: Tensor, largest: float) -> Tensor:
    """Return the geometric mean of each turn's token ratios at every token of the turn, ``(B, T)``.

    Each token has the gradient of its own ``log_prob``, n_k times that of the mean. Undefined where the mask is 0.
    """
    mean_BK = _turn_means(turns, log_prob.detach() - old_log_prob, mask)
    return (turns.spread(mean_BK) + log_prob - log_prob.detach()).clamp(max=largest).exp()


def _turn_means(turns: Turns, values: Tensor, mask: Tensor) -> Tensor:
    return turns.sum_over_turns(values.masked_fill(mask == 0, 0.0)) / turns.tokens_BK.clamp(min=1)


def _checked_turns(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, response_mask: Tensor) -> Turns:
    shapes = {tuple(x.shape) for x in (log_prob, old_log_prob, advantages, response_mask)}
    if len(shapes) > 1:
        raise CreditInputError(
            f"log_prob, old_log_prob, advantages and response_mask have the shapes {tuple(log_prob.shape)}, "
            f"{tuple(old_log_prob.shape)}, {tuple(advantages.shape)} and {tuple(response_mask.shape)}",
            expected="the same (rollouts, response_length) for all",
        )
    return segment_turns(response_mask)
