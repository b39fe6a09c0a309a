"""Make short runs of verl's real trainer with the toy policy, and check what holds in all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training import TrainingRun, train
from verl_mtgrpo.demo.toy import Speech, make_toy
from verl_mtgrpo.integration.hydra.resolvers import asset

ROLLOUTS, QUESTIONS = 8, 4


def make_assets(folder: Path, speech: Speech) -> Path:
    return make_toy(folder, speech, questions=2 * QUESTIONS)


def run(
    assets: Path,
    folder: Path,
    *overrides: str,
    preset: str = "mt_grpo",
    env: Mapping[str, str] | None = None,
    cpu: str = "default",
    kill_after_step: int | None = None,
) -> TrainingRun:
    rollout = "actor_rollout_ref.rollout"
    settings = [
        f"actor_rollout_ref.model.path={assets / 'policy'}",
        f"data.train_files={assets / 'train.parquet'}",
        f"data.val_files={assets / 'val.parquet'}",
        f"data.train_batch_size={QUESTIONS}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={QUESTIONS}",
        "actor_rollout_ref.actor.optim.lr=1e-5",  # small, so that both habits are still there in the second step
        "data.max_prompt_length=64",
        "data.max_response_length=160",
        f"{rollout}.n={ROLLOUTS}",
        f"{rollout}.multi_turn.max_assistant_turns=2",
        f"{rollout}.val_kwargs.n=4",
        f"{rollout}.val_kwargs.do_sample=True",
        f"{rollout}.val_kwargs.temperature=1.0",
        "trainer.total_training_steps=2",
        "trainer.total_epochs=2",
        "trainer.test_freq=2",
        "trainer.val_before_train=False",
        f"trainer.validation_data_dir={folder / 'val'}",
        "trainer.resume_mode=disable",
        "trainer.save_freq=-1",
    ]
    groups = (f"+mtgrpo={preset}", f"+mtgrpo_cpu={cpu}")
    env = {"MTGRPO_INDEX": str(assets / "index"), **(env or {})}
    return train(folder, [*settings, *overrides], groups=groups, env=env, timeout=400, kill_after_step=kill_after_step)


def tool_yaml(folder: Path, **changes: Any) -> str:
    """Write a copy of the packaged tool YAML with other settings."""
    tools = yaml.safe_load(Path(asset("tools/search_tool.yaml")).read_text())
    tools["tools"][0]["config"].update(changes)
    (folder / "tool.yaml").write_text(yaml.safe_dump(tools))
    return f"actor_rollout_ref.rollout.multi_turn.tool_config_path={folder / 'tool.yaml'}"


def run_format(speech: Speech, tmp_path: Path, *overrides: str, cpu: str = "default") -> TrainingRun:
    """Train two steps of turn_rloo, and check what holds in every format."""
    assets = make_assets(tmp_path / "assets", speech)
    rollout = "actor_rollout_ref.rollout"
    settings = [f"{rollout}.multi_turn.format={speech.format}", f"{rollout}.agent.default_agent_loop={speech.loop}"]
    result = run(assets, tmp_path, *settings, *overrides, preset="turn_rloo", cpu=cpu)
    assert result.returncode == 0, result.tail()
    assert set(result.steps) == {1, 2}
    for step in result.steps.values():
        assert 0 < step["turn/2/rollouts"] < QUESTIONS * ROLLOUTS, "both habits occur"
        assert step["tool/used"] > 0
        paid = step["turn/1/reward"] + step["turn/2/reward"] * step["turn/2/rollouts"] / step["turn/1/rollouts"]
        # A dropped rollout is in no mean, not even in verl's.
        assert step["critic/score/mean"] == pytest.approx(paid, abs=1e-4)
        assert step["critic/advantages/max"] > 0 > step["critic/advantages/min"]
        assert step["training/rollout_probs_diff_max"] < 1e-3
    rows = [json.loads(line) for line in (tmp_path / "val" / "2.jsonl").read_text().splitlines()]
    transcripts = [json.loads(row["transcript"])["turns"] for row in rows]
    searched = [turns for turns in transcripts if len(turns) == 2]
    assert searched
    for first, _ in searched:
        closing = speech.call[speech.call.rfind("</") :]
        assert first["text"].rstrip().endswith(closing), "cut behind the closing tag"
        (call,) = first["tool_calls"]
        assert not call["result"].startswith("<"), "the tags belong to the format"
    return result


class Steps:
    """Return the steps that a run has logged so far."""

    def __init__(self, file: Path) -> None:
        self.file, self.stop = file, False

    def wait_for(self, there: Callable[[list[dict[str, Any]]], bool]) -> None:
        while not self.stop and not there(self._read()):
            time.sleep(0.05)

    def _read(self) -> list[dict[str, Any]]:
        text = self.file.read_text() if self.file.exists() else ""
        rows = [json.loads(line)["data"] for line in text.rpartition("\n")[0].splitlines()]
        return [row for row in rows if "tool/outage" in row]
