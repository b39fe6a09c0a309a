"""Test issue 21, sections A, B and F35: faults that a second look found.

| number | input | got | right value | source |
|---|---|---|---|---|
| A2 | `</answer>.`, whose `>.` is one token | paper_v2 -1.0 | 1.0, as for `</answer>!` | Search-R1, generation.py |
| A1 | gpt-oss in a cut format | stops at `<\\|end\\|>`, behind the thought | `<\\|return\\|>` | its generation config |
| A6 | a call with 5000 brackets or digits, or `\\ud83d` | the group is lost | a failed call | verl's `_call_tool` |
| A7 | a tool's own use of `documents`, `latency_s` | the group is lost | a call like others | docs |
| F35 | a result with half a surrogate pair | the group is lost | `?`, as of our search | retrieval/content.py |
| B11 | a judge whose reason speaks of `</think>` | no score | the score | by hand |
| B11 | a judge's server that sends no completion with status 200 | AttributeError | `JudgeError` | by hand |
| B12 | `{"target": [["Oslo", "Christiania"]]}`, a missing one as NaN | `"['Oslo', …"`, `"nan"` | both; none | by hand |
| B12 | gold "Ås" in "Fåsen", "7月" in "17月" | a hit | none | issue 21: shorter than 3 characters |
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("verl")

from verl.tools.function_tool import FUNCTION_TOOL_REGISTRY, function_tool

from tests.agent_loops import transcript_of
from tests.judge_server import JudgeServer
from tests.regressions.tokens import (
    CHAT,
    END,
    RAW,
    SPOKEN,
    answer,
    assert_paid,
    assert_tokens,
    call,
    encode,
    needs_qwen3,
    qwen3,
    result,
    roll,
)
from verl_mtgrpo.errors import DataError, DropRollout
from verl_mtgrpo.rewards import Transcript, Turn
from verl_mtgrpo.rewards.answers import accepted_answers, contains
from verl_mtgrpo.rewards.judge import Judge
from verl_mtgrpo.rewards.judge_client import JudgeSettings
from verl_mtgrpo.rewards.judge_paper import read_turns
from verl_mtgrpo.rewards.judge_text import read_score
from verl_mtgrpo.rewards.paper_v2 import paper_v2
from verl_mtgrpo.rewards.search_r1 import search_r1_format

pytestmark = [pytest.mark.network, pytest.mark.compose]

GIVES: dict[str, Any] = {}


@pytest.fixture(scope="module")
def tools() -> list[Any]:
    @function_tool
    def search(query: str) -> Any:
        """Search.

        Args:
            query: What to look for.
        """
        return GIVES.get(query, f"Doc 1 about {query}: it is in Oslo.")

    return [FUNCTION_TOOL_REGISTRY.pop("search")]  # leave verl's global registry as it was


# ---- A2: text after a closing tag within its token


@needs_qwen3
@pytest.mark.parametrize("behind", [".", ",", '"', "</", "\n\n", "!", " and more"])
@pytest.mark.parametrize("cls", [CHAT, RAW])
def test_what_shares_a_token_with_the_closing_tag_is_no_part_of_the_turn(config, tools, cls, behind):
    """Tokens stay whole, and rewards are those of a turn that ends with its tag, whatever the vocabulary merges."""
    tokenizer = qwen3("instruct")
    turns = [call("search_r1", "Pim"), answer("search_r1")]
    output = roll(cls, config, tokenizer, tools, [turn + behind + END for turn in turns], "search_r1")
    merged = len(encode(tokenizer, turns[0] + behind)) == len(encode(tokenizer, turns[0]))
    kept = behind if merged else ""
    shown = result("search_r1", "Pim")
    between = f"\n\n{shown}\n\n"
    if cls is CHAT:
        between = f"{END}\n<|im_start|>user\n<tool_response>\n{shown}\n</tool_response>{END}\n<|im_start|>assistant\n"
    ends = assert_tokens(output, tokenizer, [(turns[0] + kept, 1), (between, 0), (turns[1] + kept, 1)])
    transcript = transcript_of(output)
    assert [turn.text for turn in transcript.turns] == turns
    rewards = paper_v2(transcript, ["Oslo"])
    assert (rewards.turns, rewards.outcome) == (pytest.approx((0.3, 0.0)), 1.0)  # formulas.md
    assert search_r1_format(transcript, ["Oslo"]).outcome == 1.0
    assert_paid(output, ends)


# ---- A6: calls that verl's loop cannot read

BRACKETS = "[" * 5000
UNREADABLE = [
    # content of the call, kind of the record
    (BRACKETS, "bad_arguments"),
    (f'{{"name": "search", "args": {"[" * 950 + "]" * 950}}}', "bad_arguments"),
    (f'{{"name": "search", "args": {{"query": {"1" * 5000}}}}}', "bad_arguments"),
    (r'{"name": "\ud83d", "args": {"query": "Pim"}}', "unknown_tool"),
    (r'{"name": "search", "args": {"query": "\ud83d"}}', None),
]


@needs_qwen3
@pytest.mark.parametrize(("inside", "kind"), UNREADABLE, ids=["brackets", "depth", "digits", "name", "query"])
@pytest.mark.parametrize("cls", [CHAT, RAW])
def test_a_call_that_json_chokes_on_is_the_models_failure(config, tools, cls, inside, kind):
    turn = f"<reasoning>I look.</reasoning><tool>{inside}</tool>"
    script = [turn + END, answer("mtgrpo_xml") + END]
    output = roll(cls, config, qwen3("instruct"), tools, script, "mtgrpo_xml", response_length=9000)
    transcript = transcript_of(output)
    ((one,), ()) = [turn.tool_calls for turn in transcript.turns]
    assert (one.ok, one.error_kind, one.seen, transcript.end_reason) == (kind is None, kind, True, "answered")


# ---- A7 and F35: results of tools


@needs_qwen3
@pytest.mark.parametrize(("format", "cls"), SPOKEN)
def test_half_a_surrogate_pair_in_a_result(config, tools, format, cls):
    """No tokenizer accepts it: the rollout failed, and verl left its group out."""
    GIVES["Pim"] = "half \ud83d of 😀 it"
    script = [call(format, "Pim") + END, answer(format) + END]
    output = roll(cls, config, qwen3("instruct"), tools, script, format)
    GIVES.clear()
    ((one,), ()) = [turn.tool_calls for turn in transcript_of(output).turns]
    assert (one.result, one.ok, one.defused) == ("half ? of 😀 it", True, False)


@needs_qwen3
@pytest.mark.parametrize(
    "info",
    [
        {"documents": [{"doc_id": "1", "contents": "Oslo"}]},
        {"documents": ["Oslo"]},
        {"documents": 3},
        {"documents": None, "faults": None, "latency_s": None},
        {"faults": 2, "latency_s": "3 ms"},
    ],
    ids=str,
)
def test_a_tool_may_use_our_names_for_its_own(config, tools, info):
    GIVES["Pim"] = ("It is in Oslo.", 0.5, info)
    script = [call("hermes", "Pim") + END, answer("hermes") + END]
    output = roll(CHAT, config, qwen3("instruct"), tools, script, "hermes")
    GIVES.clear()
    ((one,), ()) = [turn.tool_calls for turn in transcript_of(output).turns]
    assert (one.result, one.ok, one.reward, one.documents, one.faults) == ("It is in Oslo.", True, 0.5, (), ())
    assert isinstance(one.latency_s, float) and one.latency_s >= 0


# ---- B11: replies of judges

REASON = "the closing </think> tag is missing"


@pytest.mark.parametrize("before", ["", "<think>It is </think> ", "<think>a</think>b</think>\n```json\n"])
def test_a_reason_that_speaks_of_a_thoughts_end(before):
    behind = "\n```" if "```" in before else ""
    assert read_score(f'{before}{{"reason": "{REASON}", "score": 0.5}}{behind}', (-1.0, 1.0)) == 0.5
    assert read_turns(f'{before}{{"reason": "{REASON}", "scores": [0.3, 1.0]}}{behind}', 2, -0.4) == [0.3, 1.0]


def test_what_is_still_no_score():
    assert read_score('{"score": 1}</think>{"score": 0}', (-1.0, 1.0)) == 0.0  # the first is a thought
    assert read_score(f'{{"score": 1{"0" * 400}}}', (-1.0, 1.0)) is None  # OverflowError
    assert read_score('{"score": NaN}', (-1.0, 1.0)) is None
    assert read_score("</think>" * 200_000, (-1.0, 1.0)) is None  # in linear time


COMPLETION = '{"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [%s]%s}'
MESSAGE = '{"index": 0, "message": {"role": "assistant", "content": %s}}'


def asked(kind: str, body: str) -> Any:
    """Return the judge's rewards for a rollout that only answers, with a server that sends this."""
    server = JudgeServer()

    def reply(handler: Any, _: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body.encode())

    server.reply = reply  # type: ignore[method-assign]
    transcript = Transcript((Turn("<answer>Oslo</answer>", (0, 1)),), "answered")
    try:
        settings = JudgeSettings(base_url=server.url, model="m", retries=0, on_error="drop")
        return asyncio.run(Judge(settings)(transcript, ["Oslo"]))
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        ("text/html", "<html>Sign in</html>", "sent '<html>Sign in"),
        ("application/json", "[]", "expected a chat completion"),
        ("application/json", "null", "expected a chat completion"),
        ("application/json", "{oops", "JSONDecodeError"),
        ("application/json", COMPLETION % ('{"index": 0, "message": null}', ""), "expected a chat completion"),
        (
            "application/json",
            COMPLETION % (MESSAGE % '[{"type": "text", "text": "1"}]', ""),
            "expected a chat completion",
        ),
        ("application/json", COMPLETION % (MESSAGE % r'"\ud83d"', ""), "gave no score in two tries"),
    ],
)
def test_a_server_that_sends_no_completion_is_a_judge_that_failed(kind, body, says):
    """With ``on_error=drop`` that costs one rollout; any other error costs the group."""
    with pytest.raises(DropRollout, match=says):
        asked(kind, body)


def test_a_completion_that_counts_no_tokens_is_one():
    body = COMPLETION % (MESSAGE % r'"{\"score\": 1}"', ', "usage": {}')
    assert asked("application/json", body).outcome == 1.0


# ---- B12: short answers in other scripts


@pytest.mark.parametrize(
    ("text", "gold", "found"),
    [
        ("Fåsen", "Ås", False),
        ("Malmö är en stad", "Å", False),
        ("han bor i Ås kommune", "Ås", True),
        ("прогноз нет", "не", False),
        ("это не он", "не", True),
        ("2017月", "7月", False),
        ("它在7月出版", "7月", True),
        ("他住在東京都", "東京", True),  # no spaces: as a substring
        ("서울의 수도", "서울", True),
    ],
)
def test_a_short_answer_is_a_whole_word_in_every_script_with_words(text, gold, found):
    assert contains(text, gold) is found


# ---- ground truths of rows that `mtgrpo data` did not write


@pytest.mark.parametrize(
    ("truth", "accepted"),
    [
        ({"target": [["Oslo", "Christiania"], ["Kristiania"]]}, ("Oslo", "Christiania", "Kristiania")),
        (np.array([["Oslo", "Christiania"]], dtype=object), ("Oslo", "Christiania")),
        ({"target": [math.nan, "Oslo"]}, ("Oslo",)),
        ([7, True], ("7", "yes", "true")),
    ],
)
def test_answers_in_lists_of_lists_are_answers(truth, accepted):
    assert accepted_answers(truth) == accepted


@pytest.mark.parametrize("truth", [b"Oslo", {"target": {"Oslo": 1}}, [{"text": "Oslo"}], [math.nan], 7, [[]]])
def test_what_is_no_answer_is_refused(truth):
    with pytest.raises(DataError, match=r"expected \{'target'"):
        accepted_answers(truth)
