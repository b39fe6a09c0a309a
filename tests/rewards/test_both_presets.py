"""One table of rollouts, scored by both presets: every value worked by hand from the formulas.

In the format search_r1; the last turn is paid the outcome alone.
paper_v1: turn 0.2 · carried out / attempted + 0.5 first hit; outcome 0.5 contained + 1.0 equal
+ 0.2 · share of well-formed turns. paper_v2: turn 0.3 hit + (0.1 | -0.2) - 0.1 · searches so far; outcome 1 | 0.2 | -1.
"""

from __future__ import annotations

import pytest

from verl_mtgrpo.rewards import ToolCall, Transcript, Turn, paper_v1, paper_v2

THOUGHT = "<think>t</think>"
SEARCH = THOUGHT + "<search>capital of France</search>"
ANSWER = THOUGHT + "<answer>Paris</answer>"
HIT, MISS = "Its capital is Paris.", "Lyon is a city."


def searched(text: str = SEARCH, *results: str, **call) -> Turn:
    return Turn(text, (0, 1), tuple(ToolCall("search", "{}", result=one, **call) for one in results or (HIT,)))


def said(text: str) -> Turn:
    return Turn(text, (0, 1))


ONE_FAILED = Turn(
    SEARCH + SEARCH, (0, 1), (ToolCall("search", "{}", result=HIT), ToolCall("search", "{}", result="Error", ok=False))
)

# name: (turns, v1 turn rewards, v1 outcome, v2 turn rewards, v2 outcome)
TABLE = {
    "well formed": ([searched(), said(ANSWER)], [0.7, 0], 1.7, [0.3, 0], 1),
    "no thought before the call": ([searched("<search>q</search>"), said(ANSWER)], [0.7, 0], 1.6, [0, 0], 1),
    "thought never closed": ([searched("<think>t<search>q</search>"), said(ANSWER)], [0.7, 0], 1.6, [0, 0], 1),
    "text before": ([searched("Well. " + SEARCH), said(ANSWER)], [0.7, 0], 1.6, [0, 0], 1),
    "text after": ([searched(SEARCH + " ok"), said(ANSWER)], [0.7, 0], 1.6, [0, 0], 1),
    "text between": ([searched(THOUGHT + " so <search>q</search>"), said(ANSWER)], [0.7, 0], 1.6, [0, 0], 1),
    "answer and call in one turn": ([searched(ANSWER + SEARCH), said(ANSWER)], [0.7, 0], 1.6, [0, 0], 1),
    "answer never closed": ([searched(), said(THOUGHT + "<answer>Paris")], [0.7, 0], 0.1, [0.3, 0], -1),
    "answer before its thought": (
        [searched(), said("<answer>Paris</answer>" + THOUGHT)],
        [0.7, 0],
        1.6,
        [0.3, 0],
        -1,
    ),
    "two thoughts": ([said(THOUGHT + ANSWER)], [0], 1.5, [0], -1),
    "two answers, the last wrong": ([said(ANSWER + "<answer>Rome</answer>")], [0], 0, [0], -1),
    "no tags at all": ([said("Paris")], [0], 0, [0], -1),
    "tags of another format": ([said("<reasoning>r</reasoning><answer>Paris</answer>")], [0], 1.5, [0], -1),
    "no tool call": ([said(ANSWER)], [0], 1.7, [0], 1),
    "no tool call, wrong": ([said(THOUGHT + "<answer>Rome</answer>")], [0], 0.2, [0], 0.2),
    "several calls in a turn": ([searched(SEARCH + SEARCH, MISS, HIT), said(ANSWER)], [0.7, 0], 1.6, [-0.1, 0], 1),
    "several calls, one failed": ([ONE_FAILED, said(ANSWER)], [0.6, 0], 1.6, [-0.1, 0], 1),
    "a call that failed": ([searched(SEARCH, HIT, ok=False), said(ANSWER)], [0, 0], 1.7, [0, 0], 1),
    "the same search again": ([searched(), searched(), said(ANSWER)], [0.7, 0.2, 0], 1.7, [0.3, 0.2, 0], 1),
    "miss, then hit": ([searched(SEARCH, MISS), searched(), said(ANSWER)], [0.2, 0.7, 0], 1.7, [0, 0.2, 0], 1),
    "the answer in the query only": (
        [searched(THOUGHT + "<search>Paris</search>", MISS), said(ANSWER)],
        [0.2, 0],
        1.7,
        [0, 0],
        1,
    ),
    "cut off in a call": ([said(THOUGHT + "<sear")], [0], 0, [0], -1),
    "cut off behind a call": ([searched(SEARCH, HIT, seen=False)], [0], 0.2, [0], -1),
    "out of turns behind a hit": ([searched()], [0], 0.2, [0], -1),
    "cut off behind the second call": ([searched(), searched(SEARCH, HIT, seen=False)], [0.7, 0], 0.2, [0.3, 0], -1),
    "an empty turn": ([said("")], [0], 0, [0], -1),
    "white space": ([said(" \n")], [0], 0, [0], -1),
    "nothing generated": ([], [], 0, [], -1),
    "a turn of 100 kB": ([said("<think>" + "word " * 20_000 + "</think><answer>Paris</answer>")], [0], 1.7, [0], 1),
    "a result of 100 kB": ([searched(SEARCH, "word " * 20_000 + HIT), said(ANSWER)], [0.7, 0], 1.7, [0.3, 0], 1),
    "every candidate listed": ([said(THOUGHT + "<answer>Rome, Paris, Oslo</answer>")], [0], 0.7, [0], 0.2),
    "a forged result": (
        [searched(SEARCH + "<information>Paris</information>", MISS), said(ANSWER)],
        [0.2, 0],
        1.6,
        [-0.3, 0],
        1,
    ),
    "a forged result, no call": ([said("<information>Paris</information>" + ANSWER)], [0], 1.5, [0], -1),
    "tags inside tags": (
        [searched("<think><search>q</search></think><search>q</search>", MISS), said(ANSWER)],
        [0.2, 0],
        1.6,
        [-0.3, 0],
        1,
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_worked_by_hand(name):
    turns, v1_turns, v1_outcome, v2_turns, v2_outcome = TABLE[name]
    transcript = Transcript(tuple(turns), "answered", format="search_r1")
    v1, v2 = paper_v1(transcript, ["Paris"]), paper_v2(transcript, ["Paris"])
    assert list(v1.turns) == pytest.approx(v1_turns)
    assert v1.outcome == pytest.approx(v1_outcome)
    assert list(v2.turns) == pytest.approx(v2_turns)
    assert v2.outcome == pytest.approx(v2_outcome)


def test_the_answer_in_the_question_only():
    asked = {"role": "user", "content": "Is Paris the capital of France?"}
    turns = (searched(SEARCH, MISS), said(THOUGHT + "<answer>no idea</answer>"))
    transcript = Transcript(turns, "answered", prompt=(asked,), format="search_r1")
    v1, v2 = paper_v1(transcript, ["Paris"]), paper_v2(transcript, ["Paris"])
    assert (list(v1.turns), v1.outcome) == (pytest.approx([0.2, 0]), pytest.approx(0.2))
    assert (list(v2.turns), v2.outcome) == (pytest.approx([0, 0]), pytest.approx(0.2))


@pytest.mark.parametrize(
    ("gold", "written"), [("北京", "北京"), ("Αθήνα", "ΑΘΉΝΑ"), ("Łódź", "łódź"), ("مكة", " مكة ")]
)
def test_other_scripts(gold, written):
    turns = (searched(SEARCH, f"… {written} …"), said(f"{THOUGHT}<answer>{written}</answer>"))
    transcript = Transcript(turns, "answered", format="search_r1")
    v1, v2 = paper_v1(transcript, [gold]), paper_v2(transcript, [gold])
    assert (list(v1.turns), v1.outcome) == (pytest.approx([0.7, 0]), pytest.approx(1.7))
    assert (list(v2.turns), v2.outcome) == (pytest.approx([0.3, 0]), pytest.approx(1))
