"""Measure where the credit of roles went: how many groups of each role have nothing to learn from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from verl_mtgrpo.credit.batch import Index

PAID_ALIKE = ("zero_variance", "sign_conflict")
"""Ends of the names of metrics that compare what rollouts were paid. What an output of a role is worth was mostly paid
to others, so they say nothing of it."""


def role_metrics(
    advantages: Tensor, response_mask: Tensor, index: Index, role: Sequence[str | None] | np.ndarray
) -> dict[str, float]:
    """Return how many groups of outputs have no advantage at all, by role and over all roles.

    ``role/<name>/zero_variance``: of the groups (prompt, role) with two outputs or more, the share in which every
    advantage is 0: they were worth the same. ``guard/zero_variance_groups``: the same over all roles.

    Args:
        advantages: ``(B, T)``.
        response_mask: ``(B, T)``; rows without a generated token, those of frozen roles, are not counted.
        index: One label per row: its prompt.
        role: One name per row; empty or None: the row is not counted.
    """
    moved_B: list[bool] = (advantages * response_mask != 0).any(dim=1).tolist()
    alive_B: list[bool] = response_mask.bool().any(dim=1).tolist()
    groups: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    for row, (prompt, name) in enumerate(zip(index, role, strict=True)):
        if name and alive_B[row]:
            groups[str(prompt), str(name)].append(moved_B[row])
    still: defaultdict[str, list[bool]] = defaultdict(list)
    for (_, name), moved in groups.items():
        if len(moved) > 1:
            still[name].append(not any(moved))
    found = {f"role/{name}/zero_variance": sum(some) / len(some) for name, some in sorted(still.items())}
    every = [one for some in still.values() for one in some]
    return {**found, "guard/zero_variance_groups": sum(every) / len(every)} if every else found
