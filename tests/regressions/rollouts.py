"""Rollouts with searches, written by hand."""

from __future__ import annotations

from verl_mtgrpo.rewards import ToolCall, Transcript, Turn


def found(result: str = "Its capital is Paris.", **how) -> ToolCall:
    return ToolCall("search", "{}", result=result, **how)


NOT_CARRIED_OUT = ToolCall("search", "{}", ok=False, seen=False, error_kind="not_carried_out")
UNSEEN = found(seen=False)


def rollout(*turns: tuple[str, tuple[ToolCall, ...]], form: str = "search_r1", limit: int = 1) -> Transcript:
    made = tuple(Turn(text, (3 * k, 3 * k + 2), calls) for k, (text, calls) in enumerate(turns))
    return Transcript(made, "answered", format=form, max_parallel_calls=limit)
