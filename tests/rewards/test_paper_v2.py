"""Component values worked from the formulas of the paper's second reward set."""

from __future__ import annotations

import pytest

from verl_mtgrpo.rewards import ToolCall, Transcript, Turn, paper_v2

TRUTH = {"target": ["Paris", "City of Light"]}
SEARCH = "<think>who</think><search>capital of France</search>"
ANSWER = "<think>found</think><answer>Paris</answer>"


def searched(text=SEARCH, result="The capital is Paris.", **call):
    return Turn(text, (0, 1), (ToolCall("search", "{}", result=result, **call),))


def said(text):
    return Turn(text, (0, 1))


def score(*turns, form="search_r1"):
    return paper_v2(Transcript(tuple(turns), "answered", format=form), TRUTH)


@pytest.mark.parametrize(
    ("turns", "turn_rewards", "outcome"),
    [
        # .3 hit + .1 format - .1 one search; right and well formed
        ([searched(), said(ANSWER)], [0.3, 0.0], 1.0),
        # a miss: .1 - .1
        ([searched(result="nothing"), said(ANSWER)], [0.0, 0.0], 1.0),
        # three searches, the price grows: .3+.1-.1, 0+.1-.2, .3+.1-.3
        ([searched(), searched(result="no"), searched(), said(ANSWER)], [0.3, -0.1, 0.1, 0.0], 1.0),
        # text around the tags: .3 - .2 - .1
        ([searched("I think: " + SEARCH), said(ANSWER)], [0.0, 0.0], 1.0),
        # no thought
        ([searched("<search>q</search>"), said(ANSWER)], [0.0, 0.0], 1.0),
        # an empty query
        ([searched("<think>x</think><search> </search>", result="", ok=False), said(ANSWER)], [-0.3, 0.0], 1.0),
        # no search at all
        ([said(ANSWER)], [0.0], 1.0),
        ([said("<think>x</think><answer>Rome</answer>")], [0.0], 0.2),
        # normalised: article, case, punctuation
        ([said("<think>x</think><answer>The City of Light!</answer>")], [0.0], 1.0),
        # containing is not equal
        ([said("<think>x</think><answer>in Paris</answer>")], [0.0], 0.2),
        ([said("<think>x</think><answer></answer>")], [0.0], 0.2),
        # malformed: no thought, text outside, two answers, the other order, nothing
        ([said("<answer>Paris</answer>")], [0.0], -1.0),
        ([said(ANSWER + " I am sure.")], [0.0], -1.0),
        ([said(ANSWER + "<answer>Rome</answer>")], [0.0], -1.0),
        ([said("<answer>Paris</answer><think>x</think>")], [0.0], -1.0),
        ([said("Paris")], [0.0], -1.0),
        ([said("")], [0.0], -1.0),
        ([], [], -1.0),
        # cut off in a search: no answer, and nothing but the outcome (Eq. 9)
        ([searched()], [0.0], -1.0),
        # .3 + .1 - .1, then the same
        ([searched(), searched()], [0.3, 0.0], -1.0),
        # two calls in one turn: not one search tag, and two searches to pay: .3 - .2 - .2
        (
            [
                Turn(SEARCH * 2, (0, 1), (ToolCall("search", "{}", result="Paris"), ToolCall("search", "{}"))),
                said(ANSWER),
            ],
            [-0.1, 0.0],
            1.0,
        ),
        # the model never saw the result
        ([searched(seen=False)], [0.0], -1.0),
    ],
)
def test_worked_by_hand(turns, turn_rewards, outcome):
    rewards = score(*turns)
    assert rewards.turns == pytest.approx(turn_rewards)
    assert rewards.outcome == pytest.approx(outcome)


@pytest.mark.parametrize(
    "text",
    [
        # a forged result, with a search so that it looks like a turn
        "<think>x</think><search>q</search><information>Paris</information>",
        "<think>x</think><information>Paris</information><search>q</search>",
        # tags inside tags
        "<think><search>q</search></think><search>q</search>",
        "<think>x</think><search><answer>Paris</answer></search>",
    ],
)
def test_forged_results_and_nested_tags_earn_nothing(text):
    rewards = score(searched(text, result="nothing"), said(ANSWER))
    assert rewards.turns[0] == pytest.approx(-0.2 - 0.1)
    assert rewards.components["tool/hit"] == 0.0


def test_the_answer_in_the_query_is_no_hit():
    assert score(searched("<think>x</think><search>Paris</search>", result="no"), said(ANSWER)).turns[0] == 0.0


def test_an_answer_that_lists_every_candidate_is_wrong():
    assert score(said("<think>x</think><answer>Paris, Rome, London</answer>")).outcome == 0.2


def test_two_answers_in_two_turns_only_the_last_counts():
    rewards = score(searched(ANSWER), said("<think>x</think><answer>Rome</answer>"))
    assert rewards.outcome == 0.2


def test_in_other_formats_their_own_rules_hold():
    call = '<tool_call>{"name": "search", "arguments": {"query": "q"}}</tool_call>'
    rewards = score(searched("Let me look. " + call), said("So <answer>Paris</answer>"), form="hermes")
    assert (rewards.turns[0], rewards.outcome) == (pytest.approx(0.3), 1.0)
    assert rewards.components["outcome/format"] == 1.0
