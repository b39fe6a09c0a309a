"""Measure what rollouts share: how much of a batch is on several rows, and how much siblings differ."""

from __future__ import annotations

from torch import Tensor

from verl_mtgrpo.credit.batch import Index, read_batch
from verl_mtgrpo.credit.forest import NodePath, read_forest
from verl_mtgrpo.credit.groups import std_within_group


def forest_metrics(
    token_level_rewards: Tensor, response_mask: Tensor, index: Index, node_path: NodePath
) -> dict[str, float]:
    """Measure the forest of a training batch, as named numbers for a logger.

    ``forest/nodes``: the number of distinct turns. ``forest/shared_fraction``: of the generated tokens of all rows,
    the share in turns that more than one row has. ``forest/with_siblings``: of the distinct turns after the first, the
    share that was sampled in the same state as another one; the others have no baseline of their own.
    ``forest/sibling_std``: the mean, over the states in which several turns were sampled, of the standard deviation
    (N-1) of what was paid from these turns on, each averaged over the branches that follow it. At 0 there is nothing to
    learn from siblings. A share or mean of nothing is left out.

    Args:
        token_level_rewards: ``(B, T)``, as given to the estimator.
        response_mask: ``(B, T)``, 1 at generated tokens. Rows without any are not counted.
        index: One label per row.
        node_path: One path per row, as given to the estimator.

    Raises:
        CreditInputError: as :func:`~verl_mtgrpo.credit.forest.read_forest`.
    """
    batch = read_batch(token_level_rewards, response_mask, index)
    forest = read_forest(batch, node_path)
    tokens_BK = batch.turns.tokens_BK
    on_several_rows = (tokens_BK * forest.to_rows(forest.rows_N1 > 1)).sum() / tokens_BK.sum()
    value_N1 = forest.value(forest.of_nodes(batch.reward_BK))
    several_N1 = forest.siblings_N1 > 1
    later_N1 = (forest.parent_N >= 0)[:, None]
    std_N1 = std_within_group(value_N1, several_N1 | ~several_N1, forest.siblings)
    share_N1 = several_N1 / forest.siblings_N1  # each state counts once
    named = {
        "nodes": float(forest.size),
        "shared_fraction": float(on_several_rows),
        "with_siblings": float((several_N1 & later_N1).sum() / later_N1.sum()),
        "sibling_std": float((std_N1 * share_N1).sum() / share_N1.sum()),
    }
    return {f"forest/{name}": value for name, value in named.items() if value == value}
