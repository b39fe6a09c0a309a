from __future__ import annotations

import io
import json
from pathlib import Path

from tests.report.made import train_row, validation_data
from verl_mtgrpo.launch.progress import MetricsTail, ProgressLine, describe_row, format_duration


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_tail_gives_each_row_once_and_waits_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.read_new() == []
    first, second = (json.dumps(train_row(step, tool__used=0.5)) + "\n" for step in (1, 2))
    path.write_text(first + second[:30])
    assert [step for step, _ in tail.read_new()] == [1]
    assert tail.read_new() == []
    path.write_text(first + second)
    assert [step for step, _ in tail.read_new()] == [2]


def test_a_step_in_words() -> None:
    data = train_row(10, tool__used=0.5, tool__hit=0.25, outcome__em=0.125)["data"]
    assert describe_row(10, data, 40) == (
        "█████░░░░░░░░░░░░░░░ step 10/40  tool use 0.50  hit 0.25  exact match 0.12  2.0 s/step"
    )


def test_validation_in_words() -> None:
    data = {**validation_data("a", 4, tool__used=0.2), **validation_data("b", 4, tool__used=0.4)}
    assert describe_row(0, data, 40) == "validation at step 0: tool use 0.30"


def test_without_a_terminal_every_row_is_a_line(tmp_path: Path) -> None:
    path, stream = tmp_path / "m", io.StringIO()
    line = ProgressLine(path, steps=2, label="run", stream=stream)
    line.tick()
    path.write_text("".join(json.dumps(train_row(step, tool__used=0.5)) + "\n" for step in (1, 2)))
    line.tick()
    line.close()
    shown = stream.getvalue().splitlines()
    assert [text.split("step ")[1].split()[0] for text in shown] == ["1/2", "2/2"]


def test_on_a_terminal_one_line_is_redrawn(tmp_path: Path) -> None:
    path, stream = tmp_path / "m", _Terminal()
    line = ProgressLine(path, steps=2, label="run", stream=stream)
    line.tick()
    path.write_text(json.dumps(train_row(1, tool__used=0.5)) + "\n")
    line.close()
    shown = stream.getvalue()
    assert shown.count("\n") == 1 and shown.endswith("\n")
    assert shown.count("\r") == 2
    assert "starting verl" in shown.split("\r")[1] and "step 1/2" in shown.split("\r")[2]


def test_durations() -> None:
    assert [format_duration(seconds) for seconds in (0, 75.9, 3600)] == ["0:00", "1:15", "60:00"]


def test_a_run_in_an_environment_shows_its_outcome() -> None:
    row = {"env/return": 0.75, "env/outcome": 0.5, "tool/used": 1.0, "timing_s/step": 9.0}
    assert describe_row(1, row, 2).endswith("step 1/2  outcome 0.50  step rewards 0.75  9.0 s/step")
