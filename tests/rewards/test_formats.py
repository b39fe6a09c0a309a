"""Well-formed turns, and text soup: never an exception, always in range, linear time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_mtgrpo.rewards import PRESETS, ToolCall, Transcript, Turn
from verl_mtgrpo.rewards.formats import FORMATS, HERMES, MTGRPO_XML, SEARCH_R1, v1_format_score, v1_tag_score

JSON = '{"name": "search", "arguments": {"query": "q"}}'


@pytest.mark.parametrize(
    ("rules", "text", "call", "answer"),
    [
        (HERMES, f"<tool_call>{JSON}</tool_call>", True, False),
        (HERMES, f"I look it up.\n<tool_call>\n{JSON}\n</tool_call>\n", True, False),
        (HERMES, f"<tool_call>{JSON}</tool_call> done", False, False),
        (HERMES, "<tool_call>[1]</tool_call>", False, False),
        (HERMES, '<tool_call>{"name": 3, "arguments": {}}</tool_call>', False, False),
        (HERMES, "It is <answer>Oslo</answer>", False, True),
        (HERMES, "<answer>Oslo</answer> I think", False, False),
        (HERMES, "<tool_response>Oslo</tool_response><answer>Oslo</answer>", False, False),
        (HERMES, "Oslo", False, False),
        (SEARCH_R1, "<think>x</think>\n<search>q</search>\n", True, False),
        (SEARCH_R1, "<think></think><search>q</search>", True, False),
        (SEARCH_R1, "<think>x</think> so <search>q</search>", False, False),
        (SEARCH_R1, "<search>q</search>", False, False),
        (SEARCH_R1, "<think>x</think><answer>Oslo</answer>", False, True),
        (SEARCH_R1, "</think><think><answer>Oslo</answer>", False, False),
        (MTGRPO_XML, f"<reasoning>x</reasoning><tool>{JSON}</tool>", True, False),
        (MTGRPO_XML, '<reasoning>x</reasoning><tool>{"name": "s", "args": {}}</tool>', True, False),
        (MTGRPO_XML, "<reasoning>x</reasoning><tool>q</tool>", False, False),
        (MTGRPO_XML, "<reasoning>x</reasoning><answer>Oslo</answer>", False, True),
    ],
)
def test_well_formed(rules, text, call, answer):
    assert (rules.well_formed_call(text), rules.well_formed_answer(text)) == (call, answer)
    assert rules.well_formed(text) == (call or answer)


_PIECES = ["<think>", "</think>", "<search>", "</search>", "<answer>", "</answer>", "<tool>", "</tool>", "<result>",
           "</result>", "<information>", "<tool_call>", "</tool_call>", "<reasoning>", "</reasoning>", JSON, "Paris",
           "<", ">", "/", " ", "\n", "{", '"', "\\", "\x00", "é", "北"]  # fmt: skip
soup = st.lists(st.sampled_from(_PIECES), max_size=30).map("".join)
RANGES = {
    "paper_v1": ((0.0, 0.7), (0.0, 1.9)),
    "paper_v2": ((-0.2 - 0.1 * 8, 0.3), (-1.0, 1.0)),
    "search_r1_em": ((0.0, 0.0), (0.0, 1.0)),
    "search_r1_format": ((0.0, 0.0), (0.0, 1.0)),
    "tool_use": ((0.0, 0.5), (0.0, 1.0)),
    "env": ((0.0, 0.0), (0.0, 0.0)),  # a tool that says nothing of rewards
}


@settings(max_examples=300)
@given(texts=st.lists(soup, max_size=4), result=soup, calls=st.integers(0, 2), form=st.sampled_from(sorted(FORMATS)))
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_tag_soup_never_raises_and_stays_in_range(preset, texts, result, calls, form):
    made = (ToolCall("search", "{}", result=result),) * calls
    transcript = Transcript(tuple(Turn(text, (0, 1), made) for text in texts), "answered", format=form)
    rewards = PRESETS[preset](transcript, ["Paris"])
    (turn_low, turn_high), (low, high) = RANGES[preset]
    assert len(rewards.turns) == len(texts)
    assert all(turn_low - 1e-9 <= reward <= turn_high + 1e-9 for reward in rewards.turns)
    assert low - 1e-9 <= rewards.outcome <= high + 1e-9
    assert all(value is None or 0 <= value <= 8 for value in rewards.components.values())


@settings(max_examples=200)
@given(text=soup)
def test_scores_are_shares(text):
    assert 0 <= v1_format_score([text]) <= 1
    assert 0 <= v1_tag_score([text]) <= 1


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("form", sorted(FORMATS))
@pytest.mark.parametrize("piece", ["<", "<think>", "<answer>", "</answer>", "<tool_call>", "[", "{", "Paris "])
def test_a_megabyte_of_anything_takes_under_a_second(preset, form, piece):
    text = piece * (1_000_000 // len(piece))
    transcript = Transcript((Turn(text, (0, 1), (ToolCall("search", "{}", result=text),)), Turn(text, (2, 3))),
                            "answered", format=form)  # fmt: skip
    start = time.process_time()  # processor time, because other jobs may be running
    PRESETS[preset](transcript, ["Paris"])
    assert time.process_time() - start < 1.0
