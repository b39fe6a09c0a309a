"""What a tool may report of a call: the third value that it returns to verl, ``(response, reward, report)``.

A tool that reports nothing (``{}``, ``None``, measurements of its own) has answered: the call is ``ok``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, cast


class _Said(TypedDict):
    ok: bool


class ToolReport(_Said, total=False):
    """The report of a call, such as ``{"ok": False, "why": "there is no table 'order'"}``.

    Attributes:
        ok: True if the tool did what it was asked for; False for an ordinary failure, which is the model's. It has to
            be a boolean: a text such as ``"false"`` is an error, because Python takes it for true.
        why: Why it failed, for people: in dumps and reports. The model reads the response and not this.
        error_kind: A name for the kind of failure, by which metrics count (``tool/errors/<kind>``); those of
            :data:`~verl_mtgrpo.rewards.measures.KINDS` keep their name, others count as ``tool_error``.
        changed: True if the call changed something (a row was written, a door opened), False if it did not. Leave it
            out if the tool only looks things up.
        outage: Why the service behind the tool is down. The rollout is then dropped, and nobody is blamed.
    """

    why: str
    error_kind: str
    changed: bool
    outage: str


_KINDS: Mapping[str, type] = {"ok": bool, "why": str, "error_kind": str, "changed": bool, "outage": str}


def report_in(result: Any) -> ToolReport | None:
    """Return the report in a function tool's result, if that is nothing but a dict with a boolean ``ok``; else None.

    Such a dict is what the model reads, as JSON. Other keys, and those with values of another type, are the tool's own.
    """
    if not isinstance(result, dict):
        return None
    said = cast("dict[str, Any]", result)
    known = {name: said[name] for name, kind in _KINDS.items() if isinstance(said.get(name), kind)}
    return cast("ToolReport", known) if "ok" in known else None
