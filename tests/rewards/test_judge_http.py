"""Test a judge's client with failing requests over real HTTP, and behind verl's router if it is installed.

The bodies are those of vLLM (vllm/entrypoints/openai), SGLang, OpenAI and llama.cpp (server-context.cpp), as quoted in
issues of their repositories.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest

pytest.importorskip("openai")

from tests.judge_server import JudgeServer, Says
from tests.rewards.judged import TRANSCRIPT, TRUTH, case_of, judge, settings
from verl_mtgrpo.errors import DropRollout, JudgeError
from verl_mtgrpo.rewards import ToolCall, Transcript, Turn
from verl_mtgrpo.rewards.judge import Judge
from verl_mtgrpo.rewards.judge_paper import PaperJudge

pytestmark = pytest.mark.network

ANSWER_ONLY = Transcript((TRANSCRIPT.turns[-1],), "answered")  # one request


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    server = JudgeServer()
    server.scoring(0, 0, outcome=1)
    yield server
    server.stop()


def failing_first(server: JudgeServer, said: Any, times: int = 1) -> None:
    well = server.answer
    server.answer = lambda body, n: said if n <= times else well(body, n)


def error(message: str, kind: str = "", code: Any = None) -> str:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


# ---- what can never work


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 413, 422])
@pytest.mark.parametrize("insists", [{}, {"x-should-retry": "true", "Retry-After": "0"}], ids=["", "insists"])
def test_what_can_never_work_is_sent_once(server: JudgeServer, status, insists):
    """Not even if the server's headers ask for another try, which the openai client by itself would obey."""
    server.answer = lambda body, n: Says(status, error("no"), insists)
    with pytest.raises(JudgeError, match="m at http://127"):
        judge(server, ANSWER_ONLY, retries=3)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "environment variable OPENAI_API_KEY"), (404, r"base_url \(with its /v1\)"), (400, "no, thanks")],
)
def test_a_refusal_says_what_to_do(server: JudgeServer, status, says):
    server.answer = lambda body, n: Says(status, error("no, thanks"))
    with pytest.raises(JudgeError, match=rf"refused the request, which is not sent again: .*{says}"):
        judge(server, ANSWER_ONLY)


@pytest.mark.parametrize(
    "body",
    [
        error("temperature must be 1", "BadRequestError", 400),  # vLLM, SGLang
        json.dumps({"object": "error", "message": "no", "type": "BadRequestError", "param": None, "code": 400}),
        error("litellm.BadRequestError: no", "invalid_request_error", "400"),
        error("invalid key", "", "401"),
    ],
)
def test_a_proxys_5xx_that_hands_on_a_refusal_is_final(server: JudgeServer, body):
    server.answer = lambda _, n: Says(502, body)
    with pytest.raises(JudgeError, match="not sent again"):
        judge(server, ANSWER_ONLY, retries=3)
    assert len(server.bodies) == 1


# ---- what passes


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504])
def test_what_passes_is_sent_again(server: JudgeServer, status):
    failing_first(server, Says(status, error("busy", "rate_limit_exceeded", status)))
    assert judge(server, ANSWER_ONLY, retries=1).outcome == 1.0
    assert len(server.bodies) == 2


@pytest.mark.clock
@pytest.mark.parametrize(
    ("status", "form"), [(408, "seconds"), (425, "seconds"), (429, "milliseconds"), (503, "seconds"), (503, "date")]
)
def test_the_pause_is_as_long_as_the_server_asks(server: JudgeServer, status, form):
    """Longer than the pause of 0.5 s at most that would come first; a date has whole seconds."""
    headers = {
        "seconds": {"Retry-After": "1"},
        "milliseconds": {"Retry-After-Ms": "1000"},
        "date": {"Retry-After": formatdate(int(time.time()) + 3, usegmt=True)},
    }[form]
    failing_first(server, Says(status, error("later"), headers))
    start = time.monotonic()
    assert judge(server, ANSWER_ONLY, retries=1).outcome == 1.0
    assert time.monotonic() - start > 0.99


def test_a_server_that_asks_to_wait_for_an_hour_is_not_waited_for(server: JudgeServer):
    server.answer = lambda body, n: Says(429, error("quota"), {"Retry-After": "3600"})
    with pytest.raises(JudgeError, match=r"failed after 1 tries: .*asks to wait 3600 s"):
        judge(server, ANSWER_ONLY)


# ---- longer than the judge's context

TOO_LONG = [
    (400, error("This model's maximum context length is 8192 tokens. However, you requested 9000.", "BadRequestError")),
    (400, error("The decoder prompt (length 9000) is longer than the maximum model length of 8192.")),  # vLLM
    (400, error("The input (9000 tokens) is longer than the model's context length (8192 tokens).")),  # SGLang
    (400, error("too long", "invalid_request_error", "context_length_exceeded")),  # OpenAI
    (400, error("the request exceeds the available context size", "exceed_context_size_error", 400)),  # llama.cpp
    (413, "<html>413 Request Entity Too Large</html>"),  # nginx
    (500, '{"detail": "{\\"message\\": \\"This model\'s maximum context length is 8192 tokens\\"}"}'),  # a gateway
]
LONG = "Vel is a city. " * 600  # 9,000 characters


def rollout(*results: str) -> Transcript:
    turns = [Turn("<search>Vel</search>", (0, 1), (ToolCall("search", "{}", result=result),)) for result in results]
    return replace(TRANSCRIPT, turns=(*turns, TRANSCRIPT.turns[-1]))


def with_room_for(server: JudgeServer, characters: int, status: int, body: str) -> None:
    well = server.answer
    server.answer = lambda asked, n: (
        Says(status, body) if len(asked["messages"][1]["content"]) > characters else well(asked, n)
    )


def shown_results(server: JudgeServer) -> list[str]:
    """Results in the last request about turns."""
    cases = [case for case in map(case_of, server.bodies) if "turns" in case]
    return [result for turn in cases[-1]["turns"] for result in turn["tool returned"]]


@pytest.mark.parametrize(("status", "body"), TOO_LONG)
def test_a_rollout_longer_than_the_judges_context_is_shown_with_shorter_results(server, caplog, status, body):
    """Refused whole and at 4,500 characters; at 2,250 it fits. What is short stays whole, what the model wrote too."""
    server.scoring(1, 1, outcome=1)
    with_room_for(server, 4000, status, body)
    rewards = judge(server, rollout(LONG, "Pim."), retries=3)
    assert rewards.turns == pytest.approx((0.9, 0.8, 0.0))
    first, second = shown_results(server)
    assert first == f"{LONG[:2250]} [… {len(LONG) - 2250} more characters, not shown to you]"
    assert second == "Pim."
    assert len(server.bodies) == 4, "three about the turns, none of them twice; one about the answer"
    assert rewards.components["judge/shortened"] == 1.0
    assert "shown the first 4500 characters" in caplog.text and "judge/shortened" in caplog.text


def test_the_papers_judge_is_shown_shorter_results_too(server: JudgeServer):
    server.answer = lambda body, n: '{"scores": [0.3, 1.0]}'
    with_room_for(server, 6000, *TOO_LONG[0])
    rewards = asyncio.run(PaperJudge(settings(server), "turns")(rollout(LONG), TRUTH))
    assert (rewards.turns, rewards.outcome) == ((0.3, 0.0), 1.0)
    assert rewards.components["judge/shortened"] == 1.0


def test_a_rollout_that_is_too_long_without_its_results_is_an_error(server: JudgeServer):
    with_room_for(server, 200, *TOO_LONG[0])
    silent = Turn("I do not know", (0, 1))  # so the answer is not asked about
    cut = replace(TRANSCRIPT, turns=(rollout(LONG).turns[0], silent))
    with pytest.raises(JudgeError, match=r"maximum context length is 8192.*serve the judge with a longer context"):
        judge(server, cut)
    lengths = [len(case_of(body)["turns"][0]["tool returned"][0]) for body in server.bodies]
    assert lengths == sorted(set(lengths), reverse=True) and len(lengths) == 8, "9000, 4500, ..., 70 characters"
    with pytest.raises(DropRollout):
        judge(server, cut, on_error="drop")
    server.bodies.clear()
    written = Turn("a" * 900, (0, 1), (ToolCall("search", "{}"),))
    with pytest.raises(JudgeError, match="longer context"):
        judge(server, replace(TRANSCRIPT, turns=(written, silent)))
    assert len(server.bodies) == 1, "there is nothing to cut"


def test_the_cache_tells_whole_results_from_shorter_ones(server: JudgeServer, tmp_path):
    """A judge that gets a longer context is asked about the whole rollout."""
    cache = {"cache": str(tmp_path / "scores.db")}
    server.scoring(1, outcome=1)
    well = server.answer
    with_room_for(server, 6000, *TOO_LONG[0])
    assert judge(server, rollout(LONG), **cache).turns == (0.9, 0.0)
    again = judge(server, rollout(LONG), **cache)
    assert (again.components["judge/cached"], again.components["judge/tokens"]) == (2.0, 0.0)
    server.answer = well
    assert judge(server, rollout(LONG), **cache).components["judge/shortened"] == 0.0


# ---- behind verl's router, which answers every error of the engine with a bare 500


@pytest.fixture
def router(server: JudgeServer) -> Iterator[str]:
    pytest.importorskip("verl")
    import uvicorn
    from verl.experimental.reward_loop.router.naive_router import NaiveRouter

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = NaiveRouter(worker_urls=[server.url.removesuffix("/v1")]).app
    running = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}/v1"
    running.should_exit = True
    thread.join()


def through(router: str, server: JudgeServer, transcript: Transcript, **changes: Any):
    return asyncio.run(Judge(settings(server, base_url=router, **changes))(transcript, TRUTH))


def test_a_prompt_that_is_too_long_is_known_from_the_engines_tokenize(router, server):
    """Not one request is sent twice; the engine counts a token for each 4 characters."""
    server.scoring(1, outcome=1)
    with_room_for(server, 4000, *TOO_LONG[0])
    server.tokenize = lambda body: {"count": len(body["prompt"]) // 4, "max_model_len": 1000, "tokens": []}
    rewards = through(router, server, rollout(LONG), retries=3)
    assert rewards.turns == (0.9, 0.0)
    bodies = [json.dumps(body) for body in server.bodies]
    assert len(bodies) == len(set(bodies)) == 4


@pytest.mark.parametrize("pages", [None, lambda body: {"count": 10, "max_model_len": 1000}, lambda body: {"count": 9}])
def test_any_other_failure_behind_the_router_is_tried_again_as_often_as_asked_for(router, server, pages):
    server.tokenize = pages
    failing_first(server, 503)
    assert through(router, server, ANSWER_ONLY, retries=1).outcome == 1.0
    server.bodies.clear()
    server.answer = lambda body, n: 400
    with pytest.raises(JudgeError, match="failed after 2 tries"):
        through(router, server, ANSWER_ONLY, retries=1)
    assert len(server.bodies) == 2
