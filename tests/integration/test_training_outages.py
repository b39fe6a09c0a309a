"""verl's real trainer while its search service fails: killed and restarted, or never answering some requests."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("verl")

from tests.integration.test_training import run
from tests.retrieval.services import FAULTY, free_port, serving
from verl_mtgrpo.integration.hydra.resolvers import asset


def tool_yaml(folder: Path, **changes: Any) -> str:
    """A copy of the packaged tool YAML with other settings."""
    tools = yaml.safe_load(Path(asset("tools/search_tool.yaml")).read_text())
    tools["tools"][0]["config"].update(changes)
    (folder / "tool.yaml").write_text(yaml.safe_dump(tools))
    return f"actor_rollout_ref.rollout.multi_turn.tool_config_path={folder / 'tool.yaml'}"


@pytest.mark.verl
def test_a_service_that_is_killed_and_restarted_in_the_middle(assets: Path, tmp_path: Path):
    port = free_port()
    steps = Steps(tmp_path / "metrics.jsonl")

    def service():
        return serving("serve", assets / "index", "--port", port)

    def kill_and_restart() -> None:
        with service():
            started.set()
            steps.wait_for(lambda seen: len(seen) >= 1)
        steps.wait_for(lambda seen: any(step["tool/outage"] > 0 for step in seen))
        with service():
            ended.wait(400)

    started, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=kill_and_restart)
    thread.start()
    try:
        assert started.wait(60)
        tool = tool_yaml(tmp_path, index=f"http://127.0.0.1:{port}", patience_s=2.0)
        guard = ["trainer.turn.guards.steps=1", "trainer.turn.guards.tool_failures=0.1"]
        result = run(assets, tmp_path, tool, *guard, "trainer.total_training_steps=12", "trainer.total_epochs=9")
    finally:
        steps.stop = True
        ended.set()
        thread.join()
    assert result.returncode == 0, result.tail()
    outages = [result.steps[step]["tool/outage"] for step in sorted(result.steps)]
    assert len(outages) == 12
    assert outages[0] == outages[-1] == 0.0
    worst = max(result.steps.values(), key=lambda step: step["tool/outage"])
    assert worst["tool/outage"] > 0.05
    assert worst["outcome/dropped"] == worst["tool/outage"]
    assert worst["tool/errors/unreachable"] == worst["tool/failures"] == worst["tool/outage"]
    assert worst["tool/used"] == 0.0 or worst["tool/used"] < 1.0
    assert "of the rollouts are lost: 0% failed" in result.log
    assert worst["tool/failures"] / worst["tool/calls"] >= 0.1
    assert worst["guard/tool_failures"] == 1.0
    assert re.search(r"step \d+: guard tool_failures: \d+% of the tool calls fail", result.log)
    assert "the service is running, host and port are right" in result.log, "what to do"


@pytest.mark.verl
def test_rollouts_that_fail_are_counted_and_training_goes_on(assets: Path, tmp_path: Path):
    with serving(assets / "index", module=FAULTY) as service:
        url = f"{service.url}/never/4/training"
        tool = tool_yaml(tmp_path, index=url, patience_s=3.0, request_timeout_s=2.0, on_outage="raise")
        result = run(assets, tmp_path, tool)
    assert result.returncode == 0, result.tail()
    assert set(result.steps) == {1, 2}
    assert any(0 < step["outcome/failed"] < 1 for step in result.steps.values())
    assert all(step["outcome/dropped"] == 0.0 for step in result.steps.values())
    assert "tool 'search' is down: search at http://127.0.0.1" in result.log


class Steps:
    """The steps that a run has logged so far."""

    def __init__(self, file: Path) -> None:
        self.file, self.stop = file, False

    def wait_for(self, there: Callable[[list[dict[str, Any]]], bool]) -> None:
        while not self.stop and not there(self._read()):
            time.sleep(0.05)

    def _read(self) -> list[dict[str, Any]]:
        text = self.file.read_text() if self.file.exists() else ""
        rows = [json.loads(line)["data"] for line in text.rpartition("\n")[0].splitlines()]
        return [row for row in rows if "tool/outage" in row]
