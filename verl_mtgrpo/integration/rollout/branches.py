"""One tree of rollouts as it grows: its leaves, their states, and what is counted of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.growth import Growth, Node
from verl_mtgrpo.integration.rollout.record import RolloutRecord

_OWN = ("metrics", "request_id")
"""What a branch does not inherit: times that are counted once, and the id of its requests."""

running_leaf: ContextVar[Leaf | None] = ContextVar("leaf of the tree that runs", default=None)
"""The leaf whose rollout this code runs for; None outside trees."""


@dataclass(frozen=True)
class State:
    """A rollout between two turns: verl's object for it, and our record.

    Attributes:
        data: The attributes of verl's ``AgentData`` by name: tokens, mask, log-probs, messages, counters.
        record: The calls so far.
    """

    data: dict[str, Any]
    record: RolloutRecord

    @classmethod
    def of(cls, agent_data: Any, record: RolloutRecord) -> State:
        """Return a copy of a rollout's state. Nothing is tokenised again: lists of tokens are copied."""
        data = {name: _copy(name, value) for name, value in vars(agent_data).items() if name not in _OWN}
        return cls(data, _copy_of_record(record))

    def restore(self, agent_data: Any, record: RolloutRecord) -> None:
        """Put a copy of this state into the objects of a rollout that has just begun."""
        vars(agent_data).update({name: _copy(name, value) for name, value in self.data.items()})
        vars(record).update(vars(_copy_of_record(self.record)))


def _copy(name: str, value: Any) -> Any:
    if name == "extra_fields":  # where tools keep what they know of a rollout
        try:
            return deepcopy(value)
        except Exception as error:
            raise ConfigError(
                f"agent_data.extra_fields of a rollout cannot be copied for a branch ({type(error).__name__}: {error})",
                fix="let tools keep there what copy.deepcopy can copy, or set trainer.turn.branch.grow=none",
            ) from error
    return list(value) if isinstance(value, list) else value


def _copy_of_record(record: RolloutRecord) -> RolloutRecord:
    return replace(
        record,
        calls=[list(calls) for calls in record.calls],
        written=list(record.written),
        made=dict(record.made),
        asked=set(record.asked),
    )


class Leaf:
    """One rollout of a tree. It runs by itself, and waits for the others after each of its turns.

    Args:
        number: Its number in the tree, in the order of beginning.
        start: The node that it begins at: the prompt, or a turn whose state it takes over.
    """

    def __init__(self, number: int, start: Node):
        self.number, self.start = number, start
        self.node = start.child()
        self.request_id = ""
        self.error: Exception | None = None
        self.task: asyncio.Task[Any] | None = None
        self._waits = self._goes_on = asyncio.get_running_loop().create_future()

    def begin(self, run: Callable[[Leaf], Awaitable[Any]]) -> None:
        """Run the rollout in a task of its own, in which :data:`running_leaf` is this one."""

        async def alone() -> Any:
            running_leaf.set(self)
            return await run(self)

        self._waits = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(alone())

    async def wait_for_others(self, state: State) -> None:
        """Say that a turn is complete, and wait until all leaves' turns are; called in the rollout's own task."""
        self.node.state = state
        self._goes_on = asyncio.get_running_loop().create_future()
        self._waits.set_result(None)
        await self._goes_on

    async def turn_is_complete(self) -> None:
        """Return when the rollout waits for the others or has ended. An error that ended it is in ``error`` then."""
        assert self.task is not None
        await asyncio.wait({self.task, self._waits}, return_when=asyncio.FIRST_COMPLETED)
        if not self._waits.done():
            found = self.task.exception()
            if isinstance(found, Exception):
                self.error = found
            elif found is not None:
                raise found

    @property
    def is_over(self) -> bool:
        """True if the rollout has ended, well or not."""
        return not self._waits.done()

    def go_on(self) -> None:
        """Let the rollout write its next turn."""
        self.node = self.node.child()
        self._waits = asyncio.get_running_loop().create_future()
        self._goes_on.set_result(None)


@dataclass
class Tree:
    """The tree of one prompt.

    Attributes:
        growth: Where it branches.
        root: The prompt.
        leaves: All leaves in the order of beginning.
        nodes: The root and every turn that was begun.
    """

    growth: Growth
    root: Node = field(default_factory=Node)
    leaves: list[Leaf] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    async def grow(self, run: Callable[[Leaf], Awaitable[Any]]) -> None:
        """Run leaves until the growth wants no more. What became of each is in its ``task`` and ``error``.

        Args:
            run: Runs the rollout of a leaf from its start to its end.
        """
        self.nodes = [self.root]
        try:
            live = self._begin([self.root] * self.growth.start(), run)
            while live:
                await asyncio.gather(*(leaf.turn_is_complete() for leaf in live))
                done = [leaf.node for leaf in live]
                live = [leaf for leaf in live if not leaf.is_over]
                for leaf in live:
                    leaf.go_on()
                    self.nodes.append(leaf.node)
                parents = self.growth.after_turn(done, self.room)
                if not live and not parents and self.room:
                    parents = self.growth.when_over(self.nodes, self.room)
                live += self._begin(parents[: self.room], run)
        finally:
            for leaf in self.leaves:
                if leaf.task is not None:
                    leaf.task.cancel()

    @property
    def room(self) -> int:
        """How many more leaves the tree may have."""
        return self.growth.leaves - len(self.leaves)

    def _begin(self, parents: Sequence[Node], run: Callable[[Leaf], Awaitable[Any]]) -> list[Leaf]:
        begun = []
        for parent in parents:
            leaf = Leaf(len(self.leaves), parent)
            leaf.begin(run)
            self.leaves.append(leaf)
            self.nodes.append(leaf.node)
            begun.append(leaf)
        return begun

    def measures(self) -> dict[str, float]:
        """Return what is logged of the tree: ``branch/…``, without what is undefined for it."""
        ended = [leaf for leaf in self.leaves if leaf.error is None]
        in_rows = sum(node.tokens for leaf in ended for node in leaf.node.lineage)
        generated = sum(node.tokens for node in {node for leaf in ended for node in leaf.node.lineage})
        depths = [leaf.start.depth + 1 for leaf in self.leaves if leaf.start is not self.root]
        growth = self.growth
        found = {
            "branch/per_prompt": float(len(self.leaves)),
            "branch/shortfall": float(self.room),
            "branch/generated_tokens": float(sum(node.tokens for node in self.nodes)),
        }
        if in_rows:
            found["branch/saved_tokens"] = 1.0 - generated / in_rows
        if depths:
            found["branch/depth"] = sum(depths) / len(depths)
        if growth.signals:
            found["branch/signal_mean"] = sum(growth.signals) / len(growth.signals)
        if growth.decided:
            found["branch/fired"] = growth.fired / growth.decided
        return found
