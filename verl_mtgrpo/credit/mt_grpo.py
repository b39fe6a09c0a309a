"""Compute MT-GRPO: one advantage per turn from turn rewards and outcome rewards."""

from __future__ import annotations

from torch import Tensor

from verl_mtgrpo.credit.batch import Index, discounted_sum, read_batch
from verl_mtgrpo.credit.checks import check_choice, check_finite, check_number
from verl_mtgrpo.credit.groups import SCALES, normalize_within_group
from verl_mtgrpo.credit.registry import register_estimator

MISSING_TURN = ("zero", "exclude")


@register_estimator(
    title="MT-GRPO",
    words="MT-GRPO: what a turn was paid is compared with the rollouts of the same prompt that got as far (minus their "
    "mean, divided by their standard deviation), and the outcome with all of them. A turn's advantage is its own term "
    "plus those of later turns plus the outcome's.",
)
def mt_grpo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
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

    Two turns: A_1 = c Â^I + α Â^O and A_2 = Â^O, the paper's two-turn form (Eq. 5, 6) with c = 1: its
    coefficient α is in [0, 1] and sits on the outcome. No turn rewards and α = 1: verl's own ``grpo``.
    norm is :func:`normalize_within_group`; the paper has no epsilon.

    **K > 2 is this package's extension to chains.** The paper's K-turn form (Eq. 10-12) has the same sum, but its
    Â^I_k compares G actions sampled from the *same state*: a tree of G^{K-1} rollouts, all with K turns. Here the
    k-th turns of different chains are compared, which is the same only for k = 1. :func:`~.tree.mt_grpo_tree` is the
    paper's form.

    A rollout whose last turn is k has no R^I_{i,k}. ``missing_turn="zero"``: it takes part with 0 and
    also receives the centred value, so that not calling the tool costs what calling it earns. ``"exclude"``:
    only rollouts with K_i > k take part and Â^I_{i,K_i} = 0.

    If rollouts differ in their number of turns, the number of baselines in the sum over l depends on where the
    rollout stopped, which biases the gradient (verl RFC #7244); ``turn_rloo`` does not have this bias.

    Source: Zeng et al., *Reinforcing Multi-Turn Reasoning in LLM Agents via …*, arXiv 2505.11821: v1 (May 2025,
    "Turn-Level Credit Assignment"), v2 (October 2025, "Turn-Level Reward Design"; its equations are cited here), v3
    (August 2026, "Fine-Grained Reward Structure and Credit Assignment"). The first version's code puts its coefficient
    on the turn term, uses epsilon 1e-4 and has another rule for rollouts without a tool call: ``mt_grpo_v1``.
    ``missing_turn`` is this package's.

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
    check_finite("turn_coef", turn_coef)
    check_number("discount", discount)
    check_number("epsilon", epsilon)
    check_choice("missing_turn", missing_turn, MISSING_TURN)
    check_choice("scale", scale, SCALES)
    batch = read_batch(token_level_rewards, response_mask, index)
    alive_BK, last_BK = batch.turns.alive_BK, batch.turns.last_BK
    takes_part_BK = alive_BK if missing_turn == "zero" else alive_BK & ~last_BK

    def norm(values: Tensor, valid: Tensor) -> Tensor:
        return normalize_within_group(values, valid, batch.groups, scale=scale, epsilon=epsilon)

    intermediate_BK = norm(batch.intermediate_BK, takes_part_BK)  # Â^I
    outcome_B1 = norm(batch.outcome_B1, batch.nonempty_B1)  # Â^O
    # Putting Â^O at the last turn makes both terms of the equation one discounted sum.
    advantage_BK = discounted_sum(turn_coef * intermediate_BK + outcome_B1 * last_BK, discount)
    return batch.advantages(advantage_BK)


@register_estimator(
    title="MT-GRPO (first version)",
    words="MT-GRPO as in the code of the paper's first version: every turn gets the outcome, normalised over the "
    "group. The first turn also gets what the turns before the last were paid, normalised the same way. A rollout of "
    "one turn gets its normalised total.",
    divides_by_group_std=True,
)
def mt_grpo_v1(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    *,
    turn_coef: float = 1.0,
    epsilon: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Compute MT-GRPO advantages exactly as the code of the paper's first version does.

    With R^T_i = Σ_{k<K_i} R_{i,k} and R^O_i = R_{i,K_i}, each normalised over the rollouts of the group::

        K_i ≥ 2:  A_{i,1} = Â^O_i + c Â^T_i,   A_{i,k} = Â^O_i  for k = 2..K_i
        K_i = 1:  A_{i,1} = norm(R^T + R^O)_i

    where Â = norm(·) is (x - mean) / (std_{N-1} + epsilon). A rollout without a tool call takes part in
    norm(R^T) with R^T = 0, and gets the normalised *total* reward, which is not in the paper's formula.
    Only the first turn gets turn-level credit, whichever turn earned it: use ``mt_grpo`` for three or more
    turns. If every rollout has two turns, it is ``mt_grpo`` up to epsilon.

    Source: SiliangZeng/Multi-Turn-RL-Agent @7dbdd08, verifiers/trainers/mt_grpo_env_trainer.py, lines
    83-96 and 178-219 (arXiv 2505.11821 v1). That code takes the tokens before the first tool result as turn
    1; here turn 1 is the first run of 1s in the mask, which is the same tokens. It has no rule for a group
    of one; here such a group has mean 0 and std 1, as in verl's ``grpo``.

    Args:
        token_level_rewards: ``(B, T)`` float, as for :func:`mt_grpo`.
        response_mask: ``(B, T)``, 1 at generated tokens, 0 at observations and padding.
        index: ``(B,)`` group labels (verl's ``uid``).
        turn_coef: c = 1; the paper's code has its coefficient here, on the turn term, the paper on the outcome.
        epsilon: Added to the standard deviation.

    Returns:
        ``(advantages, returns)``, the same ``(B, T)`` float32, exactly 0 where the mask is 0.

    Raises:
        CreditInputError: as :func:`mt_grpo`.
    """
    check_finite("turn_coef", turn_coef)
    check_number("epsilon", epsilon)
    batch = read_batch(token_level_rewards, response_mask, index)
    turns = batch.turns

    def norm(values_B1: Tensor) -> Tensor:
        return normalize_within_group(values_B1, batch.nonempty_B1, batch.groups, scale="std", epsilon=epsilon)

    turn_reward_B1 = batch.intermediate_BK.sum(dim=1, keepdim=True)  # R^T
    turn_B1, outcome_B1 = norm(turn_reward_B1), norm(batch.outcome_B1)
    total_B1 = norm(turn_reward_B1 + batch.outcome_B1)
    advantage_BK = outcome_B1.repeat(1, turns.max_turns)
    advantage_BK[:, :1] += turn_coef * turn_B1
    return batch.advantages(total_B1.where(turns.count_B[:, None] == 1, advantage_BK))
