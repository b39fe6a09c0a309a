"""A plain verl recipe with tools that are not search, switched by `mtgrpo init` and tried on a CPU: two real steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("verl")

from tests.training import REPOSITORY
from verl_mtgrpo.report.rollouts import read_dump

pytestmark = pytest.mark.verl

EXAMPLE = REPOSITORY / "examples" / "own_tool"


def mtgrpo(folder: Path, *words: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "DATA": str(folder / "data")}
    command = [sys.executable, "-m", "verl_mtgrpo.cli.main", *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout


def test_a_recipe_with_tools_of_its_own_is_switched_and_trains(tmp_path: Path):
    prompt = "Ask the tools. Write the answer between <answer> and </answer>."
    mtgrpo(tmp_path, "data", str(EXAMPLE / "questions.jsonl"), "--out", "data", "--system-prompt", prompt)
    train = tmp_path / "data" / "train.parquet"  # with the column that the data of verl's tool examples have
    rows = pq.read_table(train)
    pq.write_table(rows.append_column("agent_name", pa.array(["tool_agent"] * len(rows))), train)
    mtgrpo(tmp_path, "init", str(EXAMPLE / "train.sh"), "--out", "mine")
    said = mtgrpo(tmp_path, "doctor", "--try-step", "--out", "try", "--", "bash", "mine/run.sh")
    assert "as written: mt_grpo on fsdp, Qwen/Qwen2.5-3B-Instruct, 128 questions x 8 rollouts" in said
    assert "actor_rollout_ref.model.path=" in said and "(recipe: Qwen/Qwen2.5-3B-Instruct)" in said
    check(tmp_path / "try" / "run")


def check(run: Path) -> None:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    steps = {one["step"]: one["data"] for one in lines if "turn/1/reward" in one["data"]}
    assert set(steps) == {1, 2}
    for step in steps.values():
        assert 0.1 < step["tool/used"] < 1, "the policy calls the tools, and not always"
        assert 0 < step["turn/2/rollouts"] < step["turn/1/rollouts"]
        assert step["critic/advantages/max"] > 0 > step["critic/advantages/min"]
        assert 0 < step["tool/sql_worked"] + step["tool/columns_worked"] < 2, "the turn rewards that were written"
    rollouts = [one for path in sorted((run / "rollouts").glob("*.jsonl")) for one in read_dump(path)]
    calls = [call for one in rollouts for turn in one.transcript.turns for call in turn.tool_calls]
    worked = {call.name for call in calls if call.ok}
    assert worked == {"sql", "columns"}
    assert any(not call.ok for call in calls), "and some habits are bad"
    for one in rollouts:
        first: set[str] = set()
        for turn, paid in zip(one.transcript.turns[:-1], one.turn_rewards, strict=False):
            good = {call.name for call in turn.tool_calls if call.ok} - first
            failed = sum(not call.ok for call in turn.tool_calls)
            assert paid == pytest.approx(0.2 * len(good) - 0.1 * failed), "each turn is paid for its own calls"
            first |= good
