"""Trees of rollouts without a model: what a strategy makes of given log-probs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

from verl_mtgrpo.integration.growth import STRATEGIES, Node
from verl_mtgrpo.integration.rollout.branches import Leaf, State, Tree
from verl_mtgrpo.integration.rollout.record import RolloutRecord
from verl_mtgrpo.integration.settings import BranchSettings

Turn = Callable[[Node], tuple[Sequence[float], bool]]
"""The log-probs of a node's turn, and True if the rollout ends with it."""


def grown(
    turn: Turn, *, n: int, of: str = "1 7", max_turns: int = 0, hurry: int | None = None, **settings: Any
) -> Tree:
    """Grow the tree of one prompt.

    Args:
        turn: What is generated at a node; may raise.
        n: Number of leaves asked for.
        of: Step and question.
        max_turns: The limit of turns, 0 for none.
        hurry: Seed of the order in which turns finish; None: all at once.
        settings: ``trainer.turn.branch``.
    """
    made = BranchSettings(**settings)
    times = random.Random(hurry)

    async def run(leaf: Leaf) -> list[str]:
        while True:
            for _ in range(times.randrange(20) if hurry is not None else 0):
                await asyncio.sleep(0)
            leaf.node.log_probs, over = turn(leaf.node)
            leaf.node.tokens = len(leaf.node.log_probs)
            if over:
                return [node.name for node in leaf.node.lineage]
            await leaf.wait_for_others(State({}, RolloutRecord()))

    async def go() -> Tree:
        tree = Tree(STRATEGIES[made.grow](made, n, of, max_turns))
        await tree.grow(run)
        return tree

    return asyncio.run(go())


def paths(tree: Tree) -> list[str]:
    """The leaves' paths in the order of beginning."""
    return ["/".join(node.name for node in leaf.node.lineage) for leaf in tree.leaves]
