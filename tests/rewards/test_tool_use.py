"""The preset tool_use on transcripts worked by hand: what each component means, for tools that are no search.

Weights unless a test says otherwise: succeeded 0.2, changed 0.3; used, repeat_price and call_price are off.
"""

from __future__ import annotations

import json

import pytest

from verl_mtgrpo.errors import DataError, TranscriptError
from verl_mtgrpo.rewards import ToolCall, Transcript, Turn, TurnRewards, tool_use
from verl_mtgrpo.rewards.any_tool.calls import telling_words
from verl_mtgrpo.rewards.any_tool.settings import ToolUseSettings
from verl_mtgrpo.rewards.measures import charge_repeats
from verl_mtgrpo.rewards.presets import check_numbers

QUESTION = ({"role": "system", "content": "Use the tools."}, {"role": "user", "content": "How many orders has Mira?"})
ALONE = "the last turn is paid the outcome alone"


def sql(query: str, result: str, **more) -> ToolCall:
    return ToolCall("sql", json.dumps({"query": query}), result, **more)


def rollout(*turns: tuple[ToolCall, ...] | str, end: str = "answered") -> Transcript:
    """Make a rollout: a text is a turn without calls, a tuple the calls of a turn."""
    made = [
        Turn(turn, (9 * k, 9 * k + 3)) if isinstance(turn, str) else Turn("I look.", (9 * k, 9 * k + 3), turn)
        for k, turn in enumerate(turns)
    ]
    return Transcript(tuple(made), end, prompt=QUESTION)


def paid(*turns: tuple[ToolCall, ...] | str, truth: object = "641", **weights: float) -> list[float]:
    return list(tool_use(rollout(*turns), truth, **weights).turns)


RIGHT = "<answer>641</answer>"
FOUND = sql("SELECT count(*) FROM orders", "641")
BROKEN = sql("SELEC", "Error: syntax", ok=False, error_kind="tool_error", why="near SELEC")


def test_a_rollout_by_hand_with_all_components():
    """Turn 1: one of two calls succeeded, and it is new. Turn 2: the same call again, ok but told before. Then answer.

    Turn 1: 0.2 · 1/2 + 0.3 · 1/2 + 0.4 · 1/2 - 0.01 · 2 = 0.43. Turn 2: 0.2 · 1/1 - 0.1 - 0.01 = 0.09.
    """
    one = rollout((BROKEN, FOUND), (FOUND,), RIGHT)
    rewards = tool_use(one, {"target": ["641"]}, used=0.4, repeat_price=0.1, call_price=0.01)
    assert rewards.turns == pytest.approx((0.43, 0.09, 0.0))
    assert rewards.outcome == 1.0
    assert rewards.components == {
        "tool/calls_succeeded": pytest.approx(2 / 3),
        "tool/calls_changed": pytest.approx(1 / 3),
        "tool/calls_used": pytest.approx(1 / 3),
        "tool/calls_repeated": 1.0,
        "tool/calls_cost": pytest.approx(0.13),
        "outcome/em": 1.0,
        "outcome/contains": 1.0,
        "outcome/f1": 1.0,
    }
    assert rewards.notes == (
        "succeeded 1 of 2: +0.1; changed 1 of 2: +0.15; used 1 of 2: +0.2; 2 calls: -0.02",
        "succeeded 1 of 1: +0.2; changed 0 of 1: +0; used 0 of 1: +0; 1 repeated: -0.1; 1 call: -0.01",
        ALONE,
    )
    assert rewards.outcome_note == "an accepted answer"


def test_only_the_first_two_are_on():
    assert paid((FOUND,), (FOUND,), RIGHT) == pytest.approx([0.5, 0.2, 0.0])
    on = {name: value for name, value in ToolUseSettings() if value}
    assert on == {"succeeded": 0.2, "changed": 0.3}
    assert tool_use.__kwdefaults__ == {**dict(ToolUseSettings()), "compare": True}, (
        "the function's defaults are the settings'"
    )


def test_without_a_call():
    """One turn, paid the outcome alone; shares are undefined, and a turn between calls earns nothing."""
    rewards = tool_use(rollout(RIGHT), "641", call_price=0.1)
    assert (rewards.turns, rewards.outcome, rewards.notes) == ((0.0,), 1.0, (ALONE,))
    assert {name: value for name, value in rewards.components.items() if name.startswith("tool/")} == {
        "tool/calls_succeeded": None,
        "tool/calls_changed": None,
        "tool/calls_used": None,
        "tool/calls_repeated": 0.0,
        "tool/calls_cost": 0.0,
    }
    between = tool_use(rollout("Let me think.", (FOUND,), RIGHT), "641", call_price=0.1)
    assert between.turns == pytest.approx((0.0, 0.4, 0.0))
    assert between.notes[0] == "no tool call"
    empty = tool_use(Transcript((), "no_tokens"), "641")
    assert (empty.turns, empty.outcome, empty.notes) == ((), 0.0, ())


def test_the_last_turn_is_paid_the_outcome_alone_even_if_it_calls():
    rewards = tool_use(rollout((FOUND,), (FOUND,), end="max_turns"), "641", repeat_price=1.0, call_price=1.0)
    assert rewards.turns == pytest.approx((-0.5, 0.0))
    assert rewards.outcome == 0.0
    assert (rewards.components["tool/calls_repeated"], rewards.components["tool/calls_cost"]) == (1.0, 1.0)


# ---- succeeded


@pytest.mark.parametrize(
    ("call", "reward"),
    [
        (sql("q", "x"), 0.5),
        (BROKEN, 0.0),
        (sql("q", "x", seen=False), 0.0),
        (sql("q", "", ok=False, seen=False, error_kind="not_carried_out"), 0.0),
        (sql("q", "nothing found", error_kind="no_hits"), 0.2),
        (sql("q", " \n"), 0.2),
    ],
    ids=["ok", "failed", "not seen", "not carried out", "no hits", "empty result"],
)
def test_success_and_what_it_told(call, reward):
    assert paid((call,), RIGHT) == pytest.approx([reward, 0.0])


def test_shares_so_that_many_calls_earn_no_more_than_one():
    many = tuple(sql(f"q{n}", f"result {n}") for n in range(8))
    assert paid(many, RIGHT) == pytest.approx([0.5, 0.0])
    assert paid(many[:2], many[2:4], RIGHT) == pytest.approx([0.5, 0.5, 0.0])


# ---- changed


@pytest.mark.parametrize(
    ("second", "changed"),
    [
        (sql("other", "641"), False),
        (sql("other", " 641\n"), False),
        (ToolCall("count", "{}", "641"), False),
        (sql("other", "642"), True),
        (sql("other", "641", changed=True), True),
        (sql("other", "642", changed=False), False),
        (sql("other", "642", ok=False, changed=True, error_kind="tool_error"), False),
    ],
    ids=[
        "told before",
        "but for white space",
        "by another tool",
        "new",
        "the tool says yes",
        "the tool says no",
        "it failed",
    ],
)
def test_a_call_changed_something(second, changed):
    """The weight of `changed` alone: 1 for the first call, and 1 for the second if it did, too."""
    weights = {"succeeded": 0.0, "changed": 1.0}
    assert paid((FOUND,), (second,), RIGHT, **weights) == [1.0, float(changed), 0.0]
    assert paid((FOUND, second), RIGHT, **weights) == [(1 + changed) / 2, 0.0], "in the same turn"


def test_what_the_model_did_not_read_is_still_new_later():
    unseen = sql("a", "641", seen=False)
    assert paid((unseen,), (FOUND,), RIGHT, succeeded=0.0, changed=1.0) == [0.0, 1.0, 0.0]


# ---- repeated


def step(**more) -> ToolCall:
    return ToolCall("forward", "{}", **{"result": "You walk.", **more})


@pytest.mark.parametrize(
    ("first", "second", "repeats"),
    [
        (ToolCall("a", '{"x": 1, "y": [2]}'), ToolCall("a", '{"y":[2],"x":1}'), 1),
        (ToolCall("a", '{"x": 1}'), ToolCall("b", '{"x": 1}'), 0),
        (ToolCall("a", '{"x": 1}'), ToolCall("a", '{"x": 2}'), 0),
        (ToolCall("a", "{oops", ok=False, error_kind="bad_arguments"), ToolCall("a", " {oops ", ok=False), 1),
        (ToolCall("a", "[" * 100_000), ToolCall("a", "[" * 100_000), 1),
        (step(ok=False, error_kind="tool_exception"), step(), 1),
        (step(ok=False, error_kind="timeout"), step(), 0),
        (step(ok=False, seen=False, error_kind="not_carried_out"), step(), 0),
        (step(changed=True), step(changed=True), 0),
        (step(changed=False), step(changed=False), 1),
        (ToolCall("search", '{"query": "Vel"}'), ToolCall("search", '{"query": "vel"}', repeat=True), 1),
    ],
    ids=[
        "order and white space",
        "another tool",
        "other arguments",
        "broken twice",
        "a million brackets",
        "the tool raised",
        "the service was down",
        "it was beyond max_parallel_calls",
        "the first one moved",
        "the first one did not",
        "the tool says so",
    ],
)
def test_a_call_repeats_another(first, second, repeats):
    prices = {"succeeded": 0.0, "changed": 0.0, "repeat_price": 1.0}
    assert paid((first,), (second,), RIGHT, **prices) == [0.0, -repeats, 0.0]
    assert paid((first, second), RIGHT, **prices) == [-repeats, 0.0], "in the same turn"


def test_looking_again_after_a_change_is_no_repetition():
    look = ToolCall("look", "{}", "A door.")
    opened = ToolCall("open", "{}", "It opens.", changed=True)
    prices = {"succeeded": 0.0, "changed": 0.0, "repeat_price": 1.0}
    assert paid((look,), (look,), (opened,), (look,), (look,), RIGHT, **prices) == [0, -1, 0, 0, -1, 0]


# ---- used


@pytest.mark.parametrize(
    ("calls", "answer", "used"),
    [
        ([FOUND], RIGHT, [1.0]),
        ([FOUND], "She has 641 orders.", [1.0]),
        ([FOUND], "<answer>no idea</answer>", [0.0]),
        ([sql("a", "641"), sql("b", "641 again")], RIGHT, [1.0, 0.0]),
        ([sql("a", "1,641"), sql("b", "641.5")], RIGHT, [0.0, 0.0]),
        ([sql("a", '{"name":"Vel","n":641}')], "<answer>Vel</answer>", [1.0]),
        ([sql("a", "Mira has orders")], "<answer>Mira has many orders</answer>", [0.0]),
        ([sql("a", "found 641", ok=False)], RIGHT, [0.0]),
        ([sql("a", "found 641", ok=False), sql("b", "641")], RIGHT, [0.0, 0.0]),
        ([sql("a", "641", seen=False), sql("b", "641")], RIGHT, [0.0, 1.0]),
        ([sql("a", "人口是北京市的")], "<answer>北京</answer>", [1.0]),
        ([sql("a", "yes, it is true")], "<answer>yes</answer>", [0.0]),
    ],
    ids=str,
)
def test_a_result_is_used_in_the_answer(calls, answer, used):
    turns = [(call,) for call in calls]
    assert paid(*turns, answer, succeeded=0.0, changed=0.0, used=1.0) == [*used, 0.0]


def test_what_the_model_wrote_first_is_its_own():
    guess = Turn("It is 641, I think.", (0, 3), (FOUND,))
    answer = Turn(RIGHT, (9, 12))
    rewards = tool_use(Transcript((guess, answer), "answered"), "641", used=1.0)
    assert rewards.components["tool/calls_used"] == 0.0


def test_a_yes_or_no_is_in_most_results():
    rewards = tool_use(rollout((sql("a", "yes"),), "<answer>yes</answer>"), ["yes"], used=1.0)
    assert rewards.components["tool/calls_used"] is None
    assert telling_words("Yes, the tower of Pim: 1,234 m in 3.5 h (Nr_7), 北京") == {
        *("tower", "pim", "1,234", "3.5", "7", "北京")
    }


# ---- the outcome


@pytest.mark.parametrize(
    ("last", "end", "outcome", "note"),
    [
        (RIGHT, "answered", 1.0, "an accepted answer"),
        ("641", "answered", 1.0, "an accepted answer"),
        ("<think>641? yes</think>\n641", "answered", 1.0, "an accepted answer"),
        ("It is 641.", "answered", 0.0, "not an accepted answer"),
        ("641", "response_length", 0.0, "no answer"),
        ("<answer>7</answer> 641", "answered", 0.0, "not an accepted answer"),
    ],
)
def test_the_answer(last, end, outcome, note):
    rewards = tool_use(rollout((FOUND,), last, end=end), "641")
    assert (rewards.outcome, rewards.outcome_note) == (outcome, note)


def test_a_ground_truth_of_any_kind_is_for_compute_score():
    tests = {"inputs": ["1"], "outputs": ["2"]}
    rewards = tool_use(rollout((FOUND,), RIGHT), tests, compare=False)
    assert (rewards.turns, rewards.outcome) == (pytest.approx((0.5, 0.0)), 0.0)
    assert not [name for name in rewards.components if name.startswith("outcome/")]
    with pytest.raises(DataError, match=r"ground_truth is \{'inputs'"):
        tool_use(rollout(RIGHT), tests)


# ---- notes of any reward function


def test_notes_are_one_text_per_turn_or_none():
    def checked(notes, outcome_note=""):
        return check_numbers(TurnRewards((0.0, 0.0), 1.0, notes=notes, outcome_note=outcome_note), 2, "mine")

    assert checked(("a", "b"), "c").notes == ("a", "b")
    assert checked(()).notes == ()
    with pytest.raises(TranscriptError, match="mine gave 1 notes for 2 turns"):
        checked(("a",))
    for wrong in (("a", 1), "ab"):
        with pytest.raises(TranscriptError, match="expected one text per turn"):
            checked(wrong)
    with pytest.raises(TranscriptError, match="outcome_note=None, expected"):
        checked((), None)


def test_a_penalty_of_the_run_is_noted_too():
    one = rollout((FOUND,), (ToolCall("search", "{}", "x", repeat=True),), RIGHT)
    rewards = TurnRewards((0.5, 0.5, 0.0), 1.0, notes=("a", "b", "c"))
    assert charge_repeats(one, rewards, 0.2).notes == ("a", "b; 1 repeated: -0.2", "c")
