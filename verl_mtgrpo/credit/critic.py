"""Credit turns with the help of a critic: generalised advantage estimation (GAE) over turns.

**Which value is V_k.** verl gives a critic's values shifted by one: ``values[t]`` was read at the token *before*
response token t, so it is the value of the history in which token t is chosen. At the first token of a turn that is
the history in which the turn is written: prompt, earlier turns and every observation, nothing of the turn itself.
This is the state of the turn-level decision process and the only value of the turn that may serve as a baseline for
all of its tokens: a value read later has seen part of the action, and subtracting it from the earlier tokens'
credit would bias the gradient.

**Where the critic learns.** verl trains it on every generated token, towards ``returns``. In ``turn_gae`` all tokens of
a turn have one target, the turn's λ-return. That is a correct regression target for each of them: the value of a token
is the expected sum of what is still to come, given everything written before it. Inside a turn nothing is paid and
nothing is discounted, so that sum is the same from the turn's first token to its last. (A KL penalty in the reward is
paid inside a turn; the target then includes the penalties of the whole turn.) A regression on it gives
E[λ-return | prefix] at every prefix; at the first token, the only one whose value is used, that is V_k. The other
tokens share the critic's weights with the first, and their targets pull in the same direction.

Targets at first tokens alone would be just as correct, and useless: with ``returns = values`` elsewhere, the other
tokens (99 of 100 in a turn of 100) hold the critic at its old values from the second mini-batch on. After 39 steps of
16 mini-batches it then explains 0.50 of the variance at first tokens, where this one explains 0.97
(``tests/regressions``). Targets on all tokens have a price: in the critic's loss, verl's ``token-mean`` weighs a turn
by its length, as in every token-level critic. In the advantages it never does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from verl_mtgrpo.credit.batch import Index, discounted_sum, read_batch
from verl_mtgrpo.credit.checks import check_number, check_share
from verl_mtgrpo.credit.registry import register_estimator


@register_estimator(
    title="turn-level GAE",
    words="Generalised advantage estimation with a turn as one action: what was paid plus what the critic expects "
    "next, minus what it expected at the turn's first token, whitened over the turns of the batch.",
)
def turn_gae(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    values: Tensor,
    *,
    discount: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute GAE with a turn as one action: one advantage per turn.

    With turns k = 1..K_i, R_{i,k} the summed reward of a turn and V_{i,k} the value at its first token
    (V_{i,K_i+1} = 0)::

        δ_{i,k} = R_{i,k} + γ V_{i,k+1} - V_{i,k}
        A_{i,k} = Σ_{l≥k} (γλ)^{l-k} δ_{i,l}
        return of turn k = A_{i,k} + V_{i,k}       the critic's target at all of the turn's tokens

    γ and λ count turns, not tokens: a long answer is not discounted more than a short one, and tool results
    cost nothing. Then advantages are whitened as in verl's ``gae`` (mean 0, std 1 over the batch), but over turns,
    which are the actions here. Whitened over tokens, as verl does it, long turns would shift the mean by a constant,
    which causes no bias but adds noise (0.6 of |g*|² for groups of 2 in the laboratory's "unequal lengths").
    ``whiten=False`` turns whitening off.

    Zero values, γ = λ = 1: the return-to-go. One-token turns: verl's own ``gae``. γ = λ = 1: V is only a
    baseline, and the gradient is unbiased whatever the critic says; λ < 1 gives that up for a lower variance.

    Source: GAE, Schulman et al., arXiv 1506.02438, eq. 16, over turns as in Turn-PPO, arXiv 2512.17008 (γ .99, λ .9
    there, from a secondary source). Turns come from the mask, so one whose reward is 0 is still a turn.

    Args:
        token_level_rewards: ``(B, T)`` float; turn rewards anywhere inside their turn, the outcome in
            the last turn. Rewards outside every turn are ignored.
        response_mask: ``(B, T)``, 1 at generated tokens, 0 at observations and padding.
        index: ``(B,)`` group labels (verl's ``uid``); not used, because the critic is the baseline.
        values: ``(B, T)`` float, ``values[t]`` of the history before token t, as verl has them. Read at generated
            tokens only.
        discount: γ ≥ 0, per turn.
        lam: λ in [0, 1], per turn.
        whiten: Whiten the advantages over the turns of the batch.

    Returns:
        ``(advantages, returns)``, both ``(B, T)`` float32 and exactly 0 where the mask is 0.

    Raises:
        CreditInputError: shapes differ, rewards or values are not finite, the mask is not 0/1, or a setting
            is out of range.
    """
    check_number("discount", discount)
    check_share("lam", lam)
    batch = read_batch(token_level_rewards, response_mask, index, values)
    value_BK = batch.turns.at_first(values.detach().float())
    advantage_BK = _gae(batch.reward_BK, value_BK, discount, lam)
    returns = batch.turns.spread(advantage_BK + value_BK)
    if whiten:
        advantage_BK = whitened(advantage_BK, batch.turns.alive_BK)
    return batch.turns.spread(advantage_BK), returns


@register_estimator(
    title="bi-level GAE",
    words="Generalised advantage estimation over turns, then over the tokens inside each turn, with the critic's "
    "values, whitened over the tokens of the batch. The mean over the turn's tokens is shown.",
)
def bilevel_gae(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    values: Tensor,
    *,
    discount: float = 1.0,
    token_discount: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute GAE on two levels: over turns with γ_H, then over the tokens inside each turn with γ.

    With b_k and e_k the first and last token of turn k, V_t = ``values[t]``, and S_k = Σ_{b_k≤t<e_k} r_t what is paid
    in a turn before its last token (V_{e_{K+1}} = S_{K+1} = 0)::

        turns    δ_k = r_{e_k} + γ_H (S_{k+1} + V_{e_{k+1}}) - V_{e_k}
                 Â_k = Σ_{l≥k} (γ_H λ)^{l-k} δ_l
        tokens   δ_{e_k} = Â_k,   δ_t = r_t + γ V_{t+1} - V_t        for b_k ≤ t < e_k
                 A_t = Σ_{t≤s≤e_k} (γλ)^{s-t} δ_s
        return of token t = A_t + V_t

    The turn level hands each turn its λ-return Â_k + V_{e_k} as if paid at its last token; inside the turn this is
    plain GAE. Every token has its own advantage and its own target: the critic's value is used at all tokens, and its
    loss is taken at all tokens.

    One turn: verl's own ``gae`` with γ and λ. γ_H = γ = λ = 1, or one-token turns and γ_H = γ: verl's ``gae`` too.
    γ_H = γ = λ = 1: unbiased whatever the critic says.

    Source: RAGEN's ``bi_level_gae``, arXiv 2504.20073, ragen/trainer/core_algos.py (γ_H = 0.95 there). Deliberate
    differences: turns come from the mask, whereas RAGEN takes every nonzero reward for the end of a turn and so merges
    a turn that earned 0 with the next one; and there is S_k, which is 0 if all rewards are on last tokens, as RAGEN
    demands.

    Args:
        token_level_rewards: ``(B, T)`` float, as for :func:`turn_gae`; a reward before the last token of its turn
            (verl's KL penalty) is credited to the tokens up to it.
        response_mask: ``(B, T)``, 1 at generated tokens, 0 at observations and padding.
        index: ``(B,)`` group labels, not used.
        values: ``(B, T)`` float, as for :func:`turn_gae`.
        discount: γ_H ≥ 0, per turn.
        token_discount: γ ≥ 0, per token inside a turn.
        lam: λ in [0, 1], at both levels.
        whiten: Whiten the advantages over the generated tokens of the batch, as verl's ``gae`` does.

    Returns:
        ``(advantages, returns)``, both ``(B, T)`` float32 and exactly 0 where the mask is 0.

    Raises:
        CreditInputError: as :func:`turn_gae`.
    """
    check_number("discount", discount)
    check_number("token_discount", token_discount)
    check_share("lam", lam)
    batch = read_batch(token_level_rewards, response_mask, index, values)
    turns, mask_BT = batch.turns, response_mask != 0
    values = values.detach().float().masked_fill(~mask_BT, 0.0)
    rewards = token_level_rewards.detach().float().masked_fill(~mask_BT, 0.0)
    end_reward_BK = turns.at_last(rewards)
    to_pay_BK = batch.reward_BK - end_reward_BK  # S_k
    value_BK = turns.at_last(values)
    advantage_BK = _gae(end_reward_BK + discount * _next(to_pay_BK), value_BK, discount, lam)
    goes_on_BT = mask_BT & _next(mask_BT)  # the turn has another token
    delta_BT = (rewards + token_discount * _next(values) - values).where(goes_on_BT, turns.spread(advantage_BK))
    advantages = _decayed_sum(delta_BT, token_discount * lam, goes_on_BT)
    returns = advantages + values
    return (whitened(advantages, mask_BT, turns.sum_over_turns) if whiten else advantages), returns


def _gae(reward_BK: Tensor, value_BK: Tensor, discount: float, lam: float) -> Tensor:
    """Return Σ_{l≥k} (γλ)^{l-k} (R_l + γ V_{l+1} - V_l), ``(B, K)``; both tables are 0 where there is no turn."""
    return discounted_sum(td_errors(reward_BK, value_BK, discount), discount * lam)


def td_errors(reward_BK: Tensor, value_BK: Tensor, discount: float) -> Tensor:
    """Return R_k + γ V_{k+1} - V_k, ``(B, K)``; both tables are 0 where there is no turn."""
    return reward_BK + discount * _next(value_BK) - value_BK


def _next(values: Tensor) -> Tensor:
    """Return x_{·,n+1} in place of x_{·,n}, and 0 in the last column."""
    return torch.nn.functional.pad(values[:, 1:], (0, 1)) if values.shape[1] else values


def _decayed_sum(delta_BT: Tensor, decay: float, goes_on_BT: Tensor) -> Tensor:
    """Compute A_t = δ_t + decay A_{t+1} if the turn continues, else δ_t, one contiguous column at a time."""
    sum_TB, decay_TB = delta_BT.T.contiguous(), decay * goes_on_BT.T.contiguous()
    for t in range(len(sum_TB) - 2, -1, -1):
        sum_TB[t].addcmul_(decay_TB[t], sum_TB[t + 1])
    return sum_TB.T.contiguous()


def whitened(values: Tensor, valid: Tensor, partial_sums: Callable[[Tensor], Tensor] = torch.clone) -> Tensor:
    """Compute (A - mean) / √(var_{N-1} + 1e-8) over the valid entries, as verl's ``gae`` does; 0 elsewhere.

    Equal values give exactly 0, and so does a batch with one entry, where verl raises. ``partial_sums`` (of turns) are
    added up in double precision, so that padding does not change the last digit.
    """
    if not values.numel():
        return values
    count = valid.sum().clamp(min=1)
    # Subtract the minimum first, so that equal values centre to exactly 0.
    centred = (values - values.masked_fill(~valid, torch.inf).amin()).masked_fill_(~valid, 0.0)
    mean = (partial_sums(centred).double().sum() / count).float()
    centred = centred.sub_(mean).masked_fill_(~valid, 0.0)
    variance = (partial_sums(centred.square()).double().sum() / (count - 1).clamp(min=1)).float()
    return centred.mul_((variance + 1e-8).rsqrt())
