"""Measure where the credit of a batch went: per turn, and in how many groups there was none."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from verl_mtgrpo.credit.batch import Index, TurnBatch, read_batch
from verl_mtgrpo.credit.groups import ROUNDING
from verl_mtgrpo.credit.turns import Turns, segment_turns
from verl_mtgrpo.errors import CreditInputError


def measure_credit(
    token_level_rewards: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    index: Index,
    *,
    paid: Tensor,
    values: Tensor | None = None,
    returns: Tensor | None = None,
) -> dict[str, float]:
    """Measure everything about a training batch at once, so that turns and groups are found only once.

    Args:
        token_level_rewards: As for :func:`credit_metrics`.
        advantages: As for :func:`credit_metrics`.
        response_mask: As for :func:`credit_metrics`.
        index: As for :func:`credit_metrics`.
        paid: As for :func:`credit_health`.
        values: ``(B, T)``, the values of a critic; None: there is no critic.
        returns: ``(B, T)``, its targets.

    Returns:
        The numbers of :func:`credit_metrics` and :func:`credit_health`, and, with a critic,
        :func:`turn_explained_variance` as ``critic/turn_explained_variance``.

    Raises:
        CreditInputError: as :func:`credit_metrics`.
    """
    batch = _read(token_level_rewards, advantages, response_mask, index)
    pay = batch if paid is token_level_rewards else _paid(batch, paid)
    named = {**_where_it_went(batch, pay, advantages), **_health(pay, advantages, response_mask)}
    if values is not None and returns is not None:
        explained = _explained(batch.turns, values, returns)
        named |= {} if explained is None else {"critic/turn_explained_variance": explained}
    return named


def credit_metrics(
    token_level_rewards: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    index: Index,
    *,
    paid: Tensor | None = None,
) -> dict[str, float]:
    """Measure where credit went in a training batch, as named numbers for a logger.

    ``turn/<k>/rollouts``: the number of rollouts that have a turn k (k from 1). The next three are over these rollouts.
    ``turn/<k>/advantage_mean`` and ``…_std``: of the mean advantage over the turn's tokens; std is the unbiased one, 0
    for one rollout. ``turn/<k>/reward_total``: mean of R_{i,k} as the estimator saw it, with the KL penalty if that is
    in the reward. ``turn/<k>/zero_variance``: of the groups with two or more rollouts at turn k, the share whose
    rollouts were all paid the same there, so that there is nothing to learn from at this turn.
    ``outcome/zero_variance``: the same for the last turn. ``turn/<k>/sign_conflict``: of the rollouts that have a turn
    k before their last one and a term of their own there that is not zero, the share whose mean advantage over the
    turn's tokens has the opposite sign. The term is what turn k was paid minus the mean of the same over the rollouts
    of the group that have a turn k, where a rollout that ended with turn k counts as 0, whichever the estimator is;
    what is 0 up to :data:`~verl_mtgrpo.credit.groups.ROUNDING` has no sign.
    These three shares look at ``paid``, because a KL penalty in the reward makes rollouts differ that were paid the
    same; if there is no such group or rollout, they are left out.

    Args:
        token_level_rewards: ``(B, T)``, as given to the estimator.
        advantages: ``(B, T)``, as returned by the estimator.
        response_mask: ``(B, T)``, 1 at generated tokens. Rows without any are not counted.
        index: One label per row; rows with the same label are a group.
        paid: ``(B, T)``, what the reward function paid; None: ``token_level_rewards``, which has no KL penalty then.

    Raises:
        CreditInputError: shapes differ, or as :func:`~verl_mtgrpo.credit.batch.read_batch`.
    """
    batch = _read(token_level_rewards, advantages, response_mask, index)
    return _where_it_went(batch, batch if paid is None else _paid(batch, paid), advantages)


def _where_it_went(batch: TurnBatch, pay: TurnBatch, advantages: Tensor) -> dict[str, float]:
    alive_BK = batch.turns.alive_BK
    advantage_BK = batch.turns.sum_over_turns(advantages) / batch.turns.tokens_BK.clamp(min=1)
    count_K = alive_BK.sum(0)
    mean_K = advantage_BK.sum(0) / count_K
    deviation_BK = (advantage_BK - mean_K).masked_fill(~alive_BK, 0.0)
    columns = {
        "rollouts": count_K,
        "reward_total": batch.reward_BK.sum(0) / count_K,
        "advantage_mean": mean_K,
        "advantage_std": (deviation_BK.square().sum(0) / (count_K - 1).clamp(min=1)).sqrt(),
        "zero_variance": zero_variance_share(pay, pay.reward_BK, alive_BK),
        "sign_conflict": _sign_conflict(pay, advantage_BK),
    }
    outcome = zero_variance_share(pay, pay.outcome_B1, batch.nonempty_B1)
    table = torch.stack([*(column.double() for column in columns.values())]).tolist()  # one trip to the host
    named = {
        f"turn/{k}/{name}": value
        for name, row in zip(columns, table, strict=True)
        for k, value in enumerate(row, start=1)
    }
    named["outcome/zero_variance"] = float(outcome)
    return {name: value for name, value in named.items() if value == value}


def _sign_conflict(pay: TurnBatch, advantage_BK: Tensor) -> Tensor:
    """Return ``turn/<k>/sign_conflict`` of :func:`credit_metrics` for every turn; NaN where no rollout has a term."""
    alive_BK, groups = pay.turns.alive_BK, pay.groups
    paid_BK = pay.intermediate_BK.double()
    low_GK, high_GK = _extremes(pay, paid_BK, alive_BK)
    # As differences from the lowest, so that the term of equal entries, and of a single one, is exactly 0.
    above_BK = (paid_BK - groups.to_rows(low_GK)).masked_fill(~alive_BK, 0.0)
    term_BK = above_BK - groups.to_rows(groups.sum(above_BK) / groups.sum(alive_BK.double()))
    counts_BK = alive_BK & ~pay.turns.last_BK & (term_BK.abs() > ROUNDING * groups.to_rows(high_GK - low_GK))
    opposite_BK = counts_BK & (advantage_BK * term_BK.sign() < -ROUNDING)
    return opposite_BK.sum(0) / counts_BK.sum(0)


def credit_health(paid: Tensor, advantages: Tensor, response_mask: Tensor, index: Index) -> dict[str, float]:
    """Measure the numbers that :mod:`.guards` looks at.

    ``guard/turn_rewarded``: share of the rollouts that earned something before their last turn.
    ``guard/paid``: mean over the rollouts of all that they earned.
    ``guard/zero_variance_groups``: of the groups of two or more rollouts, the share whose rollouts all have the same
    number of turns and earned the same at each; left out if there is no such group.
    ``guard/bad_advantage_tokens``: number of generated tokens whose advantage is NaN or infinite.
    ``guard/masked_advantage_tokens``: number of tokens that were not generated but have an advantage.

    Args:
        paid: ``(B, T)``, what the reward function paid, without a KL penalty. With one, every rollout would seem to
            earn something, and no two the same.
        advantages: ``(B, T)``, as returned by the estimator.
        response_mask: ``(B, T)``, 1 at generated tokens. Rows without any are not counted.
        index: One label per row; rows with the same label are a group.

    Raises:
        CreditInputError: as :func:`~verl_mtgrpo.credit.batch.read_batch`.
    """
    return _health(read_batch(paid, response_mask, index), advantages, response_mask)


def _health(batch: TurnBatch, advantages: Tensor, response_mask: Tensor) -> dict[str, float]:
    rollouts = batch.nonempty_B1.sum().clamp(min=1)
    rewarded = (batch.intermediate_BK != 0).any(dim=1).sum() / rollouts
    paid = batch.reward_BK.sum() / rollouts
    # A turn that does not exist counts as 0 here, like one that earned 0; the number of turns tells them apart.
    earned_BX = torch.cat([batch.reward_BK, batch.turns.count_B[:, None].to(batch.reward_BK.dtype)], dim=1)
    equal_GX, several_G1 = _all_equal(batch, earned_BX, batch.nonempty_B1)
    equal = equal_GX.all(dim=1).sum() / several_G1.sum()
    generated = response_mask != 0
    finite = (advantages > -torch.inf).logical_and_(advantages < torch.inf)  # False for NaN
    bad = torch.count_nonzero(finite < generated)  # which is: not finite, and generated
    masked = torch.count_nonzero((advantages != 0) > generated)
    names = ("turn_rewarded", "paid", "zero_variance_groups", "bad_advantage_tokens", "masked_advantage_tokens")
    values = torch.stack(
        [one.double() for one in (rewarded, paid, equal, bad, masked)]
    ).tolist()  # one trip to the host
    return {f"guard/{name}": value for name, value in zip(names, values, strict=True) if value == value}


def turn_explained_variance(values: Tensor, returns: Tensor, response_mask: Tensor) -> float | None:
    """Compute 1 - Var(target - V) / Var(target) over the turns of a batch, both read at each turn's first token.

    The value there is that of the state in which the turn is written (see :mod:`~verl_mtgrpo.credit.critic`). 1: the
    critic predicts exactly what turns earn; 0: it is no better than the mean of the targets; below 0: it is worse.

    Args:
        values: ``(B, T)``, the values of the critic before the update.
        returns: ``(B, T)``, its targets.
        response_mask: ``(B, T)``, 1 at generated tokens.

    Returns:
        None for fewer than two turns, or if all targets are equal.
    """
    return _explained(segment_turns(response_mask), values, returns)


def _explained(turns: Turns, values: Tensor, returns: Tensor) -> float | None:
    target, value = (turns.at_first(tokens.detach())[turns.alive_BK].double() for tokens in (returns, values))
    if len(target) < 2 or float(target.var()) == 0.0:
        return None
    return 1.0 - float((target - value).var() / target.var())


def _read(token_level_rewards: Tensor, advantages: Tensor, response_mask: Tensor, index: Index) -> TurnBatch:
    if advantages.shape != token_level_rewards.shape:
        raise CreditInputError(
            f"advantages has shape {tuple(advantages.shape)}, token_level_rewards {tuple(token_level_rewards.shape)}",
            expected="the same for both",
        )
    return read_batch(token_level_rewards, response_mask, index)


def _paid(batch: TurnBatch, paid: Tensor) -> TurnBatch:
    """Return the batch with the rewards that were paid in place of those that the estimator saw."""
    return replace(batch, reward_BK=batch.turns.sum_over_turns(paid))


def zero_variance_share(batch: TurnBatch, values_BK: Tensor, valid_BK: Tensor) -> Tensor:
    """Return, of the groups with two or more valid entries, the share whose entries are all equal; NaN without any.

    The share is per column. Equal means exactly equal: to an estimator that divides by std, a difference in the last
    digit is a signal.
    """
    equal_GK, several_GK = _all_equal(batch, values_BK, valid_BK)
    return equal_GK.sum(0) / several_GK.sum(0)


def _all_equal(batch: TurnBatch, values_BK: Tensor, valid_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Return, per group and column, if all of two or more valid entries are equal, and if there are two or more.

    ``valid_BK`` may have one column that stands for all; the second result has one column then, too.
    """
    low_GK, high_GK = _extremes(batch, values_BK, valid_BK)
    several_GK = batch.groups.sum(valid_BK.float()) >= 2
    return several_GK & (low_GK == high_GK), several_GK


def _extremes(batch: TurnBatch, values_BK: Tensor, valid_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest valid entry of each group and column; inf and -inf without any."""
    low_GK = batch.groups.minimum(values_BK.masked_fill(~valid_BK, torch.inf))
    return low_GK, -batch.groups.minimum((-values_BK).masked_fill(~valid_BK, torch.inf))
