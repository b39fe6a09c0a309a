"""The judge as a scorer of proposed turns, over real HTTP."""

from __future__ import annotations

import asyncio
import json

import pytest

pytest.importorskip("openai")

from tests.judge_server import JudgeServer
from verl_mtgrpo.errors import JudgeError
from verl_mtgrpo.rewards import ToolCall, Transcript, Turn
from verl_mtgrpo.rewards.judge_client import JudgeSettings
from verl_mtgrpo.rewards.judge_turn import TurnJudge

pytestmark = pytest.mark.network

CALL = ToolCall("search", "{}", result="It is in Oslo.")
SO_FAR = Transcript(
    (Turn("searching", (0, 2), (CALL,)),), "answered", ({"role": "user", "content": "Where is it?"},), format="hermes"
)
PROPOSED = Turn("calls again", (4, 6), (ToolCall("search", "{}", ok=False, seen=False),))


@pytest.fixture
def server():
    found = JudgeServer()
    yield found
    found.stop()


def judge(server, **settings):
    port = server.http.server_address[1]
    return TurnJudge(JudgeSettings(base_url=f"http://127.0.0.1:{port}/v1", model="judge", **settings))


def test_the_judge_scores_a_proposal_and_sees_no_accepted_answer(server):
    server.answer = lambda body, n: json.dumps({"reason": "repeats", "score": -0.5})
    assert asyncio.run(judge(server, rubric="Be strict.").score(SO_FAR, PROPOSED)) == -0.5
    system, user = (message["content"] for message in server.bodies[0]["messages"])
    assert system.startswith("Be strict.")
    shown = json.loads(user.splitlines()[1])
    assert shown["question"] == "Where is it?" and "accepted answers" not in shown
    assert [(one["assistant wrote"], one["tool returned"]) for one in shown["turns"]] == [
        ("searching", ["It is in Oslo."]),
        ("calls again", []),
    ]


def test_a_reply_without_a_score_in_range_is_an_error(server):
    server.answer = lambda body, n: '{"reason": "great", "score": 7}'
    with pytest.raises(JudgeError, match="in two tries"):
        asyncio.run(judge(server).score(SO_FAR, PROPOSED))
