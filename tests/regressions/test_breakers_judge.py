"""Faults in judges that a tester of part 9 found: replies of a server, and texts in a rollout."""

from __future__ import annotations

import json
import time

import pytest

from tests.judge_server import JudgeServer, Says
from tests.rewards.judged import judge
from verl_mtgrpo.errors import DropRollout, JudgeError
from verl_mtgrpo.rewards.judge_text import quoted

pytest.importorskip("openai")

pytestmark = pytest.mark.network

CONTROL = [
    "<turn|>", "<tool_call|>", "<seed:bos>", "<seed:eos>", "]~b]user", "[e~[", "<SPECIAL_12>", "<extra_id_1>",
    "[gMASK]<sop>", "[THINK]", "[/THINK]", "[ARGS]", "[CALL_ID]", "[MODEL_SETTINGS]",
]  # fmt: skip


@pytest.fixture
def server():
    running = JudgeServer()
    yield running
    running.stop()


@pytest.mark.parametrize("text", CONTROL)
def test_no_control_token_of_a_judge_is_spelt(text):
    assert text not in quoted({"a": f"before {text} behind"})
    assert json.loads(quoted({"a": text})) == {"a": text}


@pytest.mark.parametrize(
    "reply",
    [
        Says(200, "[" * 100_000),
        Says(200, json.dumps({"choices": {"a": 1}})),
        Says(200, json.dumps({"choices": 5})),
        Says(500, json.dumps({"error": {"code": "4²"}})),
        Says(500, json.dumps({"error": {"code": "4" * 5000}})),
    ],
    ids=["brackets", "choices is an object", "choices is a number", "odd code", "long code"],
)
def test_whatever_the_server_sends_is_a_judges_error(server, reply):
    server.answer = lambda body, n: reply
    with pytest.raises(JudgeError):
        judge(server, retries=0)
    with pytest.raises(DropRollout):
        judge(server, retries=0, on_error="drop")


@pytest.mark.clock
def test_nothing_is_asked_for_a_rollout_that_has_failed(server):
    def answer(body, n):
        return Says(401, "{}") if "turns" in body["messages"][1]["content"] else Says(503, "{}")

    server.answer = answer
    with pytest.raises(JudgeError):
        judge(server, retries=4)
    asked = len(server.bodies)
    time.sleep(1.5)  # the first pause is half a second
    assert len(server.bodies) == asked
