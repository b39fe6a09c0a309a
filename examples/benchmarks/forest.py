"""Measure the time of finding shared turns and of the estimators on trees, beside loops over explicit nodes.

    python examples/benchmarks/forest.py                      # 64 and 8192 rows of 16 turns, a minute
    python examples/benchmarks/forest.py --rows 8192 --naive 0

The loops are those that the tests compare with (``tests/oracles_tree.py``). They look every node up in a list of all
nodes, so they run on the first, small size only. Seconds are processor time, so a busy machine changes them little.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import oracles_tree
from verl_mtgrpo.credit import mt_grpo, mt_grpo_tree, read_batch, read_forest, turn_rloo, turn_rloo_tree

CHILDREN, BRANCHING = 2, 4  # per state, at the first turns: 16 leaves for each prompt


def rows_of(rows: int, turns: int, tokens: int) -> tuple[Tensor, Tensor, list[str], list[str]]:
    """Make binary trees of 16 leaves: rewards, mask, prompts and paths."""
    leaves = CHILDREN**BRANCHING
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([([1] * tokens + [0]) * turns]).repeat(rows, 1)
    paths, rewards = [], torch.zeros(mask.shape)
    paid = torch.rand(rows, turns, generator=generator)
    for row in range(rows):
        leaf = row % leaves
        ids = [f"{k}.{leaf // CHILDREN ** max(BRANCHING - 1 - k, 0)}" for k in range(turns)]
        paths.append("/".join(ids))
        for k in range(turns):
            first = row - leaf % CHILDREN ** max(BRANCHING - 1 - k, 0)  # the first row through the node pays for all
            rewards[row, k * (tokens + 1) + tokens - 1] = paid[first, k]
    return rewards, mask, [f"prompt-{row // leaves}" for row in range(rows)], paths


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the median processor time of a call."""
    found: list[float] = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        found.append(time.process_time() - started)
    return sorted(found)[len(found) // 2]


def main() -> None:
    """Print one table per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--naive", type=int, default=64, help="rows that the loops are given; 0: none")
    parser.add_argument("--turns", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16, help="tokens per turn (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for rows in filter(None, (args.naive, args.rows)):
        rewards, mask, index, paths = rows_of(rows, args.turns, args.tokens)
        batch = read_batch(rewards, mask, index)
        print(f"\n{rows} rows of {args.turns} turns, {read_forest(batch, paths).size} nodes")
        calls: dict[str, Callable[[], object]] = {
            "read_batch": lambda: read_batch(rewards, mask, index),  # noqa: B023 used within the iteration
            "read_forest": lambda: read_forest(batch, paths),  # noqa: B023
            "mt_grpo (chains)": lambda: mt_grpo(rewards, mask, index),  # noqa: B023
            "mt_grpo_tree": lambda: mt_grpo_tree(rewards, mask, index, paths),  # noqa: B023
            "turn_rloo (chains)": lambda: turn_rloo(rewards, mask, index),  # noqa: B023
            "turn_rloo_tree": lambda: turn_rloo_tree(rewards, mask, index, paths),  # noqa: B023
        }
        took = {name: seconds(call, args.repeats) for name, call in calls.items()}
        if rows == args.naive:
            for name in ("mt_grpo_tree", "turn_rloo_tree"):

                def naive(name: str = name) -> object:
                    tree = oracles_tree.Tree(rewards.tolist(), mask.tolist(), index, paths)  # noqa: B023
                    return getattr(oracles_tree, name)(tree)

                loop = seconds(naive, 1)
                took[f"{name}, loops ({loop / took[name]:.0f} x)"] = loop
        for name, spent in took.items():
            print(f"  {name:32s} {1e3 * spent:10.1f} ms")


if __name__ == "__main__":
    main()
