"""A group whose rollouts share turns, as our trainers dump it."""

from __future__ import annotations

import math
from typing import Any

from tests.report.made import training_row, transcript

PATHS = ("0/0.0", "0/0.1", "1", "2/2.0")
REWARDS = ([0.6, 1.0], [0.6, 0.0], [1.0], [0.0, 0.5])
ADVANTAGES = ([1.0, 0.5], [0.2, -1.0], [-0.3], [-0.9, 0.1])


def tree_rows(
    paths: tuple[Any, ...] = PATHS, *, prompt: str = "tree", estimator: str = "mt_grpo_tree", **more: Any
) -> list[dict[str, Any]]:
    """Rollouts 0 and 1 share their first turn; 3 comes from the same prompt, and 2 ends after its first turn.

    Args:
        paths: One for each rollout; None: the row has none.
        prompt: Name of the group.
        estimator: The estimator that the rows name.
        more: Further columns of every row.
    """
    said = [
        transcript("Vel", searches=["shared"]),
        transcript("Mar", searches=["shared"]),
        transcript("Vel"),
        transcript("Vel", searches=["alone"]),
    ]
    rows = [
        training_row(prompt, 0, one, paid, credit, step=3, estimator=estimator, estimator_settings="{}", **more)
        for one, paid, credit in zip(said, REWARDS, ADVANTAGES, strict=True)
    ]
    for number, (row, path) in enumerate(zip(rows, paths, strict=True)):
        row["uid"] = f"{prompt}_0_{number}"
        if path is not None:
            row["node_path"] = path
    return rows


MALFORMED: dict[str, tuple[Any, ...]] = {
    "too many ids": ("0/0.0/0.0.0", "0/0.1", "1", "2/2.0"),
    "too few ids": ("0", "0/0.1", "1", "2/2.0"),
    "a turn that comes again": ("0/0", "0/0.1", "1", "2/2.0"),
    "a cycle": ("0/1", "1/0", "2", "3/4"),
    "two parents": ("0/x", "1/x", "2", "3/4"),
    "rollouts that end together": ("0/0.0", "0/0.0", "1", "2/2.0"),
    "turns that differ": ("0/0.0", "1/1.0", "2", "0/0.1"),
    "ten thousand levels": ("/".join(map(str, range(10_000))), "0/0.1", "1", "2/2.0"),
    "markup": ("<img src=x onerror=alert(1)>/</script><script>alert(2)</script>", "0/0.1", "1", "2/2.0"),
    "no text": ({"__proto__": [1]}, ["0", "1"], 7, True),
}
"""What hostile or broken dumps may say. ``markup`` has three ids for two turns."""


def by_turn(batch: Any, tokens: Any, how: str = "first") -> list[list[float]]:
    """Return one number per turn of a batch with a ``mask``: at its first token, or over its tokens."""
    found = []
    for row, mask in enumerate(batch.mask.tolist()):
        of_row = []
        for t, generated in enumerate(mask):
            starts = generated and (t == 0 or not mask[t - 1])
            if starts:
                of_row.append([])
            if generated:
                of_row[-1].append(float(tokens[row][t]))
        if how == "first":
            found.append([one[0] for one in of_row])
        else:
            found.append([math.fsum(one) / (len(one) if how == "mean" else 1) for one in of_row])
    return found
