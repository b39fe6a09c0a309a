"""Find the tool calls that the model wrote, with those that verl drops, and repair those that would break its loop."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from verl_mtgrpo.integration.rollout.proxy import Proxy
from verl_mtgrpo.rewards import ToolCall
from verl_mtgrpo.rewards.measures import BAD_ARGUMENTS, NOT_CARRIED_OUT
from verl_mtgrpo.text import encodable

if TYPE_CHECKING:  # importing verl's agent loops loads ours, which import this module
    from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser

_VERLS_PARSERS = "verl.experimental.agent_loop.tool_parser"
_SPARE_DEPTH = 100  # verl reads the arguments further down the stack than we do, so it has less room for recursion
_END_OF_THOUGHT = "</think>"
_NAME = re.compile(r'"name"\s*:\s*"([^"\n]+)"|<function=([^>\s]+)|<invoke name="([^"\n]+)"|^\s*call:(\w+)')


# ---- calls that were written and not carried out


def not_carried_out(call: FunctionCall) -> ToolCall:
    """Return the record of a call beyond ``max_parallel_calls``, which verl parses but does not carry out."""
    return ToolCall(call.name, call.arguments, ok=False, seen=False, error_kind=NOT_CARRIED_OUT)


def call_marks(parser: ToolParser) -> tuple[str, str] | None:
    """Return the texts that a call starts and ends with, for verl's parsers that look for both; None for others."""
    start, end = (str(getattr(parser, f"tool_call_{side}_token", "")) for side in ("start", "end"))
    return (start, end) if type(parser).__module__ == _VERLS_PARSERS and start and end else None


async def written_calls(
    parser: ToolParser, text: str, found: Sequence[FunctionCall], tools: Sequence[Any]
) -> list[FunctionCall | ToolCall]:
    """Return the calls of a turn in order: those that verl found, and records of those that it dropped.

    Some of verl's parsers (``hermes``, ``qwen3_coder``, ``glm``, ``seed``, ``minimax``, ``gemma4``) look for a start
    and an end mark, and silently drop a call that they cannot read. To find those, each marked piece of the turn is
    given to the same parser alone: if it finds no call there, the piece counts as a failed call of the model
    (``bad_arguments``). Doubtful cases do not count: a start without an end, a piece inside a thought, where models
    talk about calls, and anything that other parsers leave out.

    Args:
        parser: verl's parser, or one of the user's.
        text: The turn, as the parser decodes it.
        found: What the parser found in the whole turn.
        tools: Schemas of the tools that may be called.
    """
    start, end = call_marks(parser) or ("", "")
    pieces = list(re.finditer(f"{re.escape(start)}(.*?){re.escape(end)}", text, re.DOTALL)) if start else []
    if len(pieces) <= len(found):
        return list(found)
    reader = copy(parser)
    reader.tokenizer = _Text(parser.tokenizer)
    thought = text.rfind(_END_OF_THOUGHT)
    rest = list(found)
    written: list[FunctionCall | ToolCall] = []
    for piece in pieces:
        # The reader's "token ids" are the text itself (_Text).
        _, inside = await reader.extract_tool_calls(piece.group(), list(tools))  # pyright: ignore[reportArgumentType]
        # If verl found fewer calls than the pieces hold, another piece made its parser give up on the whole turn.
        written += [rest.pop(0) if rest else not_carried_out(call) for call in inside]
        if not inside and piece.end() > thought:
            written.append(_dropped(piece.group(1)))
    return [*written, *rest]


def _dropped(inside: str) -> ToolCall:
    named = _NAME.search(inside)
    name = next(filter(None, named.groups()), "") if named else ""
    return ToolCall(name, inside.strip(), ok=False, seen=False, error_kind=BAD_ARGUMENTS)


class _Text(Proxy):
    """Takes the place of a parser's tokenizer: the "tokens" are the text itself."""

    def decode(self, text: str, **_: Any) -> str:
        return text


# ---- calls that verl's loop can read


def make_readable(call: FunctionCall) -> None:
    """Change a call in place so that it cannot end the rollout with an error, which would lose the whole group.

    If arguments are not JSON, verl sends the model a message, but it catches only ``JSONDecodeError``: neither the
    ``RecursionError`` of a thousand brackets nor the ``ValueError`` of a number with 5000 digits. Such arguments are
    cut off, so that they are no longer JSON. Half surrogate pairs, which no tokenizer accepts, become ``?``.
    """
    call.name, call.arguments = encodable(call.name), encodable(call.arguments)
    try:
        json.loads("[" * _SPARE_DEPTH + call.arguments + "]" * _SPARE_DEPTH)
    except json.JSONDecodeError:
        return
    except (RecursionError, ValueError):
        call.arguments = f"{call.arguments[:200]}…"
