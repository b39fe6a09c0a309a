"""Credit from outcomes on trees: ARPO, Tree-GRPO and AT2PO, which compare leaves and look at nothing else.

A leaf's score is all that its row was paid. Turn rewards count towards it, but none of the three compares them; for
that there is :func:`~.tree.mt_grpo_tree`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verl_mtgrpo.credit.batch import Index, TurnBatch, read_batch
from verl_mtgrpo.credit.checks import check_choice, check_number, refusal
from verl_mtgrpo.credit.forest import SHARES, Forest, NodePath, read_forest
from verl_mtgrpo.credit.groups import SCALES, Groups, divided, group_rows, normalize_within_group
from verl_mtgrpo.credit.registry import register_estimator

NODE_VALUES = ("child_softmax", "child_mean", "leaf_mean")
MODES = ("node_value", "diff_parent", "diff_global", "diff_localglobal")


@register_estimator(
    title="ARPO",
    words="ARPO: all that the rollout was paid, minus the mean over the rollouts of the prompt, divided by their "
    "standard deviation, as in GRPO. Rollouts that branched off from each other share tokens.",
    divides_by_group_std=True,
)
def arpo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    node_path: NodePath,
    *,
    attribution: str = "soft",
    epsilon: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Compute ARPO's advantages: GRPO over the leaves, and a rule for the turns that leaves share.

    With d_n the number of rows through a turn (node) n::

        Â_i = (r_i - mean r) / (std_{N-1} r + epsilon)      over the leaves i of the prompt, r_i = Σ_k R_{i,k}
        soft  A_{i,k} = Â_i
        hard  A_{i,k} = mean of Â over the rows through node n_{i,k}
        once  A_{i,k} = that mean / d

    Soft is what ARPO's code trains, plain GRPO on the rows of the tree; hard is the paper's other form. A loss that is
    linear in the advantages, as PPO's is at ratio 1, has the same gradient with both if it weighs tokens alike
    (``token-mean``): d rows with their mean are d rows with their own. It is another one with
    ``seq-mean-token-mean``, where a shared token weighs more in a short row. Once is this package's: a shared turn
    trains as if it were there once.

    Without shared turns all three are verl's ``grpo``. Source: arXiv 2507.19849; code RUC-NLPIR/ARPO @a95cd08, which
    has soft only.

    Args:
        token_level_rewards: ``(B, T)`` float. Rewards outside every turn are ignored.
        response_mask: ``(B, T)``, 1 at generated tokens, 0 at observations and padding.
        index: ``(B,)`` group labels (verl's ``uid``).
        node_path: ``(B,)``, ids of the row's turns, separated by ``/``; None or empty: it shares no turn.
        attribution: ``"soft"``, ``"hard"`` or ``"once"``.
        epsilon: Added to the standard deviation.

    Returns:
        ``(advantages, returns)``, the same ``(B, T)`` float32, exactly 0 where the mask is 0.

    Raises:
        CreditInputError: shapes differ, rewards are not finite, the mask is not 0/1, a setting is out of range, or the
            paths make no tree (:func:`~.forest.read_forest`).
    """
    check_choice("attribution", attribution, SHARES)
    check_number("epsilon", epsilon)
    batch, forest = _read(token_level_rewards, response_mask, index, node_path)
    score_B1 = _score(token_level_rewards, response_mask)
    z_B1 = _norm(score_B1, batch.nonempty_B1, batch.groups, epsilon)
    return batch.advantages(forest.share(z_B1 * batch.turns.alive_BK, attribution))


@register_estimator(
    title="Tree-GRPO",
    words="Tree-GRPO: all that the rollout was paid, normalised over the rollouts of the prompt, plus the same "
    "normalised over the rollouts of its tree, which are those with the same first turn.",
)
def tree_grpo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    node_path: NodePath,
    *,
    scale: str = "std",
    epsilon: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Compute Tree-GRPO's advantages: normalised over the prompt, plus normalised over the tree.

    ::

        A_i = norm(r) over the rows of the prompt + norm(r) over the rows of i's tree,   r_i = Σ_k R_{i,k}

    A tree is what grew from one first turn: the rows whose paths begin with the same id. A row alone in its tree has
    nobody to be compared with there, and its second term is 0. Without shared turns this is verl's ``grpo``.

    Source: arXiv 2509.21240; code AMAP-ML/Tree-GRPO @90b1709, verl/trainer/ppo/ray_trainer_ts.py 164-189. The rule for
    trees of one leaf is this package's.

    Args:
        token_level_rewards: ``(B, T)`` float, as for :func:`arpo`.
        response_mask: ``(B, T)``, 1 at generated tokens, 0 at observations and padding.
        index: ``(B,)`` group labels (verl's ``uid``).
        node_path: ``(B,)``, as for :func:`arpo`.
        scale: ``"std"`` or ``"none"`` (only centre).
        epsilon: Added to the standard deviation.

    Returns:
        ``(advantages, returns)``, the same ``(B, T)`` float32, exactly 0 where the mask is 0.

    Raises:
        CreditInputError: as :func:`arpo`.
    """
    check_choice("scale", scale, SCALES)
    check_number("epsilon", epsilon)
    batch, forest = _read(token_level_rewards, response_mask, index, node_path)
    score_B1 = batch.reward_BK.sum(dim=1, keepdim=True)
    trees = _trees(forest)
    of_prompt_B1, of_tree_B1 = (
        normalize_within_group(score_B1, batch.nonempty_B1, groups, scale=scale, epsilon=epsilon)
        for groups in (batch.groups, trees)
    )
    alone_B1 = trees.to_rows(trees.length_G[:, None]) == 1
    z_B1 = of_prompt_B1 + of_tree_B1.masked_fill(alone_B1, 0.0)
    return batch.advantages(z_B1 * batch.turns.alive_BK)


@register_estimator(
    title="AT2PO",
    words="AT2PO: the value of the turn, which is an average over the rollouts that follow it of all that they were "
    "paid, normalised over the rollouts of the prompt.",
    divides_by_group_std=True,
)
def at2po(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    node_path: NodePath,
    old_log_probs: Tensor,
    *,
    node_value: str = "child_softmax",
    mode: str = "node_value",
    epsilon: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Compute AT2PO's advantages from the values of the nodes of a tree.

    With z_i = (r_i - mean r) / (std_N r + epsilon) over the leaves i of the prompt, r_i = Σ_k R_{i,k}::

        leaf_mean      V_n = mean of z over the rows through n
        child_mean     V_n = mean of V over the children of n, z at a leaf
        child_softmax  the same mean with weights softmax(H), H_m = mean of -log π over the tokens of the child m

        node_value        A_n = V_n                  diff_global       A_n = V_n - V_root
        diff_parent       A_n = V_n - V_parent(n)    diff_localglobal  A_n = (V_n - V_parent(n)) + (V_n - V_root)

    The root is the prompt, the parent of all first turns; its value is computed as that of a node. Without shared
    turns, ``node_value`` is verl's ``grpo`` with the other standard deviation (N in place of N-1): turns before a row's
    last one have one child then, and so its value.

    Source: arXiv 2601.04767; code zzfoutofspace/ATPO @98e60f6, vllm_rollout_with_tools_tree_offline.py 558-606 and
    1720-1814. There the average over the children of the root is taken in the same way, and leaves that are missing are
    copies of the last one, which are refused here.

    Args:
        token_level_rewards: ``(B, T)`` float, as for :func:`arpo`.
        response_mask: ``(B, T)``, 1 at generated tokens, 0 at observations and padding.
        index: ``(B,)`` group labels (verl's ``uid``).
        node_path: ``(B,)``, as for :func:`arpo`.
        old_log_probs: ``(B, T)`` float, log π of each generated token.
        node_value: ``"child_softmax"``, ``"child_mean"`` or ``"leaf_mean"``.
        mode: ``"node_value"``, ``"diff_parent"``, ``"diff_global"`` or ``"diff_localglobal"``.
        epsilon: Added to the standard deviation.

    Returns:
        ``(advantages, returns)``, the same ``(B, T)`` float32, exactly 0 where the mask is 0.

    Raises:
        CreditInputError: as :func:`arpo`, or a log-probability of a generated token is not finite.
    """
    check_choice("node_value", node_value, NODE_VALUES)
    check_choice("mode", mode, MODES)
    check_number("epsilon", epsilon)
    batch, forest = _read(token_level_rewards, response_mask, index, node_path)
    z_B1 = _norm_population(batch.reward_BK.sum(dim=1, keepdim=True), batch.nonempty_B1, batch.groups, epsilon)
    value_N1, parent_N1 = _node_values(forest, batch, z_B1, node_value, old_log_probs)
    first_BK = forest.node_BK[:, :1].expand(forest.node_BK.shape)  # its parent is the root
    root_N1 = parent_N1[forest.of_nodes(first_BK)[:, 0]]
    advantage_N1 = {
        "node_value": value_N1,
        "diff_parent": value_N1 - parent_N1,
        "diff_global": value_N1 - root_N1,
        "diff_localglobal": (value_N1 - root_N1) + (value_N1 - parent_N1),
    }[mode]
    return batch.advantages(forest.to_rows(advantage_N1))


def _node_values(
    forest: Forest, batch: TurnBatch, z_B1: Tensor, how: str, old_log_probs: Tensor
) -> tuple[Tensor, Tensor]:
    """Return V of each node and of its parent, ``(N, 1)`` each."""
    z_BK = z_B1.expand(forest.node_BK.shape)
    if how == "leaf_mean":
        value_N1 = forest.mean_of_rows(z_BK)
        root_N1 = forest.of_nodes(batch.groups.to_rows(_mean(z_B1, batch)).expand(z_BK.shape))
        above_N1 = value_N1[forest.parent_N.clamp(min=0)]
        return value_N1, above_N1.where(forest.parent_N[:, None] >= 0, root_N1)
    kind, scores_N1 = "mean", None
    if how == "child_softmax":
        surprise_BK = -batch.turns.sum_over_turns(old_log_probs.detach()) / batch.turns.tokens_BK.clamp(min=1)
        kind, scores_N1 = "softmax", forest.of_nodes(surprise_BK)
        if not torch.isfinite(scores_N1).all():
            raise refusal("old_log_probs", "old_log_probs is NaN or infinite at a generated token")
    leaf_N1 = forest.of_nodes(z_BK.masked_fill(~batch.turns.last_BK, 0.0))
    value_N1 = forest.value(leaf_N1, kind, scores_N1=scores_N1)
    return value_N1, forest.siblings.to_rows(forest.over_siblings(value_N1, kind, scores_N1))


def _read(rewards: Tensor, mask: Tensor, index: Index, node_path: NodePath) -> tuple[TurnBatch, Forest]:
    batch = read_batch(rewards, mask, index)
    return batch, read_forest(batch, node_path)


def _score(token_level_rewards: Tensor, response_mask: Tensor) -> Tensor:
    """Return all that each row was paid at generated tokens, ``(B, 1)``, added up as verl does."""
    return token_level_rewards.detach().float().masked_fill(response_mask == 0, 0.0).sum(dim=1, keepdim=True)


def _norm(score_B1: Tensor, valid_B1: Tensor, groups: Groups, epsilon: float) -> Tensor:
    """Return (r - mean) / (std_{N-1} + epsilon) with the operations of verl's ``grpo``, to the last digit.

    One group after the other and on the host, as verl does it: torch adds up a vector in another order than a segment.
    """
    scores_B, valid_B, order_B = (values.cpu() for values in (score_B1[:, 0], valid_B1[:, 0], groups.order_B))
    z_B = torch.zeros_like(scores_B)
    for row_G in order_B.split(groups.length_G.tolist()):
        row_G = row_G[valid_B[row_G]]
        score_G = scores_B[row_G]
        mean, std = (score_G.mean(), score_G.std()) if len(row_G) > 1 else score_G.new_tensor([0.0, 1.0])
        z_B[row_G] = divided(score_G - mean, std + epsilon)
    return z_B[:, None].to(score_B1.device)


def _norm_population(score_B1: Tensor, valid_B1: Tensor, groups: Groups, epsilon: float) -> Tensor:
    """Return (r - mean) / (std_N + epsilon), ``(B, 1)``; 0 for a row that is alone."""
    centred_B1 = normalize_within_group(score_B1, valid_B1, groups, scale="none", epsilon=0.0)
    count_G1 = groups.sum(valid_B1.float())
    std_G1 = (groups.sum(centred_B1.square()) / count_G1.clamp(min=1)).sqrt()
    return divided(centred_B1, groups.to_rows(std_G1) + epsilon).masked_fill(groups.to_rows(count_G1) < 2, 0.0)


def _mean(values_B1: Tensor, batch: TurnBatch) -> Tensor:
    return batch.groups.sum(values_B1) / batch.groups.sum(batch.nonempty_B1.float()).clamp(min=1)


def _trees(forest: Forest) -> Groups:
    """Return the rows grouped by their first node."""
    first_B = forest.node_BK[:, 0] if forest.node_BK.shape[1] else forest.node_BK.new_zeros(len(forest.node_BK))
    return group_rows(first_B, len(first_B), first_B.device)
