"""Record the outcome of a tool call: the tool's own report, and what we observe while verl runs the tool.

A tool may return a dict as its third value, which verl's loop passes on without reading it. Our search tool fills it
from a :class:`ToolOutcome`; a tool of the user's may return any part of it, such as ``{"ok": False, "why": "…"}``
(:class:`~verl_mtgrpo.rewards.ToolReport`), or nothing. verl's loop turns an exception of a tool into an answer like any
other, so we also watch tools (:func:`watched`, :func:`watch`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from verl.tools.function_tool import FunctionTool, normalize_function_tool_return

from verl_mtgrpo.errors import ToolError
from verl_mtgrpo.integration.rollout.proxy import Proxy
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.rewards import ToolCall
from verl_mtgrpo.rewards.any_tool.report import report_in
from verl_mtgrpo.rewards.measures import SERVICE_ERRORS


@dataclass(frozen=True)
class ToolOutcome:
    """The outcome of one call, besides the text that the model reads and the reward.

    Attributes:
        ok: True if the tool ran and answered.
        error_kind: What was wrong, by name (:mod:`~verl_mtgrpo.rewards.measures` lists them); None if nothing.
        documents: The passages found, best first.
        repeat: True if the rollout had searched for the same before.
        faults: Kinds of tries that failed before the call ended, in order.
        outage: Why the service behind the tool is down; empty if it is not.
        on_outage: What an outage does to the rollout: ``drop`` or ``raise``.
        latency_s: Seconds that the call took; None if the tool does not say.
        why: Why the call failed, in the tool's own words; empty if it does not say.
        changed: True or False if the tool says whether the call changed something; None if it does not.
    """

    ok: bool = True
    error_kind: str | None = None
    documents: Sequence[Passage] = field(default_factory=list[Passage])
    repeat: bool = False
    faults: tuple[str, ...] = ()
    outage: str = ""
    on_outage: str = "drop"
    latency_s: float | None = None
    why: str = ""
    changed: bool | None = None

    def to_info(self) -> dict[str, Any]:
        """Return the dict that a tool gives to verl as its third value."""
        return asdict(self)

    @classmethod
    def from_info(cls, info: Any, tool: str = "") -> ToolOutcome:
        """Read a tool's third value; keys that are missing or have a value of another kind are ignored.

        A tool of the user's may use the same names for something else. Without ``ok``, the call counts as a success,
        and ``error_kind`` and ``why`` are ignored.

        Args:
            info: The third value.
            tool: The tool's name, for messages.

        Raises:
            ToolError: ``ok`` is a text or a number other than 0 and 1, or ``changed`` beside it is one: Python takes
                ``"false"`` for true, and the author of the tool meant something.
        """
        info = cast("Mapping[str, Any]", info) if isinstance(info, Mapping) else {}
        outage, kind, said = _text(info.get("outage")), _text(info.get("error_kind")), _said(info, "ok", tool)
        ok = not outage if said is None else said
        if outage:
            kind = kind if kind in SERVICE_ERRORS else "outage"
        elif said is not None:
            kind = kind or (None if ok else "tool_error")
        else:
            kind = None
        faults, latency = info.get("faults"), info.get("latency_s")
        return cls(
            ok=ok,
            error_kind=kind,
            documents=_passages(info.get("documents")),
            repeat=bool(_truth(info.get("repeat"))),
            faults=tuple(map(str, faults)) if isinstance(faults, list | tuple) else (),
            outage=outage,
            on_outage=_text(info.get("on_outage")) or "drop",
            latency_s=_seconds(latency),
            why=_text(info.get("why")) if said is not None and not ok else "",
            changed=_changed(info, tool, reports=said is not None),
        )

    def of_call(
        self, name: str, arguments: str, result: str, *, took_s: float, reward: float, defused: bool
    ) -> ToolCall:
        """Return the record of a call with this outcome.

        Args:
            name: The tool's name.
            arguments: The arguments as the model wrote them.
            result: What the model reads.
            took_s: Seconds that the call took, unless the tool says so itself.
            reward: The tool's own reward for the call.
            defused: True if the result was changed because of control tokens in it.
        """
        return ToolCall(
            name=name,
            arguments=arguments,
            result=result,
            ok=self.ok,
            error_kind=self.error_kind,
            error=self.outage,
            documents=tuple(self.documents),
            latency_s=took_s if self.latency_s is None else self.latency_s,
            repeat=self.repeat,
            faults=self.faults,
            reward=reward,
            defused=defused,
            why=self.why,
            changed=self.changed,
        )


def _passages(listed: Any) -> list[Passage]:
    if not isinstance(listed, list | tuple):
        return []
    try:
        return [Passage(**one) for one in listed]
    except TypeError:
        return []


def _text(value: Any) -> str:
    """Return the value if it is a text or an exception, as a text; otherwise an empty one."""
    return str(value) if isinstance(value, str | Exception) else ""


def _truth(value: Any) -> bool | None:
    """Return the truth value of a single value; None for None, arrays and other things without a clear one."""
    single = isinstance(value, bool | int | float | str) or type(value).__name__ in ("bool_", "bool")
    return bool(value) if single else None


def _said(info: Mapping[str, Any], key: str, tool: str) -> bool | None:
    """Return a boolean of a tool's report; None if it is absent, or an array or another thing that says nothing."""
    value = info.get(key)
    if isinstance(value, str | bytes) or (isinstance(value, int | float) and value not in (0, 1)):
        shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:79]}…"
        raise ToolError(
            f"the tool {tool!r} reported {key}={shown} ({type(value).__name__}) of a call (in its third return value)",
            expected="True or False",
            fix='return {"ok": False, "why": "the reason"} for a call that failed, {"ok": True} for one that did not',
        )
    return _truth(value)


def _changed(info: Mapping[str, Any], tool: str, *, reports: bool) -> bool | None:
    """Return what a tool says of its state; without ``ok`` beside it, only a boolean is taken for such a statement."""
    value = info.get("changed")
    return _said(info, "changed", tool) if reports or isinstance(value, bool) else None


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


@dataclass
class Watch:
    """Our observations of a tool while verl ran it.

    Attributes:
        answered: True if it returned something that verl can read. If it raises, verl gives the model a text instead.
        reward: The reward of the call as the tool returned it. verl converts a function tool's with ``float``.
    """

    answered: bool = False
    reward: Any = None


_watch: ContextVar[Watch] = ContextVar("watch over the tool that verl runs")


def watch() -> Watch:
    """Start watching; call this in the task that runs the tool, and read the result when verl is done."""
    started = Watch()
    _watch.set(started)
    return started


def watched(tool: Any) -> Any:
    """Wrap a tool so that verl's loop can call it as before and :func:`watch` learns how the call went."""
    return _WatchedFunctionTool(tool) if isinstance(tool, FunctionTool) else _WatchedTool(tool)


class _WatchedFunctionTool(FunctionTool):
    def __init__(self, tool: FunctionTool) -> None:
        super().__init__(name=tool.name, fn=tool.fn, tool_schema=tool.tool_schema, is_async=tool.is_async)
        self._tool = tool

    async def call(self, parameters: dict[str, Any]) -> Any:
        seen, result = _watch.get(Watch()), await self._tool.call(parameters)
        seen.reward = result[1] if isinstance(result, tuple) and len(result) in (2, 3) else None
        try:
            answer = normalize_function_tool_return(result)
        except Exception:
            if isinstance(seen.reward, int | float):
                seen.reward = None  # the rest of the result cannot be read, so verl ignores this number too
            raise
        seen.answered = True
        # The model reads a dict as JSON, and a tool that answers with one may say in it how the call went.
        report = report_in(result[0] if isinstance(result, tuple) else result)
        return (answer[0], answer[1], {**report, **answer[2]}) if report else answer


class _WatchedTool(Proxy):
    """Wraps one of verl's ``BaseTool`` and changes nothing but ``execute``."""

    async def execute(self, *arguments: Any, **named: Any) -> Any:
        seen = _watch.get(Watch())
        response, reward, info = await self._original.execute(*arguments, **named)
        seen.answered, seen.reward = True, reward
        return response, reward, info


def checked_reward(name: str, value: Any) -> float:
    """Return the reward that a tool gave its call; 0.0 for None, as in verl.

    Args:
        name: The tool's name, for messages.
        value: The second value that the tool returned.

    Raises:
        ToolError: The value is not a finite number.
    """
    if value is None:
        return 0.0
    kind = type(value).__name__
    try:
        if isinstance(value, str | bytes) or kind in ("bool", "bool_") or getattr(value, "shape", ()) != ():
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isfinite(number):
        return number
    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:79]}…"
    raise ToolError(
        f"the tool {name!r} returned {shown} ({kind}) as the reward of its call (the second return value)",
        expected="a finite number, or None for no reward",
        fix="make the tool return such a number there",
    )
