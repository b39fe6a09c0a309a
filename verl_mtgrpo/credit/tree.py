"""Compare turns with their siblings: what the policy wrote at another time in the very same state.

In a tree of rollouts several turns are sampled from one state. Their returns differ only by what was decided there and
later, so their mean is the best baseline that a group can give: it is a function of the state, as a critic's value is.
``baseline="siblings"`` uses it leave-one-out, and then two more things have to be right for an unbiased gradient where
rollouts stop at different turns; both are averages that must follow the policy and not the number of rows:

- **what a turn is worth**: V(n) = R(n) + γ · mean of V over its children (:meth:`~.forest.Forest.value`). A mean over
  the rows through n would count a child that branched again several times, and one that stopped once;
- **how much a turn counts**: ``weight="policy"`` (:meth:`~.forest.Forest.weight`), for the same reason.

A turn without siblings is compared with the turns at its place in the prompt's other branches, as on chains.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verl_mtgrpo.credit.batch import Index, TurnBatch, discounted_sum, read_batch
from verl_mtgrpo.credit.checks import check_choice, check_finite, check_number, check_share
from verl_mtgrpo.credit.critic import td_errors, whitened
from verl_mtgrpo.credit.forest import WEIGHTS, Forest, NodePath, read_forest
from verl_mtgrpo.credit.groups import SCALES, mean_of_others, normalize_within_group
from verl_mtgrpo.credit.mt_grpo import MISSING_TURN
from verl_mtgrpo.credit.registry import register_estimator

BASELINES = ("paper", "siblings")
CRITIC_BASELINES = ("siblings", "critic")


@register_estimator(
    title="MT-GRPO on trees",
    words="MT-GRPO on a tree of rollouts: what a turn was paid is compared with its siblings, the turns that were "
    "sampled in the same state, and the outcome with all leaves of the prompt. A turn's advantage is its own term plus "
    "those of later turns plus the outcome's, times its weight (knob weight), because each rollout that has "
    "a turn counts it.",
)
def mt_grpo_tree(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    node_path: NodePath,
    *,
    turn_coef: float = 1.0,
    discount: float = 1.0,
    baseline: str = "paper",
    missing_turn: str = "zero",
    weight: str = "policy",
    scale: str = "std",
    epsilon: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Compute the paper's K-turn MT-GRPO on trees of rollouts.

    With R^I_n the reward of a turn (node) n that is not the last one of its row, and R^O_i the outcome of row i, whose
    nodes are n_1 .. n_K, ``baseline="paper"`` is::

        Â^I_n   = norm(R^I) over the siblings of n                                        (Eq. 11)
        Â^O     = norm(R^O) over the leaves of the prompt
        A_{i,k} = c Σ_{l=k}^{K-1} α^{l-k} Â^I_{n_l} + α^{K-k} Â^O_i                       (Eq. 10, 12)

    A node whose state has no other one is compared with the distinct nodes of turn k of the prompt, as ``mt_grpo`` does
    it. So on chains, and without paths, this is ``mt_grpo``, bit for bit: with two turns the paper's tree is a chain.

    **What Eq. 10-12 leave out.** Siblings share the turns before them, so the mean of Â^I_{n_l} over the siblings of
    n_l is 0 whatever turn k < l was: in the sum for turn k, the terms of later turns are only noise. A turn is credited
    with what later turns are paid on chains, and not on trees; only the outcome reaches back. Where what later turns
    earn depends on earlier ones, that is a bias (docs/trees.md has the numbers). ``baseline="siblings"`` does not have
    it. It compares, at each turn, everything that followed::

        I_n = R^I_n + α · mean of I over the children of n,      O_n = α · mean of O over the children, R^O at a leaf
        A_n = c (I_n - mean of I over the other siblings) + (O_n - the same of O)

    (divided by the siblings' standard deviations, one for each term, with ``scale="std"``). With ``scale="none"``,
    c = 1 and ``weight="policy"`` its gradient is unbiased for any number of turns.

    Source: Zeng et al., arXiv 2505.11821 v2, Appendix D and Figure 7: G actions are sampled at each state of the first
    K - 1 turns, and all rollouts have K turns. ``baseline="siblings"``, ``weight`` and the rule for turns without
    siblings are this package's.

    Args:
        token_level_rewards: ``(B, T)`` float; turn rewards anywhere inside their turn, the outcome in
            the last turn. Rewards outside every turn are ignored.
        response_mask: ``(B, T)``, 1 at generated tokens, 0 at observations and padding.
        index: ``(B,)`` group labels (verl's ``uid``).
        node_path: ``(B,)``, ids of the row's turns, separated by ``/``; None or empty: it shares no turn.
        turn_coef: c, weight of the turn-level term.
        discount: α ≥ 0, per turn.
        baseline: ``"paper"`` or ``"siblings"``.
        missing_turn: ``"zero"`` or ``"exclude"``, as for :func:`~.mt_grpo.mt_grpo`; for ``baseline="paper"``.
        weight: What a turn counts that several rows share (:meth:`~.forest.Forest.weight`): ``"policy"``, ``"rows"``
            or ``"once"``.
        scale: ``"std"`` or ``"none"``.
        epsilon: Added to the standard deviation.

    Returns:
        ``(advantages, returns)``, the same ``(B, T)`` float32, exactly 0 where the mask is 0.

    Raises:
        CreditInputError: as :func:`~.mt_grpo.mt_grpo`, or the paths make no tree (:func:`~.forest.read_forest`).
    """
    check_finite("turn_coef", turn_coef)
    check_number("discount", discount)
    check_number("epsilon", epsilon)
    check_choice("baseline", baseline, BASELINES)
    check_choice("missing_turn", missing_turn, MISSING_TURN)
    check_choice("weight", weight, WEIGHTS)
    check_choice("scale", scale, SCALES)
    batch = read_batch(token_level_rewards, response_mask, index)
    forest = read_forest(batch, node_path)
    last_BK = batch.turns.last_BK
    turn_N1 = forest.of_nodes(batch.intermediate_BK)
    if baseline == "paper":
        takes_part_N1 = forest.of_nodes(torch.ones_like(last_BK) if missing_turn == "zero" else ~last_BK)
        intermediate_BK = forest.to_rows(forest.norm(turn_N1, takes_part_N1, scale=scale, epsilon=epsilon))
        outcome_B1 = normalize_within_group(
            batch.outcome_B1, batch.nonempty_B1, batch.groups, scale=scale, epsilon=epsilon
        )
        advantage_BK = discounted_sum(turn_coef * intermediate_BK + outcome_B1 * last_BK, discount)
    else:
        outcome_N1 = forest.of_nodes(batch.reward_BK.masked_fill(~last_BK, 0.0))
        worth = [forest.value(own_N1, discount=discount) for own_N1 in (turn_N1, outcome_N1)]  # I and O
        terms = [forest.minus_others(worth_N1)[0] for worth_N1 in worth]
        if scale == "std":
            terms = [forest.divided_by_std(*pair, epsilon) for pair in zip(terms, worth, strict=True)]
        advantage_BK = forest.to_rows(turn_coef * terms[0] + terms[1])
    return batch.advantages(advantage_BK * forest.weight(weight))


@register_estimator(
    title="turn-level RLOO on trees",
    words="What was paid from this turn on, averaged over the branches that follow it, minus the mean of the same over "
    "the other turns that were sampled in the same state (leave-one-out); where there is no other, over the other "
    "turns at this place. It is multiplied by the turn's weight (knob weight), because each rollout that has "
    "a turn counts it.",
)
def turn_rloo_tree(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    node_path: NodePath,
    *,
    discount: float = 1.0,
    weight: str = "policy",
    scale: str = "none",
    epsilon: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Compute unbiased turn-level advantages on trees: the return of a turn minus the mean of its siblings'.

    For a turn (node) n::

        G_n = R_n + γ · mean of G over the children of n
        A_n = G_n - mean of G over the other siblings of n

    Without siblings, the mean is over the other nodes of this turn of the prompt, and without those it is that of the
    last-turn rewards of the rows that do not pass through n. All of these are decided without turn n, so the gradient
    is unbiased for every shape of tree in which it was decided before a turn how often to sample it.

    On chains, and without paths, this is :func:`~.return_to_go.turn_rloo`, bit for bit.

    Args:
        token_level_rewards: ``(B, T)`` float, as for :func:`mt_grpo_tree`.
        response_mask: ``(B, T)``, 1 at generated tokens, 0 at observations and padding.
        index: ``(B,)`` group labels (verl's ``uid``).
        node_path: ``(B,)``, as for :func:`mt_grpo_tree`.
        discount: γ ≥ 0, per turn.
        weight: As for :func:`mt_grpo_tree`; only ``"policy"`` is unbiased where rollouts stop at different turns.
        scale: ``"none"``, or ``"std"``: divide by the standard deviation of the nodes that are compared.
        epsilon: Added to the standard deviation.

    Returns:
        ``(advantages, returns)``, the same ``(B, T)`` float32, exactly 0 where the mask is 0.

    Raises:
        CreditInputError: as :func:`mt_grpo_tree`.
    """
    check_number("discount", discount)
    check_number("epsilon", epsilon)
    check_choice("weight", weight, WEIGHTS)
    check_choice("scale", scale, SCALES)
    batch = read_batch(token_level_rewards, response_mask, index)
    forest = read_forest(batch, node_path)
    return_N1 = _on_tree(forest, batch.reward_BK, discount)
    advantage_N1, nobody_N1 = forest.minus_others(return_N1)
    advantage_N1 = advantage_N1 - _outcome_of_others(batch, forest) * nobody_N1
    if scale == "std":
        advantage_N1 = forest.divided_by_std(advantage_N1, return_N1, epsilon)
    return batch.advantages(forest.to_rows(advantage_N1) * forest.weight(weight))


@register_estimator(
    title="turn-level GAE on trees",
    words="Generalised advantage estimation with a turn as one action, averaged over the branches that follow the "
    "turn. The baseline is the mean of the same over the turn's siblings; where it has none, what the critic expected "
    "at its first token. It is multiplied by the turn's weight (knob weight), because each rollout that has "
    "a turn counts it.",
    compares_rollouts=False,
)
def turn_gae_tree(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    values: Tensor,
    node_path: NodePath,
    *,
    discount: float = 1.0,
    lam: float = 1.0,
    baseline: str = "siblings",
    weight: str = "policy",
    whiten: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute GAE over the turns of a tree, with siblings as the baseline where there are any.

    With V_n the critic's value at the first token of turn (node) n, V' that at its children's (0 at a leaf)::

        δ_n = R_n + γ V' - V_n,     Â_n = δ_n + γλ · mean of Â over the children of n
        Q_n = Â_n + V_n                                           the λ-return, the critic's target
        A_n = Q_n - mean of Q over the other siblings of n        if it has siblings
              Â_n = Q_n - V_n                                     if not, or with baseline="critic"

    The siblings' mean needs no critic and errs in no direction; the critic is needed where a turn has none, and for
    λ < 1. With λ = 1 both baselines leave the gradient unbiased, whatever the critic says.

    On chains, and without paths, ``baseline="critic"`` is ``turn_gae``, bit for bit. With ``"siblings"``
    the first turns of a prompt's rollouts are compared with each other there.

    Args:
        token_level_rewards: ``(B, T)`` float, as for :func:`mt_grpo_tree`.
        response_mask: ``(B, T)``, 1 at generated tokens, 0 at observations and padding.
        index: ``(B,)`` group labels (verl's ``uid``).
        values: ``(B, T)`` float, ``values[t]`` of the history before token t, as verl has them.
        node_path: ``(B,)``, as for :func:`mt_grpo_tree`.
        discount: γ ≥ 0, per turn.
        lam: λ in [0, 1], per turn.
        baseline: ``"siblings"`` or ``"critic"``.
        weight: As for :func:`turn_rloo_tree`.
        whiten: Whiten the advantages over the nodes of the batch, each counted once.

    Returns:
        ``(advantages, returns)``, both ``(B, T)`` float32 and exactly 0 where the mask is 0.

    Raises:
        CreditInputError: as :func:`mt_grpo_tree`, or values are not finite.
    """
    check_number("discount", discount)
    check_share("lam", lam)
    check_choice("baseline", baseline, CRITIC_BASELINES)
    check_choice("weight", weight, WEIGHTS)
    batch = read_batch(token_level_rewards, response_mask, index, values)
    forest = read_forest(batch, node_path)
    value_BK = batch.turns.at_first(values.detach().float())
    advantage_N1 = _on_tree(forest, td_errors(batch.reward_BK, value_BK, discount), discount * lam)
    return_N1 = advantage_N1 + forest.of_nodes(value_BK)
    if baseline == "siblings":
        among_N1, _ = forest.minus_others(return_N1)
        advantage_N1 = among_N1.where(forest.siblings_N1 > 1, advantage_N1)
    advantage_BK = forest.to_rows(advantage_N1)
    if whiten:
        advantage_BK = forest.to_rows(forest.of_nodes(whitened(advantage_BK, forest.once_BK)))
    returns = batch.turns.spread(forest.to_rows(return_N1))
    return batch.turns.spread(advantage_BK * forest.weight(weight)), returns


def _on_tree(forest: Forest, own_BK: Tensor, discount: float) -> Tensor:
    """Return x(n) = own(n) + γ · mean of x over the children of n, ``(N, 1)``.

    Behind a row's last branching that is a sum along the row, and computed as it is on chains, to the last digit.
    """
    along_row_N1 = forest.of_nodes(discounted_sum(own_BK, discount))
    return along_row_N1.where(forest.rows_N1 == 1, forest.value(forest.of_nodes(own_BK), discount=discount))


def _outcome_of_others(batch: TurnBatch, forest: Forest) -> Tensor:
    """Return the mean last-turn reward of the rows of the prompt that do not pass through each node, ``(N, 1)``."""
    outcome_B1, shape = batch.outcome_B1, forest.node_BK.shape
    alone_N1 = forest.of_nodes(mean_of_others(outcome_B1, batch.nonempty_B1, batch.groups).expand(shape))
    sums_B2 = batch.groups.to_rows(batch.groups.sum(torch.cat([outcome_B1, batch.nonempty_B1.float()], dim=1)))
    total_N1, count_N1 = (forest.of_nodes(sums_B2[:, n : n + 1].expand(shape)) for n in range(2))
    mine_N1 = forest.mean_of_rows(outcome_B1.expand(shape)) * forest.rows_N1
    others_N1 = (count_N1 - forest.rows_N1).clamp(min=0)
    several_N1 = ((total_N1 - mine_N1) / others_N1.clamp(min=1)).masked_fill(others_N1 == 0, 0.0)
    return alone_N1.where(forest.rows_N1 == 1, several_N1)
