"""The record of a running rollout, which the agent loop and the search tool share."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from verl_mtgrpo.rewards import ToolCall

if TYPE_CHECKING:  # importing verl's agent loops loads ours, which import this module
    from verl.experimental.agent_loop.tool_parser import FunctionCall


@dataclass
class RolloutRecord:
    """What has happened so far in a rollout.

    Attributes:
        calls: The tool calls of each generation.
        written: Calls of the last turn in the order in which the model wrote them: verl's, and finished records of
            those that verl dropped.
        made: The outcomes of the last turn's calls that were carried out, by ``id`` of verl's call; tools run at the
            same time and end in any order.
        end_reason: Why the rollout ended.
        asked: What it has searched for.
        searches: How many searches it has made.
    """

    calls: list[list[ToolCall]] = field(default_factory=list)
    written: list[FunctionCall | ToolCall] = field(default_factory=list)
    made: dict[int, ToolCall] = field(default_factory=dict)
    end_reason: str = "answered"
    asked: set[str] = field(default_factory=set)
    searches: int = 0


_running: ContextVar[RolloutRecord | None] = ContextVar("record of the rollout that runs", default=None)
_under_verls_loop: WeakKeyDictionary[Any, RolloutRecord] = WeakKeyDictionary()


def new_record() -> RolloutRecord:
    """Begin the record of the rollout that this task runs, and the tasks that it starts; :func:`record_of` finds it."""
    record = RolloutRecord()
    _running.set(record)
    return record


def record_of(agent_data: Any) -> RolloutRecord:
    """Return the record of the rollout that this code runs for.

    A context variable carries it, because verl gives its object for the rollout to tools and never to ``run``. verl's
    own ``tool_agent`` opens no record: there that object tells rollouts apart, and without one nothing is remembered.

    Args:
        agent_data: verl's object for the rollout, or None.
    """
    record = _running.get()
    if record is None:
        record = RolloutRecord() if agent_data is None else _under_verls_loop.setdefault(agent_data, RolloutRecord())
    return record
