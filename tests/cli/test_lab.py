"""``mtgrpo lab``: tables and plot of a real, small run."""

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
        (["--process", "{task}:COIN", "--estimator", "mt_gpro"], "'mt_gpro' is unknown; choose from 'mt_grpo'"),
    ],
)
def test_bad_input(options, message, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = [option.format(task=task) for option in options]
    assert main(["lab", *options, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
