"""Find the turns that the rollouts of a group share, from the ``node_path`` of each.

A **node** is one turn, however many rollouts have it. The paths of a dump are text that anybody may have written:
they are compared, counted and never shown, and nothing here descends from node to node by recursion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from verl_mtgrpo.report.rollouts import DumpedRollout


@dataclass(frozen=True)
class Tree:
    """The nodes of one group, numbered from 0 in the order in which rollouts and turns first name them.

    A node's parent has a smaller number than the node itself.

    Attributes:
        nodes: For each rollout the node of each of its turns.
        parents: For each node the one before it; -1 for first turns.
        rollouts: For each node the rollouts that have it.
        turns: For each node the number of its turn, from 0.
    """

    nodes: tuple[tuple[int, ...], ...]
    parents: tuple[int, ...]
    rollouts: tuple[tuple[int, ...], ...]
    turns: tuple[int, ...]

    @property
    def size(self) -> int:
        """Return the number of nodes."""
        return len(self.parents)

    @property
    def is_shared(self) -> bool:
        """Return True if a turn is in more than one rollout."""
        return any(len(some) > 1 for some in self.rollouts)

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """Return the children of each node that has some; those of -1, the prompt, are the first turns."""
        found: dict[int, list[int]] = {}
        for node, parent in enumerate(self.parents):
            found.setdefault(parent, []).append(node)
        return found

    def siblings(self, node: int) -> list[int]:
        """Return the nodes that were sampled in the same state, this one included."""
        return self.children[self.parents[node]]

    @cached_property
    def places(self) -> dict[int, list[int]]:
        """Return the nodes of each turn."""
        found: dict[int, list[int]] = {}
        for node, turn in enumerate(self.turns):
            found.setdefault(turn, []).append(node)
        return found

    @cached_property
    def order(self) -> list[int]:
        """Return the rollouts in an order in which those that share a turn are next to each other."""
        return sorted(range(len(self.nodes)), key=self.nodes.__getitem__)


def chains(turns: Sequence[int]) -> Tree:
    """Return the tree of rollouts that share nothing, each with a number of turns."""
    return read_tree([None] * len(turns), turns)


def read_tree(paths: Sequence[str | None], turns: Sequence[int], names: Sequence[int] | None = None) -> Tree:
    """Build a group's tree.

    Args:
        paths: For each rollout the ids of its turns, separated by ``/``; None or empty: it shares no turn.
        turns: For each rollout the number of its turns. The path of one without turns is not read.
        names: What to call the rollouts in an error; None: their places, from 0.

    Raises:
        ValueError: The paths make no tree. The message says why without quoting them.
    """
    called = range(len(turns)) if names is None else names
    known: dict[str, int] = {}
    parents: list[int] = []
    depths: list[int] = []
    rollouts: list[list[int]] = []
    nodes: list[tuple[int, ...]] = []
    for row, (path, count) in enumerate(zip(paths, turns, strict=True)):
        ids = _ids(path, count, called[row])
        parent, mine = -1, list[int]()
        for turn in range(count):
            node = known.setdefault(ids[turn], len(parents)) if ids else len(parents)
            if node == len(parents):
                parents.append(parent)
                depths.append(turn)
                rollouts.append([])
            elif parents[node] != parent or depths[node] != turn:
                raise ValueError(f"rollout {called[row]} has a turn at another place than before")
            rollouts[node].append(row)
            mine.append(node)
            parent = node
        nodes.append(tuple(mine))
    for row, mine in enumerate(nodes):
        if mine and len(rollouts[mine[-1]]) > 1:
            raise ValueError(f"rollout {called[row]} ends with a turn that another one has too")
    return Tree(tuple(nodes), tuple(parents), tuple(map(tuple, rollouts)), tuple(depths))


def _ids(path: str | None, turns: int, name: int) -> list[str]:
    """Return the ids in a path; none for a rollout that shares no turn."""
    if not path or not turns:
        return []
    if path.count("/") != turns - 1:  # before anything long is split
        raise ValueError(f"rollout {name} has {turns} turns, but its path has {path.count('/') + 1}")
    return path.split("/")


def tree_of(rollouts: Sequence[DumpedRollout]) -> tuple[Tree | None, str]:
    """Return the tree of a group's rollouts, and why it is not the one that their paths describe.

    Returns:
        None and an empty text without paths. Chains and a reason if the paths make no tree, or if rollouts differ in a
        turn that they are said to share.
    """
    if not any(rollout.node_path for rollout in rollouts):
        return None, ""
    turns = [len(rollout.turn_rewards) for rollout in rollouts]
    try:
        names = [rollout.number for rollout in rollouts]
        tree = read_tree([rollout.node_path for rollout in rollouts], turns, names)
        _check_alike(tree, rollouts)
    except ValueError as error:
        return chains(turns), str(error)
    return tree, ""


def _check_alike(tree: Tree, rollouts: Sequence[DumpedRollout]) -> None:
    """Raise ``ValueError`` if rollouts differ in the text or the reward of a turn that they share."""
    for turn, (first, *others) in zip(tree.turns, tree.rollouts, strict=True):
        for row in others:
            one, other = rollouts[first], rollouts[row]
            same_text = one.transcript.turns[turn].text == other.transcript.turns[turn].text
            if not same_text or abs(one.turn_rewards[turn] - other.turn_rewards[turn]) > 1e-6:
                names = f"rollouts {one.number} and {other.number}"
                raise ValueError(f"{names} differ in turn {turn + 1}, which they are said to share")
