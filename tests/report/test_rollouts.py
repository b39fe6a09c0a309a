from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.made import dump_row, transcript, write_rows
from verl_mtgrpo.errors import DataError
from verl_mtgrpo.report.rollouts import credit_rollouts, pick_rollouts, read_dump, render_rollout

_SEARCHED = transcript("Vel", searches=["Orrin river"])
_GUESSED = transcript("Mar")


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    rows = [
        dump_row("same", 0, _GUESSED, [1.0]),
        dump_row("same", 1, _GUESSED, [1.0]),
        dump_row("differs", 0, _SEARCHED, [0.5, 1.0]),
        dump_row("differs", 1, _GUESSED, [0.0]),
    ]
    return write_rows(tmp_path / "40.jsonl", rows)


def test_reads_what_verl_dumped(dump: Path) -> None:
    rollouts = read_dump(dump)
    assert [rollout.group for rollout in rollouts] == ["same", "same", "differs", "differs"]
    assert rollouts[2].transcript == _SEARCHED
    assert rollouts[2].turn_rewards == (0.5, 1.0)
    assert rollouts[2].answers == ("Vel", "the Vel")
    assert rollouts[2].components == {"tool/used": 1.0, "outcome/em": 1.0}


def test_advantages_by_hand(dump: Path) -> None:
    """Turn 1 of the group of two: rewards 0.5 and, for the one that stopped there, 0; outcomes 1 and 0.

    Each pair is normalised to ±1/sqrt(2) (two values, N-1). The searcher's first turn gets both terms, its
    second the outcome alone; the guesser's only turn gets both.
    """
    credited = credit_rollouts(read_dump(dump))
    half = 0.5**0.5
    assert credited[2].advantages == pytest.approx((2 * half, half), abs=1e-4)
    assert credited[3].advantages == pytest.approx((-2 * half,), abs=1e-4)
    assert credited[0].advantages == credited[1].advantages == (0.0,)


def test_settings_reach_the_estimator(dump: Path) -> None:
    credited = credit_rollouts(read_dump(dump), scale="none")
    assert credited[2].advantages == pytest.approx((0.25 + 0.5, 0.5))


def test_picks_both_ends_of_a_group_that_differs_first(dump: Path) -> None:
    credited = credit_rollouts(read_dump(dump))
    assert pick_rollouts(credited, 3) == [credited[2], credited[3], credited[0]]
    assert pick_rollouts(credited, 1) == [credited[2]]


def test_shows_what_was_said_and_what_it_was_worth(dump: Path) -> None:
    shown = render_rollout(credit_rollouts(read_dump(dump))[2])
    assert shown.splitlines() == [
        "question: Which river runs by Orrin?",
        "accepted: Vel | the Vel",
        "  turn 1   reward +0.50   advantage +1.41",
        "    model: <tool_call>Orrin river</tool_call>",
        "    search: Doc 1 (Title: Orrin) Vel is a river.",
        "  turn 2   reward +1.00   advantage +0.71",
        "    model: <answer>Vel</answer>",
        "  measured: outcome/em 1, tool/used 1",
    ]


def test_a_terminal_is_not_given_control_characters(tmp_path: Path) -> None:
    rollout = transcript("\x1b[2Jgone\x07")
    path = write_rows(tmp_path / "0.jsonl", [dump_row("p", 0, rollout, [0.0])])
    shown = render_rollout(credit_rollouts(read_dump(path))[0])
    assert "\x1b" not in shown and "\x07" not in shown and "gone" in shown


@pytest.mark.parametrize(
    ("change", "cause"),
    [({"transcript": None}, "TypeError"), ({"turn_rewards": "[1.0, 2.0]"}, "2 turn rewards for 1 turns")],
)
def test_a_dump_of_another_run_is_refused(tmp_path: Path, change: dict[str, object], cause: str) -> None:
    path = write_rows(tmp_path / "0.jsonl", [{**dump_row("p", 0, _GUESSED, [1.0]), **change}])
    with pytest.raises(DataError, match=cause):
        read_dump(path)
