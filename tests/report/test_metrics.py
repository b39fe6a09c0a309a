from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.report.made import train_row, validation_data, write_rows
from verl_mtgrpo.report.metrics import RunMetrics, collect_metrics, parse_rows, read_metrics


def test_validation_is_averaged_over_data_sources(tmp_path: Path) -> None:
    data = {**validation_data("one_hop", 4, outcome__em=0.2), **validation_data("a/b", 4, outcome__em=0.6)}
    metrics = read_metrics([write_rows(tmp_path / "m", [{"step": 0, "data": data}])])
    assert metrics.validation == {"outcome/em": {0: pytest.approx(0.4)}}
    assert metrics.train == {}
    assert metrics.last_step == 0


def test_other_validation_statistics_are_left_out() -> None:
    data = {"val-aux/w/outcome/em/best@4/mean": 0.9, "val-aux/w/outcome/em/std@4": 0.1, "val-aux/num_turns/mean": 3}
    assert collect_metrics([(0, data)]).validation == {}


def test_a_training_row_with_validation_gives_both(tmp_path: Path) -> None:
    row = train_row(4, tool__used=0.5)
    row["data"].update(validation_data("w", 4, tool__used=0.75))
    metrics = read_metrics([write_rows(tmp_path / "m", [row])])
    assert metrics.train["tool/used"] == {4: 0.5}
    assert metrics.validation["tool/used"] == {4: 0.75}


def test_a_resumed_run_counts_the_later_row_of_a_step(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "1", [train_row(1, tool__used=0.1), train_row(2, tool__used=0.2)])
    second = write_rows(tmp_path / "2", [train_row(2, tool__used=0.3), train_row(3, tool__used=0.4)])
    metrics = read_metrics([first, second])
    assert metrics.train["tool/used"] == {1: 0.1, 2: 0.3, 3: 0.4}
    assert metrics.last_step == 3


def test_a_line_still_being_written_is_left_out() -> None:
    line = json.dumps(train_row(1, tool__used=0.1))
    assert len(parse_rows(line + "\n" + line[:20])) == 1


def test_json_and_back() -> None:
    metrics = RunMetrics(train={"a": {1: 0.5, 10: 0.25}}, validation={"b": {0: 1.0}})
    assert RunMetrics.from_dict(json.loads(json.dumps(metrics.to_dict()))) == metrics
