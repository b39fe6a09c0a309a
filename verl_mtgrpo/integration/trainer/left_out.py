"""Rollouts that leave a training batch before anything is computed from it: dropped ones, and those left alone.

A dropped rollout (its search was down, no reward could be found) is nobody's fault, so it must not move anybody's
baseline. Masking its tokens is not enough: verl's own ``grpo`` and ``rloo`` average over the *rows* of a group and
would count it as a reward of 0. Three rollouts that all earned 1 would be praised for a fourth that was lost. Hence
the row itself leaves, in the replay buffer, before any estimator, metric or loss. If the batch then cannot be divided
into mini-batches, verl fills it with masked rows in a separate group (``verl.trainer.ppo.padding_utils``).

Of a tree every row is a rollout, and so is every output of a role: one that is dropped leaves alone.

A rollout whose whole group was lost has nothing to compare with, and an estimator that compares rollouts would give
it its raw reward as advantage. It leaves as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_mtgrpo.rewards import DROPPED


@dataclass(frozen=True)
class Sorted:
    """Rows of a batch by their fate; each row is in exactly one list.

    Attributes:
        kept: Rows that are trained on.
        dropped: Rows of rollouts that the reward manager dropped.
        alone: Rows of rollouts that are the only one left of their group, under an estimator that compares rollouts.
    """

    kept: list[int]
    dropped: list[int]
    alone: list[int]


def sort_rows(
    keys: Sequence[str], infos: Sequence[Mapping[str, Any]], *, need_company: bool, leaves: bool = False
) -> Sorted:
    """Find the rows that leave a batch.

    Args:
        keys: verl's names of the rows, ``{uid}_{session}_{index}``: a rollout may have several rows, a group has the
            rollouts of one uid.
        infos: ``reward_extra_info`` of each row; empty for a row without one.
        need_company: True takes out rollouts that are the only one left of their group.
        leaves: True if every row is a rollout, as in trees.
    """
    rollouts = [rollout_of(key, leaves=leaves) for key in keys]
    groups = dict(zip(rollouts, map(_group_of, keys), strict=True))
    dropped = {rollout for rollout, info in zip(rollouts, infos, strict=True) if info.get(DROPPED)}
    left: dict[str, set[str]] = defaultdict(set)
    for rollout in rollouts:
        if rollout not in dropped:
            left[groups[rollout]].add(rollout)
    lonely = {group for group, members in left.items() if need_company and len(members) == 1}
    rows = Sorted([], [], [])
    for row, rollout in enumerate(rollouts):
        fate = rows.dropped if rollout in dropped else rows.alone if groups[rollout] in lonely else rows.kept
        fate.append(row)
    return rows


def rollout_of(key: str, *, leaves: bool = False) -> str:
    """Return the rollout that a row belongs to: ``{uid}_{session}`` of ``{uid}_{session}_{index}``.

    Args:
        key: verl's name of the row.
        leaves: True if every row is a rollout, as in trees: it is the whole name then.
    """
    return key if leaves else key.rpartition("_")[0]


def rollouts_in(keys: Sequence[str], rows: Sequence[int], *, leaves: bool = False) -> int:
    """Return how many rollouts these rows of a batch belong to."""
    return len({rollout_of(keys[row], leaves=leaves) for row in rows})


def _group_of(key: str) -> str:
    return key.rsplit("_", 2)[0]
