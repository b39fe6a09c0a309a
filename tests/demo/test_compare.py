from __future__ import annotations

import json
from pathlib import Path

import pytest

from verl_mtgrpo.cli.compare import write_comparison
from verl_mtgrpo.demo.runs import RunResult
from verl_mtgrpo.demo.training import DemoSettings
from verl_mtgrpo.launch.provenance import describe_machine, describe_source
from verl_mtgrpo.report.metrics import RunMetrics
from verl_mtgrpo.version import __version__


def _run(start: float, end: float) -> RunResult:
    metrics = RunMetrics(
        train={"tool/used": {1: start, 2: end}, "actor/lr": {1: 1e-3, 2: 1e-3}},
        validation={"tool/used": {0: start, 2: end}, "outcome/em": {0: 0.25, 2: 0.5}},
    )
    return RunResult(metrics, 90.0, 1, "0.1, commit abc", reused=False)


def test_table_plot_and_data_say_the_same(tmp_path: Path) -> None:
    results = {
        "grpo_or": {0: _run(0.3, 0.2), 1: _run(0.3, 0.4)},
        "mt_grpo": {0: _run(0.3, 0.96), 1: _run(0.3, 1.0)},
    }
    write_comparison(tmp_path, results, settings=DemoSettings(), world="easy")
    table = (tmp_path / "comparison.md").read_text()
    assert "| before training | 0.300 (0.300 to 0.300) | – | 0.250 (0.250 to 0.250) | – |" in table
    assert "| GRPO-OR | 0.300 (0.200 to 0.400) |" in table
    assert "| MT-GRPO | 0.980 (0.960 to 1.000) |" in table
    # Differences .76 and .60: mean .68, half width 12.706 (t, one degree of freedom) * .08.
    assert (
        "| MT-GRPO – GRPO-OR | +0.680 [-0.336, +1.696], above 0 in 2 of 2 | – | +0.000, above 0 in 0 of 2 | – |"
        in table
    )
    assert "- world: easy\n" in table
    assert "- seeds: 0, 1" in table and "- source: 0.1, commit abc" in table and "prompts 16" in table
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert [(run["preset"], run["seed"]) for run in data["runs"]] == [
        ("grpo_or", 0), ("grpo_or", 1), ("mt_grpo", 0), ("mt_grpo", 1)
    ]  # fmt: skip
    assert data["runs"][3]["validation"]["tool/used"] == {"0": 0.3, "2": 1.0}
    assert (tmp_path / "comparison.png").read_bytes()[:4] == b"\x89PNG"


def test_a_value_that_a_run_lacks_does_not_shift_its_row(tmp_path: Path) -> None:
    write_comparison(tmp_path, {"mt_grpo": {0: _run(0.3, 0.9)}}, settings=DemoSettings(), world="easy")
    (row,) = [line for line in (tmp_path / "comparison.md").read_text().splitlines() if "seed 0" in line]
    assert row == "| MT-GRPO, seed 0 | 0.900 | – | 0.500 | – | 1:30 |"


def test_methods_are_compared_at_equal_training_time_too(tmp_path: Path) -> None:
    def run(seconds: list[float], values: list[float]) -> RunResult:
        steps = range(1, len(values) + 1)
        train = {
            "timing_s/step": dict(zip(steps, seconds, strict=True)),
            "outcome/em": dict(zip(steps, values, strict=True)),
        }
        return RunResult(RunMetrics(train, {"outcome/em": {0: 0.1, len(values): values[-1]}}), 90.0, 1, "x", False)

    # The quick method takes 8 s for its 8 steps. In that time the slow one gets through 5 of seed 0, 4 of seed 1.
    quick = {seed: run([1.0] * 8, [0.1 * step for step in range(1, 9)]) for seed in (0, 1)}
    slow = {
        0: run([3.0, 1.0, 1.0, 1.0, 2.0, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5, 1.0, 0.0, 0.0, 0.0]),
        1: run([2.0] * 8, [0.2, 0.2, 0.2, 0.6, 0.0, 0.0, 0.0, 0.0]),
    }
    write_comparison(tmp_path, {"archer": slow, "mt_grpo": quick}, settings=DemoSettings(), world="easy")
    _, _, table = (tmp_path / "comparison.md").read_text().partition("At equal training time")
    # slow: (4 * .5 + 1) / 5 = .6 and 1.2 / 4 = .3; quick: (.4 + .5 + .6 + .7 + .8) / 5 = .6.
    assert "| ARCHER | 4 (4 to 5) | – | – | 0.450 (0.300 to 0.600) | – |" in table
    assert "| MT-GRPO | 8 (8 to 8) | – | – | 0.600 (0.600 to 0.600) | – |" in table


@pytest.mark.process
def test_provenance_names_version_and_packages() -> None:
    assert describe_source().startswith(__version__)
    machine = describe_machine()
    assert "cores" in machine["machine"] and "torch" in machine["packages"]
