"""A run as a folder: finished, interrupted, replaced, refused. Training itself is tested under the mark verl."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.demo.runs import assets_below
from tests.report.made import train_row, validation_data, write_rows
from verl_mtgrpo.demo import runs
from verl_mtgrpo.demo.runs import RunPlan, checkpoint_step, finished_result, train_to_end
from verl_mtgrpo.demo.session import plan_run
from verl_mtgrpo.demo.training import DemoSettings
from verl_mtgrpo.errors import TrainingFailed
from verl_mtgrpo.launch.command import TrainCommand

pytestmark = pytest.mark.process

_SETTINGS = dataclasses.replace(DemoSettings(), steps=2)


class _Trainer:
    """Takes the place of verl's process: writes what verl would, notes how it was called."""

    def __init__(self, plan: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plan = plan
        self.commands: list[TrainCommand] = []
        self.stop_after: int | None = None
        monkeypatch.setattr(runs, "run_train_command", self)

    def __call__(self, command: TrainCommand, *, log: Path, on_tick: object) -> int:
        self.commands.append(command)
        first = checkpoint_step(self.plan.folder)
        rows = [train_row(step, tool__used=0.1 * step) for step in range(first + 1, self.plan.settings.steps + 1)]
        if "trainer.val_before_train=True" in command.overrides:
            rows.insert(0, self._validation(first))
        if first < self.plan.settings.steps:
            rows[-1]["data"].update(self._validation(self.plan.settings.steps)["data"])
        if self.stop_after is not None:
            rows = [row for row in rows if row["step"] <= self.stop_after]
            log.write_text("RuntimeError: no more\n")
        write_rows(Path(command.env["VERL_FILE_LOGGER_PATH"]), rows)
        return 0 if self.stop_after is None else 1

    @staticmethod
    def _validation(step: int) -> dict[str, object]:
        return {"step": step, "data": validation_data("w", 4, tool__used=0.2 + step, outcome__em=0.3)}

    def save(self, step: int) -> None:
        marker = self.plan.folder / "checkpoints" / "latest_checkpointed_iteration.txt"
        (marker.parent / f"global_step_{step}").mkdir(parents=True)
        marker.write_text(str(step))


@pytest.fixture
def plan(tmp_path: Path) -> RunPlan:
    return RunPlan(tmp_path / "run", "mt_grpo", 7, assets_below(tmp_path), _SETTINGS)


@pytest.fixture
def trainer(plan: RunPlan, monkeypatch: pytest.MonkeyPatch) -> _Trainer:
    return _Trainer(plan, monkeypatch)


def test_a_finished_run_is_not_trained_again(plan: RunPlan, trainer: _Trainer) -> None:
    first = train_to_end(plan, label="run")
    again = train_to_end(plan, label="run")
    assert len(trainer.commands) == 1
    assert (first.reused, again.reused) == (False, True)
    assert again.metrics == first.metrics
    assert again.metrics.validation["tool/used"] == {0: 0.2, 2: 2.2}


def test_an_interrupted_run_goes_on_from_its_checkpoint(plan: RunPlan, trainer: _Trainer) -> None:
    trainer.stop_after = 1
    with pytest.raises(TrainingFailed, match="no more"):
        train_to_end(plan, label="run")
    assert finished_result(plan) is None
    trainer.save(1)
    trainer.stop_after = None
    result = train_to_end(plan, label="run")
    assert "trainer.val_before_train=False" in trainer.commands[1].overrides
    assert result.metrics.train["tool/used"] == {1: 0.1, 2: 0.2}
    assert result.metrics.validation["tool/used"] == {0: 0.2, 2: 2.2}
    assert result.starts == 2


def test_without_a_checkpoint_a_run_begins_again(plan: RunPlan, trainer: _Trainer) -> None:
    trainer.stop_after = 1
    with pytest.raises(TrainingFailed):
        train_to_end(plan, label="run")
    trainer.stop_after = None
    train_to_end(plan, label="run")
    assert "trainer.val_before_train=True" in trainer.commands[1].overrides
    assert [path.name for path in plan.folder.glob("metrics-*")] == ["metrics-002.jsonl"]


def test_killed_between_last_checkpoint_and_last_validation(plan: RunPlan, trainer: _Trainer) -> None:
    """verl then has nothing to train: the validation it does first is the missing one."""
    trainer.stop_after = 1
    with pytest.raises(TrainingFailed):
        train_to_end(plan, label="run")
    trainer.save(2)
    trainer.stop_after = None
    result = train_to_end(plan, label="run")
    assert "trainer.val_before_train=True" in trainer.commands[1].overrides
    assert result.metrics.validation["tool/used"] == {0: 0.2, 2: 2.2}
    assert result.metrics.train["tool/used"] == {1: 0.1}


@pytest.mark.parametrize("change", [{"seed": 8}, {"preset": "grpo_or"}, {"settings": DemoSettings()}])
def test_another_run_replaces_what_is_there(plan: RunPlan, trainer: _Trainer, change: dict[str, object]) -> None:
    train_to_end(plan, label="run")
    (plan.folder / "left over").touch()
    other = dataclasses.replace(plan, **change)
    assert finished_result(other) is None
    trainer.plan = other
    train_to_end(other, label="run")
    assert not (plan.folder / "left over").exists()
    assert finished_result(plan) is None


def test_a_folder_that_is_not_ours_is_refused(plan: RunPlan, trainer: _Trainer) -> None:
    plan.folder.mkdir()
    (plan.folder / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="no run of the demo"):
        train_to_end(plan, label="run")
    assert (plan.folder / "thesis.txt").exists()


def test_an_early_end_without_error_is_an_error(plan: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(command: TrainCommand, **_: object) -> int:
        write_rows(Path(command.env["VERL_FILE_LOGGER_PATH"]), [train_row(1)])
        return 0

    monkeypatch.setattr(runs, "run_train_command", nothing)
    with pytest.raises(TrainingFailed, match=r"step 1 of 2.*tool/used.*outcome/em"):
        train_to_end(plan, label="run")
    assert not (plan.folder / "result.json").exists()


def test_state_survives_being_read_back(plan: RunPlan, trainer: _Trainer) -> None:
    train_to_end(plan, label="run")
    assert json.loads((plan.folder / "run.json").read_text())["identity"] == plan.identity()


def test_another_rollout_engine_is_another_run_in_another_folder(tmp_path: Path) -> None:
    assets = assets_below(tmp_path)

    def plan_with(rollout: str) -> RunPlan:
        return plan_run(tmp_path, assets, preset="mt_grpo", seed=0, settings=_SETTINGS, rollout=rollout)

    usual, vllm = plan_with("hf_cpu"), plan_with("vllm")
    assert usual == plan_run(tmp_path, assets, preset="mt_grpo", seed=0, settings=_SETTINGS)
    assert (usual.folder.name, vllm.folder.name) == ("mt_grpo-seed0", "mt_grpo-vllm-seed0")
    assert vllm.identity() == {**usual.identity(), "rollout": "vllm"}
    words = vllm.command(metrics=tmp_path / "m.jsonl", validate_first=True).argv()
    assert "+mtgrpo_cpu=vllm" in words and "+mtgrpo_cpu=default" not in words


def test_another_learning_rate_is_another_run_in_another_folder(tmp_path: Path) -> None:
    """Otherwise the run at half the rate would replace the finished one."""
    half = dataclasses.replace(_SETTINGS, lr=_SETTINGS.lr / 2)
    plans = [
        plan_run(tmp_path, assets_below(tmp_path), preset="mt_grpo", seed=0, settings=settings)
        for settings in (_SETTINGS, half)
    ]
    assert [plan.folder.name for plan in plans] == ["mt_grpo-seed0", "mt_grpo-lr0.00015-seed0"]
    assert plans[0].identity() != plans[1].identity()
