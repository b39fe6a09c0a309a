"""What outputs earn, and which are lost together."""

from __future__ import annotations

import pytest

from verl_mtgrpo.rewards import Transcript, Turn
from verl_mtgrpo.roles import RolesSettings, read_cast
from verl_mtgrpo.roles.rewards import UNFINISHED, UNREAD, OutputOf, lost_with, outcome_of, penalties

CHAIN = read_cast(RolesSettings(names={"rewriter": {}, "reranker": {}, "answerer": {}}))


def talk(**settings):
    names = {"meta": {"pattern": "(?:plan|say).*", "penalty": 0.25}, "reasoner": {}}
    return read_cast(RolesSettings(names=names, order="alternate", finish="DONE", **settings))


def row(role, number, fed_by="", **more):
    return OutputOf.of({"role": role, "output_id": f"0:{number}", "fed_by": fed_by, **more})


TREE = [
    row("rewriter", 0),
    row("rewriter", 1),
    row("reranker", 2, "0:0"),
    row("reranker", 3, "0:0"),
    row("reranker", 4, "0:1"),
    row("answerer", 5, "0:2"),
    row("answerer", 6, "0:3"),
    row("answerer", 7, "0:4"),
]


def test_an_output_is_lost_when_all_that_read_it_are():
    def lost(*rows):
        found = lost_with(TREE, ["down" if number in rows else "" for number in range(8)], CHAIN)
        return {number: why for number, why in enumerate(found) if why}

    assert lost() == {}
    assert lost(5) == {5: "down", 2: UNREAD}, "the query has another ranker"
    assert lost(5, 6) == {5: "down", 6: "down", 2: UNREAD, 3: UNREAD, 0: UNREAD}
    assert lost(7) == {7: "down", 4: UNREAD, 1: UNREAD}
    assert lost(0) == {0: "down"}, "what was written before it failed is its readers' own"


def test_an_answer_that_was_never_written_takes_its_readers_along():
    """A query that nobody went on from has no outcome."""
    assert lost_with(TREE[:2], ["", "down"], CHAIN) == [UNREAD, "down"]


def test_outcomes_stay_where_nobody_reads_on():
    outcomes = [None] * 5 + [1.0, 0.0, 0.5]
    assert [outcome_of(TREE, outcomes, number, CHAIN) for number in range(8)] == [0.0] * 5 + [1.0, 0.0, 0.5]


SIDES = [
    row("meta", 0, conversation="0:0", finished="1"),
    row("meta", 1, conversation="0:1", finished="0"),
    row("reasoner", 2, conversation="0:0", finished="1"),
    row("reasoner", 3, conversation="0:1", finished="0"),
]


@pytest.mark.parametrize(
    ("unfinished", "outcomes", "reasons"),
    [
        ("score", [1.0, 0.5, 1.0, 0.5], [""] * 4),
        ("zero", [1.0, 0.0, 1.0, 0.0], [""] * 4),
        ("mask", [1.0, 0.5, 1.0, 0.5], ["", UNFINISHED, "", UNFINISHED]),
    ],
)
def test_every_side_earns_its_conversations_outcome(unfinished, outcomes, reasons):
    cast = talk(unfinished=unfinished)
    assert [outcome_of(SIDES, [None, None, 1.0, 0.5], number, cast) for number in range(4)] == outcomes
    assert lost_with(SIDES, [""] * 4, cast) == reasons


def test_a_conversation_is_lost_as_a_whole():
    assert lost_with(SIDES, ["", "", "down", ""], talk()) == ["down", "", "down", ""]
    assert lost_with(SIDES[:1], [""], talk()) == ["its conversation ended before reasoner spoke"]


def transcript(*texts):
    return Transcript(tuple(Turn(text, (2 * k, 2 * k + 1)) for k, text in enumerate(texts)), "answered")


def test_a_penalty_is_for_each_turn_of_a_conversation_and_for_the_last_turn_of_an_output():
    assert penalties(SIDES[0], transcript("plan a", "b", "say c", "d"), talk()) == ([0.0, 0.25, 0.0, 0.25], 0.5)
    assert penalties(SIDES[2], transcript("anything"), talk()) == ([0.0], None)
    chain = read_cast(RolesSettings(names={"rewriter": {"pattern": "ok", "penalty": 0.5}, "answerer": {}}))
    assert penalties(row("rewriter", 0), transcript("call", "ok"), chain) == ([0.0, 0.0], 1.0)
    assert penalties(row("rewriter", 0), transcript("ok", "call"), chain) == ([0.0, 0.5], 0.0)
    assert penalties(row("rewriter", 0), transcript(), chain) == ([], None)
