"""Dashboards show metrics that exist, and all that one looks for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from verl_mtgrpo.cli.main import main
from verl_mtgrpo.report.panels import SECTIONS
from verl_mtgrpo.rewards.metric_names import (
    COMPONENT_METRICS,
    DECIDE_METRICS,
    ROLE_METRICS,
    ROLLOUT_METRICS,
    STEP_METRICS,
)

EVERY = {
    name.replace("<k>", "2").replace("<kind>", "timeout")
    for name in (*ROLLOUT_METRICS, *DECIDE_METRICS, *ROLE_METRICS, *STEP_METRICS, *COMPONENT_METRICS)
}
PANELS = [(title, metrics) for panels in SECTIONS.values() for title, metrics in panels.items()]
# What verl names the mean over the samples of a validation prompt.
VALIDATION = {f"val-aux/nq/{name}/mean@1" for name in EVERY}


@pytest.mark.parametrize(("title", "metrics"), PANELS)
def test_a_panel_shows_metrics_that_are_logged(title: str, metrics: str | list[str]):
    if isinstance(metrics, str):
        assert [name for name in EVERY | VALIDATION if re.fullmatch(metrics, name)], title
    else:
        assert set(metrics) <= EVERY


def test_nothing_that_one_looks_for_is_left_out():
    def shown(name: str) -> bool:
        return any(re.fullmatch(one, name) if isinstance(one, str) else name in one for _, one in PANELS)

    assert not {name for name in EVERY if name.startswith("guard/") and not shown(name)}
    assert shown("turn/7/reward") and shown("tool/errors/bad_arguments") and not shown("turn/7/reward_total")


def test_the_view_is_one_that_wandb_reads(capsys: pytest.CaptureFixture[str]):
    views = pytest.importorskip("wandb_workspaces.workspaces", reason="needs the extra panels")
    assert main(["panels", "team/project", "--name", "Mine", "--dry-run"]) == 0
    spec: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (spec["entity"], spec["project"], spec["displayName"]) == ("team", "project", "Mine")
    read = views.Workspace._from_model(views.internal.View.model_validate(spec))
    assert [section.name for section in read.sections] == list(SECTIONS)
    first = read.sections[0].panels[0]
    assert (first.title, first.metric_regex) == ("Reward by turn", r"^turn/\d+/reward$")
    (turns,) = [panel for panel in read.sections[0].panels if panel.title == "Turns"]
    assert [metric.name for metric in turns.y] == ["turn/count"]


def test_a_project_without_an_entity(capsys: pytest.CaptureFixture[str]):
    assert main(["panels", "project", "--dry-run"]) == 1
    assert "'project' names no project, expected ENTITY/PROJECT" in capsys.readouterr().err


@pytest.mark.process
def test_a_missing_package_is_named():
    code = (
        "import sys, importlib.util as u; there = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'wandb_workspaces' else there(name, *a)\n"
        "from verl_mtgrpo.cli.main import main; sys.exit(main(['panels', 'a/b']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and 'pip install "verl-mtgrpo[panels]"' in done.stderr
