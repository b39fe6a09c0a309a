"""Outputs of roles in dumps and reports: every row is read, roles are not compared, and who read whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.made import write_rows
from tests.report.parsed import Page
from tests.report.roles import HOSTILE, conversation_rows, role_rows
from verl_mtgrpo.report.catalog import read_catalog
from verl_mtgrpo.report.evaluation import Bootstrap, evaluate_dump
from verl_mtgrpo.report.html import write_page
from verl_mtgrpo.report.roles import places_of
from verl_mtgrpo.report.rollouts import read_dump


def test_every_output_is_a_rollout_even_if_two_are_alike(tmp_path: Path):
    found = read_dump(write_rows(tmp_path / "3.jsonl", role_rows()))
    assert [(one.number, one.role, one.fed_by) for one in found] == [
        (0, "rewriter", ()),
        (1, "rewriter", ()),
        (2, "answerer", ("0:0",)),
        (3, "answerer", ("0:0",)),
        (4, "answerer", ("0:1",)),
    ]
    assert [one.dropped for one in found] == [None, None, None, "no judge", None]


def test_places(tmp_path: Path):
    rows = read_dump(write_rows(tmp_path / "3.jsonl", [*role_rows()]))
    assert [place.reads for place in places_of(rows) or ()] == [(), (), (0,), (0,), (1,)]
    talk = places_of(read_dump(write_rows(tmp_path / "4.jsonl", conversation_rows()))) or []
    assert [(place.conversation, place.learnt) for place in talk] == [(0, False), (0, True)]


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_ids_that_make_no_sense_break_nothing(tmp_path: Path, changes):
    rows = read_dump(write_rows(tmp_path / "3.jsonl", role_rows(**changes)))
    for number, place in enumerate(places_of(rows) or ()):
        assert set(place.reads) <= set(range(5)) - {number}


def test_the_page_has_roles_with_prompts_and_compares_within_a_role(tmp_path: Path):
    dump = write_rows(tmp_path / "3.jsonl", [*role_rows(), *conversation_rows()])
    write_page(tmp_path / "r.html", read_catalog([dump]), title="t", made_by="v")
    page = Page(tmp_path / "r.html")
    group = page.group(0)
    assert [one["role"] for one in group["roles"]] == ["rewriter"] * 2 + ["answerer"] * 3
    assert [one["prompt"][0][1] for one in group["roles"]] == ["You rewrite."] * 2 + ["You answer."] * 3
    assert [one["reads"] for one in group["roles"]] == [[], [], [0], [0], [1]]
    first = group["rollouts"][0]["turns"][0]
    assert "the 2 outputs of this role averaged 0.38" in first["words"], "0.75 = 1.0 - 0.25, and 0.0"
    assert first["terms"][0][0] == "worth" and first["terms"][0][-2:] == [
        1, [["back", 1.0, 1.0, "mean", [[2, 1.0]]], ["own", -0.25, 1.0, "mean", []]]
    ], "the answer that was lost is worth nothing to the query"  # fmt: skip
    talk = page.group(1)
    assert [one["talk"] for one in talk["roles"]] == [0, 0]
    assert [one["credited"] for one in talk["rollouts"][0]["turns"]] == [None, None], "it is frozen"


def test_an_evaluation_counts_answers_and_not_what_led_to_them(tmp_path: Path):
    rows = role_rows(**{f"row{number}": {"answering": "" if number < 2 else "1"} for number in range(5)})
    rows[3] |= {"outcome/dropped": 0.0}
    found = evaluate_dump(write_rows(tmp_path / "3.jsonl", rows), label="t", bootstrap=Bootstrap(resamples=100))
    (row,) = found.rows
    assert (row.questions, row.rollouts) == (1, 3)
    em = row.estimates["em"]
    assert em is not None and em.mean == pytest.approx(1 / 3), "of three answers one is right"


def test_an_output_that_a_validation_dumps_with_the_answers_rewards_is_left_out(tmp_path: Path):
    """verl writes the last output's information into every row of a session."""
    first, second = conversation_rows()
    both = [{**second, "uid": first["uid"], "transcript": first["transcript"], "turn_rewards": "[1.0]"}, second]
    (found,) = read_dump(write_rows(tmp_path / "3.jsonl", both))
    assert (found.role, found.turn_rewards) == ("reasoner", (0.0, 1.0))
