"""Say which methods learn, stall or collapse. All numbers of these definitions stand here and nowhere else."""

from __future__ import annotations

from collections import Counter

from verl_mtgrpo.lab.learn.learner import Curves
from verl_mtgrpo.lab.learn.task import Task

LEARNS, STALLS, COLLAPSES = "learns", "stalls", "collapses"

SHARE = 0.5
"""A policy that has learned has made at least this share of the way from its first goal value to the best possible."""

UNLEARNED = 0.5
"""A policy has collapsed if the watched behaviour is at most this share of what it was before training ..."""

RARE = 0.05
"""... and at most this often per rollout."""

LAST = 10
"""The end of a curve is the mean of this many last steps."""

DEFINITIONS = (
    f"**learns**: at the end (mean of the last {LAST} steps) the goal has made at least {SHARE:.0%} of the way from "
    f"its value before training to the best that any policy reaches. **collapses**: it has not, and the watched "
    f"behaviour (tool use) is at most {RARE:g} and at most {UNLEARNED:.0%} of what it was before training. "
    "**stalls**: neither. A cell has the verdict that most seeds have."
)


def verdicts(task: Task, curves: Curves) -> list[str]:
    """Return the verdict of each seed."""
    start, end = curves.goal[:, 0], curves.goal[:, -LAST:].mean(dim=1)
    learned = end - start >= SHARE * (task.reachable - start) - 1e-12
    collapsed = learned & False
    if task.watch is not None:
        use = curves.marks[task.watch]
        before, after = use[:, 0], use[:, -LAST:].mean(dim=1)
        collapsed = ~learned & (after <= RARE + 1e-12) & (after <= UNLEARNED * before)
    return [
        LEARNS if a else COLLAPSES if b else STALLS for a, b in zip(learned.tolist(), collapsed.tolist(), strict=True)
    ]


def most(found: list[str]) -> tuple[str, int]:
    """Return the verdict of most seeds, the worse one of two that tie, and of how many."""
    counts = Counter(found)
    worst = max((COLLAPSES, STALLS, LEARNS), key=lambda verdict: counts[verdict])
    return worst, counts[worst]


def first_step(task: Task, curves: Curves) -> list[int | None]:
    """Return the first step at which each seed has made :data:`SHARE` of the way; None: it never does."""
    bound = curves.goal[:, :1] + SHARE * (task.reachable - curves.goal[:, :1])
    reached = curves.goal >= bound - 1e-12
    return [int(row.nonzero()[0]) if row.any() else None for row in reached]
