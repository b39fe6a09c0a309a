from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.report.made import dump_row, training_row, transcript, write_rows
from verl_mtgrpo.errors import DataError
from verl_mtgrpo.report.catalog import read_catalog
from verl_mtgrpo.report.rollouts import credit_rollouts, iter_located, pick_rollouts, read_dump, read_located
from verl_mtgrpo.rewards import Transcript, Turn

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


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"transcript": None}, "TypeError"),
        ({"turn_rewards": "[1.0, 2.0]"}, "2 turn rewards for 1 turns"),
        ({"turn_rewards": "[NaN]"}, "expected finite numbers"),
        ({"turn_advantages": "[]"}, "0 advantages for 1 turns"),
        ({"estimator_settings": "[1]"}, "TypeError"),
        ({"turn_notes": '{"turns": [], "outcome": ""}'}, "0 notes for 1 turns"),
        ({"turn_notes": "[]"}, "TypeError"),
    ],
)
def test_a_dump_of_another_run_is_refused(tmp_path: Path, change: dict[str, object], cause: str) -> None:
    path = write_rows(tmp_path / "0.jsonl", [{**dump_row("p", 0, _GUESSED, [1.0]), **change}])
    with pytest.raises(DataError, match=cause):
        read_dump(path)


def test_what_the_reward_function_says_of_a_row(tmp_path: Path) -> None:
    said = json.dumps({"turns": ["succeeded 1 of 1: +0.2", "the last"], "outcome": "an accepted answer"})
    row = dump_row("p", 0, _SEARCHED, [0.5, 1.0], turn_notes=said, **{"judge/turn_score": 0.5})
    silent, told = read_dump(write_rows(tmp_path / "0.jsonl", [dump_row("p", 1, _SEARCHED, [0.5, 1.0]), row]))
    assert (silent.notes, silent.outcome_note) == ((), "")
    assert told.notes == ("succeeded 1 of 1: +0.2", "the last") and told.outcome_note == "an accepted answer"
    assert told.components["judge/turn_score"] == 0.5


def test_a_row_of_training_has_its_credit(tmp_path: Path) -> None:
    row = training_row("p", 3, _SEARCHED, [0.5, 1.0], [1.25, -0.5], step=7, turn_values="[0.25, 0.75]")
    row |= {"turn_credited": "[0.4, 0.9]", "turn_values_after": "[0.5, 1.0]"}
    (rollout,) = read_dump(write_rows(tmp_path / "7.jsonl", [row]))
    assert (rollout.group, rollout.number, rollout.step) == ("p", 3, 7)
    assert rollout.advantages == (1.25, -0.5) and rollout.credited == (0.4, 0.9) and rollout.values == (0.25, 0.75)
    assert rollout.values_after == (0.5, 1.0)
    assert (rollout.estimator, rollout.settings) == ("mt_grpo", {"discount": 1.0})


def test_a_validation_has_none(dump: Path) -> None:
    rollout = read_dump(dump)[0]
    assert rollout.advantages is None and rollout.credited is None and rollout.values is None
    assert (rollout.estimator, rollout.step, rollout.number) == ("", None, 0)


def test_a_dump_without_transcripts_says_how_to_get_them(tmp_path: Path) -> None:
    row = {"uid": "p_0_0", "input": "q", "output": "a", "gts": None, "score": 0.0, "step": 1}
    with pytest.raises(DataError, match=r"with trainer\.v1\.trainer_mode=mtgrpo_sync"):
        read_dump(write_rows(tmp_path / "1.jsonl", [row]))


def test_a_row_is_found_again_by_its_byte(tmp_path: Path) -> None:
    rows = [dump_row("é\u2028", n, transcript(f"Vel {n}"), [float(n)]) for n in range(3)]
    path = tmp_path / "0.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    located = list(iter_located(path))
    with path.open("rb") as file:
        assert [read_located(file, start) for start, _ in reversed(located)] == [one for _, one in reversed(located)]
    assert [one.turn_rewards for _, one in located] == [(0.0,), (1.0,), (2.0,)]


@pytest.mark.parametrize(
    ("text", "logged", "right"),
    [
        ("#### 4", {"outcome/score": 1.0}, True),  # read by the run's own reward function, which needs no tags
        ("#### 5", {"outcome/score": 0.0}, False),
        ("#### 4", {}, False),
        ("<answer>the Vel</answer>", {"outcome/score": 0.0}, True),
        ("<answer>4</answer>", {"outcome/score": 1.0}, False),
    ],
)
def test_an_answer_in_another_form_is_right_if_the_runs_own_reward_function_says_so(tmp_path, text, logged, right):
    said = Transcript(turns=(Turn(text, (0, 2)),), end_reason="answered")
    catalog = read_catalog([write_rows(tmp_path / "0.jsonl", [dump_row("a", 0, said, [1.0], **logged)])])
    assert [entry.right for entry in catalog.entries()] == [right]
