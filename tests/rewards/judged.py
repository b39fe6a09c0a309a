"""A rollout that a judge grades, and the judge with a server of the test."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.judge_server import JudgeServer
from verl_mtgrpo.rewards import ToolCall, Transcript, Turn
from verl_mtgrpo.rewards.judge import Judge
from verl_mtgrpo.rewards.judge_client import JudgeSettings

TRUTH = {"target": ["Paris"]}
CALL = "<think>look</think><search>capital of France</search>"
TRANSCRIPT = Transcript(
    turns=(
        Turn(CALL, (0, 1), (ToolCall("search", "{}", result="Paris is the capital."),)),
        Turn(CALL, (2, 3), (ToolCall("search", "{}", result="Lyon."),)),
        Turn("<think>found</think><answer>Paris</answer>", (4, 5)),
    ),
    end_reason="answered",
    prompt=({"role": "user", "content": "What is the capital of France?"},),
    format="search_r1",
)


def settings(server: JudgeServer, **changes: Any) -> JudgeSettings:
    return JudgeSettings(**{"base_url": server.url, "model": "m", "timeout_s": 20.0, "retries": 2, **changes})


def judge(server: JudgeServer, transcript: Transcript = TRANSCRIPT, **changes: Any):
    async def go():
        return await Judge(settings(server, **changes))(transcript, TRUTH)

    return asyncio.run(go())


def case_of(body: dict[str, Any]) -> dict[str, Any]:
    return json.loads(body["messages"][1]["content"].split("\n")[1])
