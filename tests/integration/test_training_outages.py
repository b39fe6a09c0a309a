"""Run verl's real trainer while its search service is killed and restarted, or never answers some requests."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

pytest.importorskip("verl")

from tests.integration.runs import Steps, run, tool_yaml
from tests.retrieval.services import FAULTY, free_port, serving

pytestmark = [pytest.mark.network, pytest.mark.imports_verl]


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
        result = run(assets, tmp_path, tool, *guard, "trainer.total_training_steps=9", "trainer.total_epochs=9")
    finally:
        steps.stop = True
        ended.set()
        thread.join()
    assert result.returncode == 0, result.tail()
    outages = [result.steps[step]["tool/outage"] for step in sorted(result.steps)]
    assert len(outages) == 9
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
