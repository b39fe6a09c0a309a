"""Tool calls in the text formats ``search_r1`` and ``mtgrpo_xml``, and the cut after a turn's first closing tag.

Registered in verl's tool parser registry: ``actor_rollout_ref.rollout.multi_turn.format=search_r1``. verl's own
parsers (``hermes``, …) stay as they are, and with them nothing is cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser
from verl.utils.ray_utils import get_event_loop

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.rewards.formats import ANSWER, MTGRPO_XML, SEARCH_R1, TextFormat


class _TagParser(ToolParser):
    """One call per turn, between the tags of the format; the first closing tag decides what the turn is."""

    rules: TextFormat

    async def extract_tool_calls(
        self, responses_ids: list[int], tools: list[Any] | None = None
    ) -> tuple[str, list[FunctionCall]]:
        """The turn's text, and its call if the first thing that it closes is a call."""
        text = await get_event_loop().run_in_executor(None, self.tokenizer.decode, responses_ids)
        inside = first_closed(text, self.rules)
        names = [tool.function.name for tool in tools or []]
        return text, [] if inside is None else [self._call(inside, names)]

    def _call(self, inside: str, names: Sequence[str]) -> FunctionCall:
        raise NotImplementedError


@ToolParser.register("search_r1")
class SearchR1Parser(_TagParser):
    """``<search>query</search>``: a call of the search tool (the only tool, or the one called ``search``)."""

    rules = SEARCH_R1

    def _call(self, inside: str, names: Sequence[str]) -> FunctionCall:
        name = names[0] if len(names) == 1 else "search"
        return FunctionCall(name=name, arguments=json.dumps({"query": inside.strip()}, ensure_ascii=False))


@ToolParser.register("mtgrpo_xml")
class XmlParser(_TagParser):
    """``<tool>{"name": …, "args": {…}}</tool>``, the paper's own format; ``arguments`` is understood as well.

    JSON that cannot be read is still a call: it goes to the tool as it is and comes back as an error that the
    model sees and the execution reward counts, as in the paper's code.
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
    """What the turn's call holds, if a call is the first thing that it closes; None otherwise."""
    close = f"</{rules.call}>"
    end = text.find(close)
    answered = text.find(f"</{ANSWER}>")
    if end < 0 or 0 <= answered < end:
        return None
    start = text.rfind(f"<{rules.call}>", 0, end)
    return text[start + len(rules.call) + 2 : end] if start >= 0 else None


class CuttingServer:
    """verl's LLM client, whose completions end with the first closing tag of a call or an answer.

    Engines that know stop strings stop there; in every case what they give is cut right after the token that
    completes the tag, ids and log-probabilities alike. Tokens are never split: if the tag ends inside a token,
    that token stays whole.
    """

    def __init__(self, server: Any, rules: TextFormat, decode: Callable[[Sequence[int]], str], *, stop: bool) -> None:
        self._server, self._decode, self._stop = server, decode, stop
        self.closing = (f"</{rules.call}>", f"</{ANSWER}>")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    async def generate(self, *args: Any, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        """As the server's own, cut."""
        if self._stop:
            asked = sampling_params.get("stop") or []
            own = [asked] if isinstance(asked, str) else list(asked)
            sampling_params = {**sampling_params, "stop": [*own, *self.closing]}
        output = await self._server.generate(*args, sampling_params=sampling_params, **kwargs)
        keep = tokens_to_keep(output.token_ids, self.closing, self._decode)
        if keep == len(output.token_ids):
            return output
        if getattr(output, "routed_experts", None) is not None:
            raise ConfigError(
                "a turn is cut at its closing tag in this format, and the routed experts of the model cannot be cut "
                "with it; set actor_rollout_ref.rollout.enable_rollout_routing_replay=False, or speak hermes"
            )
        log_probs = output.log_probs[:keep] if output.log_probs else output.log_probs
        return output.model_copy(update={"token_ids": output.token_ids[:keep], "log_probs": log_probs})


def tokens_to_keep(ids: Sequence[int], closing: Sequence[str], decode: Callable[[Sequence[int]], str]) -> int:
    """Fewest leading tokens whose text holds one of ``closing``; all of them if none does."""

    def closed(count: int) -> bool:
        text = decode(ids[:count])
        return any(tag in text for tag in closing)

    if not closed(len(ids)):
        return len(ids)
    low, high = 1, len(ids)  # closed(high); a longer prefix of a closed one is closed
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if closed(middle) else (middle + 1, high)
    return low
