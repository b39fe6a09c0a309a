"""verl's agent loops on a seeded server with a scripted model: what tests of a rollout share.

The fixtures ``config``, ``tokenizer`` and ``tools`` of conftest.py go with it.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import random
from typing import Any

from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap
from verl.tools.function_tool import FUNCTION_TOOL_REGISTRY, function_tool
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.rollout.replica import TokenOutput

from tests.composed import composed
from verl_mtgrpo.demo.policy import build_tokenizer, search_call
from verl_mtgrpo.integration.rollout.search_tool import SearchTool
from verl_mtgrpo.integration.rollout.transcripts import pack, unpack
from verl_mtgrpo.retrieval import BM25Index
from verl_mtgrpo.rewards import Transcript

PROMPT = [{"role": "user", "content": "Where is the tower of Pim?"}]


def final_answer(text: str) -> str:
    return f"<answer>{text}</answer>"


GOOD, BOOM = search_call("tower of Pim"), search_call("boom")
UNKNOWN = '<tool_call>{"name": "lookup", "arguments": {"query": "x"}}</tool_call>'
BAD_JSON = '<tool_call>{"name": "search", "arguments": {oops</tool_call>'
NO_DICT = '<tool_call>{"name": "search", "arguments": "tower"}</tool_call>'
TEXTS = [GOOD, GOOD + GOOD, BOOM, UNKNOWN, BAD_JSON, NO_DICT, "", "thinking " + GOOD, "word " * 40]
TEXTS += [final_answer("Oslo"), final_answer("Oslo") + " and more", "no tags at all"]


class SeededServer:
    """Takes the place of verl's LLM client: generates one of TEXTS, chosen by the seed and the turns so far."""

    def __init__(self, seed: int, tokenizer, script: list[str] | None = None):
        self.seed, self.tokenizer, self.script = seed, tokenizer, script

    async def generate(self, request_id, prompt_ids, sampling_params, **_):
        rng = random.Random(f"{self.seed} {prompt_ids}")
        text = self.script.pop(0) if self.script is not None else rng.choice(TEXTS)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        ids = [*ids, self.tokenizer.eos_token_id] if text else []
        await asyncio.sleep(0)
        return TokenOutput(
            token_ids=ids,
            log_probs=[-rng.random() for _ in ids],
            stop_reason="completed",
            extra_fields={"global_steps": 3},
        )


def loop_config():
    """Return what an agent loop reads of verl's config."""
    whole = composed("actor_rollout_ref.rollout.name=hf")
    rollout = OmegaConf.masked_copy(whole.actor_rollout_ref, ["rollout"])
    return OmegaConf.create({"actor_rollout_ref": rollout, "data": {"apply_chat_template_kwargs": {}}})


def loop_tokenizer():
    return build_tokenizer([text for text in TEXTS if text], ["Pim", "Oslo"])


def search_function(answers=None):
    """Return a tool ``search`` made of a function, and leave verl's global registry as it was.

    It answers with what ``answers`` has for the query; without ``answers`` it fails for "boom".
    """

    @function_tool
    def search(query: str) -> str:
        """Search.

        Args:
            query: What to look for.
        """
        if answers is None and query == "boom":
            raise RuntimeError("no connection")
        return (answers or {}).get(query, f"Doc 1 about {query}: it is in Oslo.")

    return FUNCTION_TOOL_REGISTRY.pop("search")


def search_tool(index: BM25Index, **settings: Any) -> SearchTool:
    """Return the packaged tool on an index in a folder."""
    return SearchTool({"type": "native", "index": str(index.path), **settings}, None)


def run(cls, config, tokenizer, tools, *, seed=0, script=None, server=SeededServer, row=None, **rollout):
    config = config.copy()
    for key, value in {"prompt_length": 64, "response_length": 120, **rollout}.items():
        node = config.actor_rollout_ref.rollout
        (node if key in node else node.multi_turn)[key] = value

    async def go():
        loop = cls(
            trainer_config=DictConfigWrap(config),
            server_manager=server(seed, tokenizer, script=list(script) if script is not None else None),
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=RLHFDataset,
            data_config=DictConfigWrap(config.data),
            hf_model_type="qwen2",
            tools=ToolListWrap(tools),
        )
        return await loop.run({"temperature": 1.0, "logprobs": True}, raw_prompt=PROMPT, **(row or {}))

    return asyncio.run(go())


def transcript_of(output):
    """Return the transcript, which goes to the reward worker and into dumps without loss."""
    transcript = output.extra_fields["transcript"]
    assert pickle.loads(pickle.dumps(transcript)) == transcript
    assert Transcript.from_dict(json.loads(unpack(pack(transcript)))) == transcript
    return transcript


def scored(output, rewards):
    """Do what verl's worker does once the reward manager has answered."""
    output.reward_score = sum(rewards)
    output.extra_fields["reward_extra_info"] = {"turn_rewards": json.dumps(rewards)}
    return output
