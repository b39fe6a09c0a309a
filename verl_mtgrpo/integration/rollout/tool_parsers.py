"""Parse tool calls in the text formats ``search_r1`` and ``mtgrpo_xml``.

The parsers are in verl's registry: ``actor_rollout_ref.rollout.multi_turn.format=search_r1``. Turns of these formats
are cut at their closing tag (:mod:`.cutting`). verl's parsers (``hermes``, …) are not changed, and with them no turn is
cut.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser

from verl_mtgrpo.rewards.formats import ANSWER, MTGRPO_XML, SEARCH_R1, TextFormat
from verl_mtgrpo.threads import DECODE, apart


class _TagParser(ToolParser):
    """Finds one call per turn, between the format's tags; the first closing tag decides whether it is a call."""

    rules: TextFormat

    async def extract_tool_calls(
        self, responses_ids: list[int], tools: list[Any] | None = None
    ) -> tuple[str, list[FunctionCall]]:
        """Return the turn's text, and its call if the first closing tag closes a call."""
        text = await apart(DECODE, self.tokenizer.decode, responses_ids)
        inside = first_closed(text, self.rules)
        names = [tool.function.name for tool in tools or []]
        return text, [] if inside is None else [self._call(inside, names)]

    def _call(self, inside: str, names: Sequence[str]) -> FunctionCall:
        raise NotImplementedError


@ToolParser.register("search_r1")
class SearchR1Parser(_TagParser):
    """Reads ``<search>query</search>`` as a call of the search tool (the only tool, or the one called ``search``)."""

    rules = SEARCH_R1

    def _call(self, inside: str, names: Sequence[str]) -> FunctionCall:
        name = names[0] if len(names) == 1 else "search"
        return FunctionCall(name=name, arguments=json.dumps({"query": inside.strip()}, ensure_ascii=False))


@ToolParser.register("mtgrpo_xml")
class XmlParser(_TagParser):
    """Reads ``<tool>{"name": …, "args": {…}}</tool>``, the paper's format; ``arguments`` is understood as well.

    Broken JSON still counts as a call: it goes to the tool unchanged and comes back as an error, which the model sees
    and the execution reward counts, as in the paper's code.
    """

    rules = MTGRPO_XML

    def _call(self, inside: str, names: Sequence[str]) -> FunctionCall:
        only = names[0] if len(names) == 1 else ""
        try:
            call = json.loads(inside)
        except (ValueError, RecursionError):
            return FunctionCall(name=only, arguments=inside)
        if not isinstance(call, dict):
            return FunctionCall(name=only, arguments=inside)
        arguments = call.get("args", call.get("arguments", {}))
        return FunctionCall(name=str(call.get("name", only)), arguments=json.dumps(arguments, ensure_ascii=False))


def first_closed(text: str, rules: TextFormat) -> str | None:
    """Return the content of the turn's call if the first closing tag closes a call; None otherwise."""
    close = f"</{rules.call}>"
    end = text.find(close)
    answered = text.find(f"</{ANSWER}>")
    if end < 0 or 0 <= answered < end:
        return None
    start = text.rfind(f"<{rules.call}>", 0, end)
    return text[start + len(rules.call) + 2 : end] if start >= 0 else None
