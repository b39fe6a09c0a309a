"""Make our reward manager as verl's reward worker does, and a rollout for it."""

from __future__ import annotations

import asyncio

import numpy as np
import torch
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.registry import get_reward_manager_cls

from tests.composed import composed
from verl_mtgrpo.demo.policy import build_tokenizer
from verl_mtgrpo.rewards import ToolCall, Transcript, Turn

CALL = '<tool_call>{"name": "search", "arguments": {"query": "q"}}</tool_call>'
TRANSCRIPT = Transcript(
    turns=(
        Turn(CALL, (0, 2), (ToolCall("search", "{}", result="It is Oslo."),)),
        Turn("<answer>Oslo</answer>", (4, 6)),
    ),
    end_reason="answered",
)


def config(*overrides: str):
    return composed("actor_rollout_ref.rollout.n=4", *overrides, preset="mt_grpo")


def manager(*overrides: str, template: str | None = "{{ messages }}", **more):
    tokenizer = build_tokenizer(["a b c"], [])
    tokenizer.chat_template = template

    async def make():
        return get_reward_manager_cls("mtgrpo")(config(*overrides), tokenizer=tokenizer, compute_score=None, **more)

    return asyncio.run(make())


def score(manager, extra_fields) -> dict:
    row = DataProto.from_dict(
        tensors={"responses": torch.zeros(1, 6)},
        non_tensors={
            "uid": np.array(["u-1"], dtype=object),
            "reward_model": np.array([{"ground_truth": {"target": ["Oslo"]}}], dtype=object),
            "tool_extra_fields": np.array([extra_fields], dtype=object),
            "data_source": np.array(["toy"], dtype=object),
            "extra_info": np.array([{"id": "7"}], dtype=object),
        },
    )
    return asyncio.run(manager.run_single(row))
