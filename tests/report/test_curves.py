from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from verl_mtgrpo.report.curves import comparison_figure, save_figure, training_figure
from verl_mtgrpo.report.metrics import RunMetrics
from verl_mtgrpo.report.tables import ENVIRONMENT_HEADLINES

_RUN = RunMetrics(
    train={
        "tool/used": {1: 0.3, 2: 0.6, 3: 0.9},
        "outcome/em": {1: 0.1, 2: 0.2, 3: 0.4},
        "turn/1/reward": {1: 0.05, 2: 0.1, 3: 0.2},
        "turn/2/reward": {1: 0.5, 3: 0.7},
    },
    validation={"tool/used": {0: 0.25, 3: 1.0}},
)


def test_the_curves_are_the_data() -> None:
    search, answer, reward = training_figure(_RUN, title="t").axes
    lines = {line.get_label(): line for line in search.lines}
    assert list(lines["tool execution"].get_xdata()) == [1, 2, 3]
    assert list(lines["tool execution"].get_ydata()) == [0.3, 0.6, 0.9]
    rings = [list(line.get_ydata()) for line in search.lines if line.get_linestyle() == "None"]
    assert [0.25, 1.0] in rings
    assert "exact match" in [line.get_label() for line in answer.lines]
    assert [(line.get_label(), list(line.get_xdata())) for line in reward.lines] == [
        ("turn 1", [1, 2, 3]),
        ("turn 2", [1, 3]),
    ]


def test_the_band_goes_from_the_lowest_to_the_highest_seed() -> None:
    seeds = [
        RunMetrics(train={"tool/used": {1: 0.1, 2: 0.2}}),
        RunMetrics(train={"tool/used": {1: 0.5, 2: 0.8, 3: 1.0}}),
    ]
    panel = comparison_figure({"MT-GRPO": seeds}, title="t").axes[0]
    (line,) = panel.lines
    assert list(line.get_xdata()) == [1, 2], "step 3 has one seed only"
    assert list(line.get_ydata()) == pytest.approx([0.3, 0.5])
    (band,) = panel.collections
    heights = {(x, round(y, 6)) for x, y in band.get_paths()[0].vertices}
    assert {(1, 0.1), (1, 0.5), (2, 0.2), (2, 0.8)} <= heights


def test_a_run_in_an_environment_has_its_own_panels() -> None:
    run = RunMetrics(train={"env/outcome": {1: 0.1, 2: 0.4}, "env/return": {1: -0.5, 2: 1.3}})
    outcome, rewards, _ = training_figure(run, title="t").axes
    assert [line.get_label() for line in outcome.lines if line.get_label()[0] != "_"] == ["outcome"]
    assert list(rewards.lines[0].get_ydata()) == [-0.5, 1.3]
    assert outcome.get_ylim() == (-0.02, 1.02)
    assert rewards.get_ylim()[0] < -0.5 and rewards.get_ylim()[1] > 1.3, "it is no share"
    panels = comparison_figure({"MT-GRPO": [run]}, title="t", headlines=ENVIRONMENT_HEADLINES).axes
    assert [panel.get_title() for panel in panels] == ["outcome", "step rewards", "turns"]


def test_writes_a_valid_png_with_something_on_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "curves.png"
    save_figure(training_figure(_RUN, title="t"), path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-12:-4] == b"\x00\x00\x00\x00IEND"
    width, height = struct.unpack(">II", data[16:24])
    assert width > 800 and height > 200
    length = struct.unpack(">I", data[8:12])[0]
    assert struct.unpack(">I", data[16 + length : 20 + length])[0] == zlib.crc32(data[12 : 16 + length])
    empty = tmp_path / "empty.png"
    save_figure(training_figure(RunMetrics(), title="t"), empty)
    assert empty.stat().st_size < path.stat().st_size
