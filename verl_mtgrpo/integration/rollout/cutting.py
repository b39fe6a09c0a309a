"""Cut a turn after its first closing tag, in the formats whose turns end there.

This is not part of :mod:`.tool_parsers`, because importing verl's parsers imports its agent loops and ours with them,
and ours needs this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.rollout.proxy import Proxy
from verl_mtgrpo.rewards.formats import ANSWER, CUT_FORMATS, TextFormat
from verl_mtgrpo.threads import DECODE, apart

_ROLLOUT = "actor_rollout_ref.rollout"
_WINDOW = 256
"""Number of tokens to decode at once."""


class CuttingServer(Proxy):
    """verl's LLM client with completions that end at the first closing tag of a call or an answer.

    Engines that know stop strings stop there by themselves. In any case the completion is cut right after the token
    that completes the tag, ids and log-probabilities alike. Tokens are never split: if the tag ends inside a token,
    the token stays whole, and its text after the tag is not part of the turn's text (:func:`cut_text`).

    Args:
        server: verl's client.
        rules: The format; None if ``closing`` says it all.
        decode: Turns token ids into text.
        stop: True if the engine supports stop strings.
        end: The token that ends a turn in the chat template; without it, an engine with a base model would not stop
            there.
        closing: Further texts that end a completion.
    """

    def __init__(
        self,
        server: Any,
        rules: TextFormat | None,
        decode: Callable[[Sequence[int]], str],
        *,
        stop: bool,
        end: int | None = None,
        closing: Sequence[str] = (),
    ) -> None:
        super().__init__(server)
        self._decode, self._stop, self._end = decode, stop, end
        self.closing = (*(closing_tags(rules) if rules else ()), *closing)
        self._spoken = rules.name if rules else ", ".join(closing)
        self._tail = _longest(self.closing)

    async def generate(self, *args: Any, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        """Generate like the wrapped server, and cut the output."""
        if self._stop:
            asked = sampling_params.get("stop") or []
            own = [asked] if isinstance(asked, str) else list(asked)
            sampling_params = {**sampling_params, "stop": [*own, *self.closing]}
        if self._end is not None:
            ends = [*(sampling_params.get("stop_token_ids") or []), self._end]
            sampling_params = {**sampling_params, "stop_token_ids": list(dict.fromkeys(ends))}
        output = await self._original.generate(*args, sampling_params=sampling_params, **kwargs)
        keep = await self._tokens_to_keep(output.token_ids)
        if keep == len(output.token_ids):
            return output
        if getattr(output, "routed_experts", None) is not None:
            raise routed_experts_are_not_cut(self._spoken)
        log_probs = output.log_probs[:keep] if output.log_probs else output.log_probs
        return output.model_copy(update={"token_ids": output.token_ids[:keep], "log_probs": log_probs})

    async def _tokens_to_keep(self, ids: Sequence[int]) -> int:
        """Return :func:`tokens_to_keep`, computed in a thread for long turns so that other rollouts do not wait.

        An engine that knows stop strings has stopped at the first closing tag, so the last tokens are checked first.
        """
        tail = ids[-self._tail :]
        if self._stop and is_closed(tail, self.closing, self._decode):
            return len(ids) - len(tail) + _first_closed(tail, self.closing, self._decode)
        return await apart(DECODE, tokens_to_keep, ids, self.closing, self._decode)


def routed_experts_are_not_cut(spoken: str) -> ConfigError:
    """Return the error for a run that cuts turns and replays routed experts."""
    return ConfigError(
        f"turns of {spoken} are cut at their closing tag, but routed experts cannot be cut with them",
        fix=f"set {_ROLLOUT}.enable_rollout_routing_replay=False, or {_ROLLOUT}.multi_turn.format=hermes",
    )


def raw_agent_needs_tags(spoken: str) -> ConfigError:
    """Return the error for ``mtgrpo_raw_agent`` with a format whose turns are not cut."""
    return ConfigError(
        f"mtgrpo_raw_agent needs a format with closing tags ({', '.join(CUT_FORMATS)}), but "
        f"{_ROLLOUT}.multi_turn.format={spoken}",
        fix="set it to one of these",
    )


def is_closed(ids: Sequence[int], closing: Sequence[str], decode: Callable[[Sequence[int]], str]) -> bool:
    """Return True if the text of these tokens contains one of ``closing``."""
    text = decode(ids)
    return any(tag in text for tag in closing)


def closing_tags(rules: TextFormat) -> tuple[str, str]:
    """Return the tags that end a turn."""
    return f"</{rules.call}>", f"</{ANSWER}>"


def cut_text(text: str, rules: TextFormat) -> str:
    """Return a turn's text up to and including its first closing tag.

    The last token may contain more than the end of the tag: ``>.`` is one token in Qwen3's vocabulary, so
    ``</answer>.`` cannot be cut between the two characters. Rewards should not see that ``.`` and call the turn
    malformed, since after ``</answer>!``, where the ``!`` is a token by itself, they would not see it either. Engines
    with stop strings cut their text in the same way, and so does Search-R1 (PeterGriffinJin/Search-R1 @a14dc3a,
    search_r1/llm_agent/generation.py, ``_postprocess_responses``).
    """
    ends = [at + len(tag) for tag in closing_tags(rules) if (at := text.find(tag)) >= 0]
    return text[: min(ends)] if ends else text


def tokens_to_keep(ids: Sequence[int], closing: Sequence[str], decode: Callable[[Sequence[int]], str]) -> int:
    """Return how many leading tokens it takes until their text contains one of ``closing``; all if it never does.

    Looks at a few hundred tokens at a time: a tokenizer holds Python's interpreter lock while it decodes, so decoding a
    turn of 12,000 tokens at once would block the event loop even from another thread.
    """
    overlap = _longest(closing)
    for start in range(0, max(len(ids), 1), _WINDOW):
        window = ids[start : start + _WINDOW + overlap]
        if is_closed(window, closing, decode):
            return start + _first_closed(window, closing, decode)
    return len(ids)


def _first_closed(ids: Sequence[int], closing: Sequence[str], decode: Callable[[Sequence[int]], str]) -> int:
    low, high = 1, len(ids)  # the first `high` tokens contain a tag; so does every longer prefix of one that does
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_closed(ids[:middle], closing, decode) else (middle + 1, high)
    return low


def _longest(closing: Sequence[str]) -> int:
    """Return the largest number of tokens of a closing tag; its first token may begin with the rest of a character."""
    return max(map(len, closing)) + 4
