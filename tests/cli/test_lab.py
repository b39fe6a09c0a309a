"""``mtgrpo lab`` and ``mtgrpo lab learn``: tables and figures of real, small runs."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from verl_mtgrpo.cli.main import main

TASK = """
from verl_mtgrpo.lab import Action, Process

COIN = Process(
    "coin",
    "Guess once.",
    start="guess",
    states={"guess": [Action("heads", 0.0, reward=1.0), Action("tails", 0.0)]},
)
NUMBER = 3
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.py"
    path.write_text(TASK)
    return path


@pytest.mark.process
def test_a_task_of_ones_own(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    names = ["turn_rloo", "mt_grpo, none", "gtpo", "turn_gae, exact values", "bilevel_gae, exact values"]
    chosen = [word for name in names for word in ("--estimator", name)]
    options = ["--groups", "2000", "--sizes", "2", "4", "--out", str(out)]
    assert main(["lab", "--process", f"{task}:COIN", *chosen, *options]) == 0
    assert "Direction bias at G = 4" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "lab.csv").open()))
    assert {(row["group_size"], row["estimator"]) for row in rows} == {(g, n) for g in "24" for n in names}
    by = {(row["estimator"], row["group_size"]): row for row in rows}
    assert by["turn_rloo", "2"]["biased"] == "False"
    # A mean that includes the rollout itself shrinks the gradient to 1 - 1/G.
    assert float(by["mt_grpo, none", "2"]["scale"]) == pytest.approx(0.5, abs=0.05)
    assert "Guess once." in (out / "lab.md").read_text()
    assert (out / "lab.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "1"], "expected 2 or more"),
        (["--process", "nowhere.py:X"], "does not name an existing file, expected FILE.py:NAME"),
        (["--process", "{task}:NUMBER"], "NUMBER is 3, expected a verl_mtgrpo.lab.Process"),
        pytest.param(
            ["--process", "{task}:COIN", "--estimator", "mt_gpro"],
            "'mt_gpro' is unknown; choose from 'mt_grpo'",
            marks=pytest.mark.imports_verl,
        ),
    ],
)
def test_bad_input(options, message, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = [option.format(task=task) for option in options]
    assert main(["lab", *options, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err


LEARN = ["lab", "learn", "--seeds", "2", "--steps", "15"]


@pytest.mark.process
def test_learning_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    chosen = ["--set", "heart=0.4", "read=0.05", "--estimators", "grpo_or", "mt_grpo:scale=none"]
    assert main([*LEARN, *chosen, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "right for 0.4 of the questions" in shown
    assert "| MT-GRPO, scale=none |" in shown
    rows = list(csv.DictReader((tmp_path / "learn.csv").open()))
    assert len(rows) == 2 * 2 * 16
    assert {row["method"] for row in rows} == {"grpo_or", "mt_grpo:scale=none"}
    assert float(rows[0]["tool"]) == pytest.approx(0.2)
    text = (tmp_path / "learn.md").read_text()
    assert "Made by `mtgrpo lab learn --set heart=0.4 read=0.05 --estimators grpo_or mt_grpo:scale=none` (" in text
    assert "normalised gradient, length 0.1" in text
    assert "**collapses**: it has not" in text
    assert (tmp_path / "learn.png").stat().st_size > 10_000
    first = (tmp_path / "learn.csv").read_text()
    assert main([*LEARN, *chosen, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "learn.csv").read_text() == first  # a seed fixes the curve


@pytest.mark.process
def test_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    chosen = ["--map", "--quick", "--estimators", "grpo_or", "mt_grpo"]
    assert main([*LEARN, *chosen, "--out", str(tmp_path)]) == 0
    assert "### GRPO-OR" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "map-search.csv").open()))
    assert len(rows) == 2 * 4 * 3
    assert {row["seeds"] for row in rows} == {"2"}
    by = {(row["method"], row["up"], row["across"]): row for row in rows}
    assert float(by["grpo_or", "0.7", "0.02"]["reason"]) < -1 < 0 < float(by["mt_grpo", "0.7", "0.02"]["reason"])
    assert (tmp_path / "map-search.png").stat().st_size > 10_000


@pytest.mark.process
def test_a_task_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["lab", "learn", "--example"]) == 0
    path = tmp_path / "task.yaml"
    path.write_text(capsys.readouterr().out)
    options = ["--task", str(path), "--estimators", "turn_rloo"]
    assert main([*LEARN, *options, "--out", str(tmp_path)]) == 0
    assert "# Learning curves: one search" in (tmp_path / "learn.md").read_text()
    assert main([*LEARN, *options, "--set", "heart=0.4", "--out", str(tmp_path)]) == 1
    assert "write the values into the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds is 0, expected 1 or more"),
        (["--steps", "0"], "--steps is 0, expected 1 or more"),
        (["--task", "seek"], "'seek' is unknown, expected one of search, chain"),
        (["--task", "nowhere.yaml"], "there is no such file; see `mtgrpo lab learn --example`"),
        (["--task", "recovery", "--map"], "--map: there is none of 'recovery', expected --task search or chain"),
        (["--set", "heart"], "--set 'heart', expected KEY=VALUE"),
        (["--set", "heart=[0.1"], "--set 'heart=[0.1'"),
        (["--set", "heart=2026-13-45"], "--set 'heart=2026-13-45': ValueError: month"),
        (["--estimators", "mt_gpro"], "'mt_gpro' is unknown, expected all, or some of grpo_or"),
        (["--optimizer", "sgd"], "--optimizer is 'sgd', expected one of normalised"),
    ],
)
def test_learning_refuses_what_makes_no_sense(options, message, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*LEARN, *options, "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
