from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests.demo.runs import assets_below
from tests.report.made import dump_row, transcript, write_rows
from verl_mtgrpo.cli.demo import show_result
from verl_mtgrpo.config import group_names
from verl_mtgrpo.demo.runs import RunPlan, RunResult
from verl_mtgrpo.demo.session import settings_from
from verl_mtgrpo.demo.training import DemoSettings
from verl_mtgrpo.demo.worlds import PAPER, WORLDS
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.launch.command import TrainCommand
from verl_mtgrpo.report.metrics import RunMetrics


def test_steps_come_from_the_flag_then_the_environment_then_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEMO_STEPS", raising=False)
    assert settings_from(None) == DemoSettings()
    monkeypatch.setenv("DEMO_STEPS", "7")
    assert settings_from(None).steps == 7
    assert settings_from(3).steps == 3
    monkeypatch.setenv("DEMO_STEPS", "")
    assert settings_from(None) == DemoSettings()


def test_a_world_brings_its_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEMO_STEPS", raising=False)
    easy, hops = settings_from(None, "easy"), settings_from(4, "hops")
    assert easy == DemoSettings(steps=30)
    assert (hops.steps, hops.assistant_turns, hops.rewards) == (4, 4, "paper_v2")


@pytest.mark.parametrize("steps", ["many", "0", "-2", "1.5"])
def test_other_step_counts_are_refused(steps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO_STEPS", steps)
    with pytest.raises(ConfigError, match=f"'{steps}'; set --steps or DEMO_STEPS to 1 or more"):
        settings_from(None)


@pytest.mark.parametrize("lr", [0.0, -1e-4, float("nan"), float("inf")])
def test_other_learning_rates_are_refused(lr: float) -> None:
    with pytest.raises(ConfigError, match=r"the learning rate is .*; set --lr to a positive number"):
        settings_from(3, lr=lr)


@pytest.mark.compose
@pytest.mark.parametrize(("preset", "world"), [*((preset, PAPER) for preset in group_names()), ("mt_grpo", "hops")])
def test_settings_compose_with_verls_config(preset: str, world: str, tmp_path: Path) -> None:
    """The very overrides of the command line, through Hydra's compose and verl's own primary config."""
    pytest.importorskip("verl")
    from tests.composed import composed

    settings = dataclasses.replace(WORLDS[world].training, steps=5)
    plan = RunPlan(tmp_path / "a run", preset, 3, assets_below(tmp_path), settings)
    command = plan.command(metrics=tmp_path / "m.jsonl", validate_first=True)
    overrides = [word for word in command.argv()[3:] if not word.startswith("hydra.run.dir")]
    config = composed(*overrides)
    assert config.trainer.total_training_steps == 5
    assert config.trainer.val_before_train is True
    assert config.trainer.device == "cpu"
    assert config.actor_rollout_ref.rollout.n == settings.rollouts
    assert config.actor_rollout_ref.rollout.multi_turn.max_assistant_turns == settings.assistant_turns
    assert config.reward.turn.preset == ("paper_v2" if world == "hops" else "paper_v1")
    assert config.actor_rollout_ref.actor.optim.lr == settings.lr
    assert config.trainer.default_local_dir == str(tmp_path / "a run" / "checkpoints")
    assert config.actor_rollout_ref.rollout.multi_turn.tool_config_path == str(tmp_path / "search_tool.yaml")
    assert config.data.seed == 3
    of_verl = {
        "grpo_or": "grpo",
        "grpo_mr": "grpo",
        "ppo_or": "gae",
        "ppo_mr": "gae",
        "mt_ppo": "gae",
        "mhgpo_search": "mhgpo",
        "rema": "mhgpo",
        "archer": "turn_td",
    }
    assert config.algorithm.adv_estimator == of_verl.get(preset, preset)
    assert config.critic.optim.lr == settings.critic_lr


def test_command_names_what_the_run_needs(tmp_path: Path) -> None:
    plan = RunPlan(tmp_path / "run", "mt_grpo", 0, assets_below(tmp_path), DemoSettings())
    command = plan.command(metrics=tmp_path / "m.jsonl", validate_first=False)
    assert isinstance(command, TrainCommand)
    assert command.variables() == {
        "VERL_PLATFORM": "cpu",
        "MTGRPO_INDEX": str(tmp_path / "index"),
        "VERL_FILE_LOGGER_PATH": str(tmp_path / "m.jsonl"),
    }
    assert "trainer.val_before_train=False" in command.overrides


@pytest.mark.process
def test_shows_table_rollouts_and_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = RunPlan(tmp_path / "run", "mt_grpo", 0, assets_below(tmp_path), DemoSettings())
    plan.validation.mkdir(parents=True)
    rows = [
        dump_row("a", 0, transcript("Vel", searches=["Orrin"]), [0.5, 1.0]),
        dump_row("a", 1, transcript("Mar"), [0.0]),
        dump_row("b", 0, transcript("Mar"), [0.0]),
    ]
    write_rows(plan.validation / f"{plan.settings.steps}.jsonl", rows)
    metrics = RunMetrics(train={"tool/used": {1: 0.5}}, validation={"tool/used": {0: 0.25, 40: 0.975}})
    page = tmp_path / "report.html"
    show_result(plan, RunResult(metrics, 100.0, 1, "0.1", reused=False), curve=tmp_path / "curves.png", page=page)
    shown = capsys.readouterr().out
    assert "tool execution" in shown and "0.250" in shown and "0.975" in shown and "+0.725" in shown
    assert shown.count("question: ") == 3
    assert "advantage +1.41" in shown
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert str(page) in shown and page.read_text().startswith("<!doctype html>")
    shutil.rmtree(plan.validation)
