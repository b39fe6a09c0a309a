"""Make rollouts of a given size for step.py: a scripted server and search behind verl's agent loop and ours."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap, ToolListWrap
from verl.tools.base_tool import BaseTool
from verl.tools.schemas import OpenAIFunctionToolSchema, ToolResponse
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.rollout.replica import TokenOutput

QWEN3 = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers" / "qwen3"
"""The real tokenizer, if it is available."""
PROMPT = [{"role": "user", "content": "Where is the tower that the second queen of the northern isles built?"}]
SCHEMA = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Searches an encyclopedia.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}
CALLS = {
    "hermes": '<tool_call>{{"name": "search", "arguments": {{"query": "{query}"}}}}</tool_call>',
    "search_r1": "<search>{query}</search>",
}


@dataclass(frozen=True)
class Script:
    """The model's text in one rollout, turn by turn, and the size of the rollout in bytes of text."""

    said: list[list[int]]
    text_bytes: int


class Search(BaseTool):
    """Answers each query with the passages that were made up for it."""

    def __init__(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # verl prints the schema
            super().__init__({}, OpenAIFunctionToolSchema.model_validate(SCHEMA))
        self.found: dict[str, list[dict[str, Any]]] = {}

    def text(self, query: str) -> str:
        """Return the text for the model."""
        return "\n".join(f"Doc {n} (Title: {one['title']}) {one['text']}" for n, one in enumerate(self.found[query], 1))

    async def execute(self, instance_id: str, parameters: dict[str, Any], **_: Any) -> tuple[ToolResponse, float, dict]:
        """Answer as the package's search tool does."""
        query = parameters["query"]
        info = {"ok": True, "error_kind": None, "documents": self.found[query], "latency_s": 0.2}
        return ToolResponse(text=self.text(query)), 0.0, info


class Writer:
    """Makes up rollouts: six tenths of the tokens are passages, the rest is the model's text."""

    def __init__(self, tokenizer: Any, search: Search, seed: int = 0) -> None:
        self.tokenizer, self.search, self.rng = tokenizer, search, random.Random(seed)
        syllables = ["ka", "lo", "mi", "tor", "en", "sha", "ri", "bel", "ud", "ost"]
        words = ["".join(self.rng.choices(syllables, k=self.rng.randint(1, 3))) for _ in range(4000)]
        self.ids = tokenizer.encode(" ".join(self.rng.choices(words, k=60000)), add_special_tokens=False)

    def text(self, tokens: int) -> str:
        """Return some made-up words."""
        start = self.rng.randrange(len(self.ids) - tokens)
        return self.tokenizer.decode(self.ids[start : start + tokens]).strip()

    def script(self, *, turns: int, tokens: int, passages: int, spoken: str) -> Script:
        """Make one rollout of about this many tokens."""
        said, size = [], len(PROMPT[0]["content"])
        thoughts = int(0.4 * tokens / turns)
        found = (tokens - turns * thoughts) // max(1, turns - 1)
        for turn in range(turns):
            thought = f"<think>{self.text(thoughts)}</think>"
            if turn == turns - 1:
                text = f"{thought}<answer>{self.rng.choice(('Oslo', 'Rome'))}</answer>"
            else:
                query = f"tower {len(self.search.found)}"
                self.search.found[query] = self._passages(passages, found)
                text = thought + CALLS[spoken].format(query=query)
                size += len(self.search.text(query).encode())
            size += len(text.encode())
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            # An engine that knows stop strings stops at a closing tag; others go on to the end of the turn.
            said.append(ids if spoken == "search_r1" else [*ids, self.tokenizer.eos_token_id])
        return Script(said, size)

    def _passages(self, count: int, tokens: int) -> list[dict[str, Any]]:
        place = self.rng.choice(("Oslo", "Bergen"))
        texts = [f"{self.text(max(1, tokens // count - 14))} {place}." for _ in range(count)]
        return [{"id": f"p{n}", "title": "Tower", "text": text, "score": 1.5} for n, text in enumerate(texts)]


class Server:
    """Takes the place of verl's LLM client and generates the script's turns."""

    def __init__(self, script: Script, longest_wait: float = 0.0, seed: int = 0) -> None:
        self.left, self.wait, self.rng = list(script.said), longest_wait, random.Random(seed)

    async def generate(self, request_id: str, prompt_ids: list[int], sampling_params: dict, **_: Any) -> TokenOutput:
        """Return the next turn."""
        if self.wait:
            await asyncio.sleep(self.rng.uniform(0, self.wait))
        ids = self.left.pop(0)
        extra = {"global_steps": 1, "min_global_steps": 1, "max_global_steps": 1}
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), stop_reason="completed", extra_fields=extra)


def load_tokenizer() -> Any:
    """Return Qwen3's tokenizer, or one that this package can make."""
    if QWEN3.is_dir():
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(QWEN3)
    from verl_mtgrpo.demo.policy import build_tokenizer

    return build_tokenizer(["ka lo mi tor en sha ri bel ud ost Tower Doc Title think answer"], [])


def configure(*overrides: str, ours: bool, turns: int, tokens: int, spoken: str = "hermes") -> Any:
    """Return verl's config of a run, with the package's settings or without."""
    mine = ["hydra.searchpath=[pkg://verl_mtgrpo.config]", "+mtgrpo=mt_grpo"] if ours else []
    rollout = {
        "n": 8,
        "prompt_length": 512,
        "response_length": 3 * tokens,
        "multi_turn.enable": True,
        "multi_turn.format": spoken,
        "multi_turn.max_assistant_turns": turns,
        "multi_turn.max_tool_response_length": 10**6,
    }
    sizes = [f"actor_rollout_ref.rollout.{key}={value}" for key, value in rollout.items()]
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", [*mine, "actor_rollout_ref.rollout.name=vllm", *sizes, *overrides])


async def run_loop(kind: type, config: Any, tokenizer: Any, search: Search, server: Server) -> AgentLoopOutput:
    """Run one rollout with a new agent loop, as verl's worker does."""
    loop = kind(
        trainer_config=DictConfigWrap(config),
        server_manager=server,
        tokenizer=tokenizer,
        processor=None,
        dataset_cls=RLHFDataset,
        data_config=DictConfigWrap(config.data),
        hf_model_type="qwen3",
        tools=ToolListWrap([search]),
    )
    return await loop.run({"temperature": 1.0, "logprobs": True}, raw_prompt=PROMPT)


def event_loop_lateness(
    kind: type, tokenizer: Any, *, ours: bool, spoken: str, rollouts: int, tokens: int, turns: int, wait: float
) -> dict[str, float]:
    """Measure how late a 1 ms timer fires on the event loop of a worker that runs all these rollouts at once."""
    search = Search()
    config = configure(ours=ours, turns=turns, tokens=tokens, spoken=spoken)
    writer = Writer(tokenizer, search)
    scripts = [writer.script(turns=turns, tokens=tokens, passages=3, spoken=spoken) for _ in range(rollouts)]
    late: list[float] = []

    async def beat() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append(time.perf_counter() - start - 0.001)

    async def everything() -> list[AgentLoopOutput]:
        task = asyncio.create_task(beat())
        servers = [Server(script, wait, seed) for seed, script in enumerate(scripts)]
        outputs = await asyncio.gather(*(run_loop(kind, config, tokenizer, search, one) for one in servers))
        task.cancel()
        return outputs

    gc.collect()  # otherwise a collection may hit either side, and it takes half a second
    start, used = time.perf_counter(), time.process_time()
    outputs = asyncio.run(everything())
    seconds, used = time.perf_counter() - start, time.process_time() - used
    late.sort()
    assert all(output.num_turns >= turns for output in outputs), "each rollout went to its end"
    return {
        "p50_ms": 1e3 * late[len(late) // 2],
        "p99_ms": 1e3 * late[int(0.99 * (len(late) - 1))],
        "max_ms": 1e3 * late[-1],
        "seconds": seconds,
        "processor_s": used,
        "tokens": sum(len(output.response_ids) for output in outputs) / len(outputs),
    }


def as_json(value: Any) -> str:
    """Return JSON that a person can read."""
    return json.dumps(value, indent=1)
