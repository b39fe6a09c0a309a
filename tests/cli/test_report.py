"""``mtgrpo report`` on made dumps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.report.made import dump_row, train_row, training_row, transcript, write_rows
from verl_mtgrpo.cli.main import main

pytestmark = pytest.mark.process


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Three steps of training and a validation after the last."""
    for folder in ("rollouts", "validation"):
        (tmp_path / "run" / folder).mkdir(parents=True)
    for step in (1, 2, 3):
        rows = [
            training_row("p", 0, transcript("Vel", searches=["x"]), [0.5, 1.0], [1.41, 0.71], step=step),
            training_row("p", 1, transcript("Mar"), [0.0], [-1.41], step=step),
        ]
        write_rows(tmp_path / "run" / "rollouts" / f"{step}.jsonl", rows)
    write_rows(tmp_path / "run" / "validation" / "3.jsonl", [dump_row("v", 0, transcript("Vel"), [1.0])])
    write_rows(tmp_path / "run" / "metrics-001.jsonl", [train_row(1, actor__entropy=0.5)])
    return tmp_path / "run"


def index_of(page: Path) -> dict[str, object]:
    (line,) = (line for line in page.read_text().splitlines() if 'id="index"' in line)
    return json.loads(line.partition(">")[2].rpartition("</script>")[0])


def test_the_page_of_a_run(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "credit.html"
    metrics = run_folder / "metrics-001.jsonl"
    assert main(["report", str(run_folder), "--out", str(out), "--metrics", str(metrics)]) == 0
    assert f"{out}: 7 rollouts, 0.1 MB" in capsys.readouterr().out
    index = index_of(out)
    assert index["title"] == "Where the credit went: run"
    assert list(index["kinds"]) == ["training", "validation"]  # type: ignore[call-overload]
    assert [group[:2] for group in index["groups"]] == [[1, 1], [2, 1], [3, 1], [3, 0]]  # type: ignore[union-attr]
    assert index["metrics"]["actor/entropy"] == [[1, 0.5]]  # type: ignore[index]


def test_some_steps_of_a_folder_and_the_usual_name(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run_folder)
    assert main(["report", "rollouts", "--steps", "2:3", "--title", "mine"]) == 0
    assert "report.html: 4 rollouts" in capsys.readouterr().out
    index = index_of(Path("report.html"))
    assert index["files"] == ["rollouts/2.jsonl", "rollouts/3.jsonl"] and index["title"] == "mine"


def test_on_the_terminal(run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(run_folder)
    assert main(["report", "rollouts/3.jsonl", "--rich", "--rollouts", "1"]) == 0
    shown = capsys.readouterr().out
    assert "2 rollouts of 1 groups" in shown and "turn 1   reward +0.50   advantage +1.41" in shown
    assert shown.count("question: ") == 1 and not Path("report.html").exists()
    assert main(["report", "rollouts/3.jsonl", "--rich", "--out", "both.html"]) == 0
    assert Path("both.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["none"], "none does not exist"),
        (["{run}", "--steps", "7"], "has no dump of these steps; choose from 1 to 3"),
        (["{run}", "--steps", "x"], "--steps 'x': expected a step"),
        (["{run}", "{run}/rollouts"], "the same dump is named twice"),
        (["{run}", "--metrics", "none.jsonl"], "--metrics none.jsonl does not exist"),
        (["{run}", "--rollouts", "0"], "--rollouts is 0"),
    ],
)
def test_bad_input(
    options: list[str], message: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [option.format(run=run_folder) for option in options]
    assert main(["report", *options, "--out", str(tmp_path / "r.html")]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "r.html").exists()


def test_without_rich_the_page_is_offered(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "rich" else find(name, *more))
    assert main(["report", str(run_folder), "--rich"]) == 1
    assert 'pip install "verl-mtgrpo[report]"' in capsys.readouterr().err
