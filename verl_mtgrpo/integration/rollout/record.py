"""Keep the record of a running rollout, which the agent loop and the search tool share."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from verl_mtgrpo.rewards import ToolCall

if TYPE_CHECKING:  # importing verl's agent loops loads ours, which import this module
    from verl.experimental.agent_loop.tool_parser import FunctionCall


@dataclass
class RolloutRecord:
    """The events of a rollout so far.

    Attributes:
        calls: The tool calls of each generation.
        written: Calls of the last turn in the order in which the model wrote them: verl's calls, and finished records
            of those that verl dropped.
        made: The outcomes of the last turn's calls that were carried out, by ``id`` of verl's call, because tools run
            at the same time and finish in any order.
        end_reason: Why the rollout ended.
        asked: The queries it has searched for.
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
    """Start a record for the rollout of this task and of the tasks it starts; :func:`record_of` returns it there."""
    record = RolloutRecord()
    _running.set(record)
    return record


def record_of(agent_data: Any) -> RolloutRecord:
    """Return the record of the rollout that this code runs for.

    The record is in a context variable, because verl passes its object for the rollout to tools but not to ``run``.
    verl's ``tool_agent`` starts no record; under it, records are kept by that object, and without one nothing is
    remembered from one call to the next.

    Args:
        agent_data: verl's object for the rollout, or None.
    """
    record = _running.get()
    if record is None:
        record = RolloutRecord() if agent_data is None else _under_verls_loop.setdefault(agent_data, RolloutRecord())
    return record


def fill_steps(fields: dict[str, Any], row: Mapping[str, Any]) -> None:
    """Give a rollout that never asked the rollout server the weights' versions that verl expects in its fields.

    Args:
        fields: The output's ``extra_fields``, changed in place.
        row: The row that verl gave to the agent loop.
    """
    for name in ("min_global_steps", "max_global_steps"):
        fields.setdefault(name, row.get("global_steps", 0))
