"""Rollouts with the real Qwen3 tokenizer and what their tokens have to be."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from verl.workers.rollout.replica import TokenOutput

from tests.agent_loops import run, scored, transcript_of
from verl_mtgrpo.integration.rollout.agent_loop import RawContinuationAgentLoop, TurnToolAgentLoop

QWEN3 = Path(__file__).parents[3] / "shared" / "data" / "tokenizers" / "qwen3"
needs_qwen3 = pytest.mark.skipif(not QWEN3.is_dir(), reason=f"needs the real tokenizer in {QWEN3}")
CHAT, RAW = TurnToolAgentLoop, RawContinuationAgentLoop
END = "<|im_end|>"
OPENS = "<think>\n"


@cache
def qwen3(variant: str) -> Any:
    """Return the tokenizer, not to be changed.

    ``instruct`` is as it is, ``base`` has the end token of a base model, ``thinking`` is as Qwen3-…-Thinking-2507.
    """
    tokenizer = AutoTokenizer.from_pretrained(QWEN3, **({"eos_token": "<|endoftext|>"} if variant == "base" else {}))
    if variant == "thinking":
        header = "{{- '<|im_start|>assistant\\n' }}"
        assert tokenizer.chat_template.count(header) == 1
        tokenizer.chat_template = tokenizer.chat_template.replace(header, "{{- '<|im_start|>assistant\\n<think>\\n' }}")
    return tokenizer


class Engine:
    """Says what the script says, text or ids, and stops where an engine does: at the end token or at one of
    ``stop_token_ids``. It knows no stop strings, so the loop has to cut."""

    def __init__(self, _seed: int, tokenizer: Any, script: list[Any]):
        self.tokenizer, self.script = tokenizer, script
        self.prompts: list[list[int]] = []
        Engine.last = self

    async def generate(self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any) -> Any:
        self.prompts.append(list(prompt_ids))
        said = self.script.pop(0)
        ids = self.tokenizer.encode(said, add_special_tokens=False) if isinstance(said, str) else list(said)
        stops = {self.tokenizer.eos_token_id, *(sampling_params.get("stop_token_ids") or ())}
        length = next((n for n, one in enumerate(ids, start=1) if one in stops), len(ids))
        ids, log_probs = ids[:length], [-0.001 * n for n in range(1, length + 1)]
        # As vLLM's server answers an aborted request: no ids, and no list of log-probs.
        return TokenOutput(token_ids=ids, log_probs=log_probs or None, extra_fields={"global_steps": 1})


def roll(cls: Any, config: Any, tokenizer: Any, tools: Any, script: list[Any], format: str, **rollout: Any) -> Any:
    room = {"prompt_length": 1000, "response_length": 1000, "format": format, **rollout}
    return run(cls, config, tokenizer, tools, script=script, server=Engine, **room)


def encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def assert_tokens(output: Any, tokenizer: Any, pieces: list[tuple[str, int]], length: int | None = None) -> list[int]:
    """Ids, mask and log-probs are those of the pieces, up to ``length``; returns each turn's last position."""
    ids, mask, log_probs, ends, position = [], [], [], [], 0
    for text, generated in pieces:
        new = encode(tokenizer, text)
        ids += new
        mask += [generated] * len(new)
        log_probs += [-0.001 * n if generated else 0.0 for n in range(1, len(new) + 1)]
        if generated and (length is None or position < length):
            ends.append(min(position + len(new), length or 10**9) - 1)
        position += len(new)
    assert tokenizer.decode(output.response_ids) == tokenizer.decode(ids[:length])
    assert (output.response_ids, output.response_mask) == (ids[:length], mask[:length])
    assert output.response_logprobs == pytest.approx(log_probs[:length])
    return ends


def assert_paid(output: Any, ends: list[int]) -> None:
    """Turn k's reward, k + 0.5, lies on its last generated token and nowhere else."""
    transcript = transcript_of(output)
    assert [turn.span[1] - 1 for turn in transcript.turns] == ends
    paid = [k + 0.5 for k in range(len(ends))]
    scores = scored(output, paid).as_dict()["rm_scores"]
    assert {at: scores[at].item() for at in scores.nonzero().flatten().tolist()} == dict(zip(ends, paid, strict=True))


def found(query: str) -> str:
    return f"Doc 1 about {query}: it is in Oslo."


def message(*results: str) -> str:
    """Return Qwen3's text between two turns: the results, in one user message."""
    blocks = "".join(f"\n<tool_response>\n{result}\n</tool_response>" for result in results)
    return f"\n<|im_start|>user{blocks}{END}\n<|im_start|>assistant\n"


def call(format: str, query: str) -> str:
    if format == "hermes":
        return f'<tool_call>\n{{"name": "search", "arguments": {{"query": "{query}"}}}}\n</tool_call>'
    if format == "search_r1":
        return f"<think>I look.</think><search>{query}</search>"
    return f'<reasoning>I look.</reasoning><tool>{{"name": "search", "args": {{"query": "{query}"}}}}</tool>'


def answer(format: str) -> str:
    tag = {"hermes": "", "search_r1": "think", "mtgrpo_xml": "reasoning"}[format]
    return (f"<{tag}>It is there.</{tag}>" if tag else "It is there. ") + "<answer>Oslo</answer>"


def result(format: str, query: str) -> str:
    tag = {"hermes": "", "search_r1": "information", "mtgrpo_xml": "result"}[format]
    return f"<{tag}>{found(query)}</{tag}>" if tag else found(query)


SPOKEN = [("hermes", CHAT), ("search_r1", CHAT), ("search_r1", RAW), ("mtgrpo_xml", CHAT), ("mtgrpo_xml", RAW)]


def pieces_of(tokenizer: Any, cls: Any, format: str, queries: list[str]) -> list[tuple[str, int]]:
    """Turns that each call once, then an answer. In hermes the model ends a turn itself, with its own end token; the
    other formats cut behind the closing tag, and what ends the turn is nobody's token (mask 0)."""
    pieces: list[tuple[str, int]] = []
    for query in queries:
        shown = result(format, query)
        if cls is RAW:
            pieces += [(call(format, query), 1), (f"\n\n{shown}\n\n", 0)]
        elif format == "hermes":
            # verl puts the newline of `<|im_end|>\n` there only behind `<|im_end|>`.
            behind = message(shown) if tokenizer.eos_token == END else message(shown).removeprefix("\n")
            pieces += [(call(format, query) + tokenizer.eos_token, 1), (behind, 0)]
        else:
            pieces += [(call(format, query), 1), (END + message(shown), 0)]
    return [*pieces, (answer(format) + (tokenizer.eos_token if format == "hermes" else ""), 1)]
