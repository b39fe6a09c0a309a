"""Train a few real steps of a command line on this machine's CPU, with a tiny policy in the place of its model.

The command's overrides come first and stay as they are; what a CPU and a tiny policy need is appended, and every value
that is changed is printed. Agent loop, tools, rewards, estimator and losses are those of the command.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.toy.assets import OWN_RESPONSE, make_assets
from verl_mtgrpo.toy.shrink import MEGATRON, as_overrides, cpu_values, files, sizes, without_megatron, written

if TYPE_CHECKING:
    from verl_mtgrpo.doctor.compose import CommandLine
    from verl_mtgrpo.toy.policy import Toy

_MEGATRON_PRIMARY = "ppo_megatron_trainer"
_SHOWN = ("tool/used", "tool/success_rate", "turn/1/reward", "turn/2/reward", "outcome/reward", "critic/score/mean")


@dataclass(frozen=True)
class Trial:
    """A command line to try.

    Attributes:
        name: What it is called in messages.
        line: The command line.
        out: A folder that is emptied first, for all that the run writes.
        made: A folder for policies and questions, which are kept.
        steps: Training steps.
        env: More environment variables.
        cwd: The working directory of the run.
        launcher: A program that gets the trainer's command.
    """

    name: str
    line: CommandLine
    out: Path
    made: Path
    steps: int = 2
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    cwd: Path | None = None
    launcher: str = ""


def try_steps(trial: Trial) -> int:
    """Train the steps; return 0 if all were logged.

    Raises:
        ConfigError: The command does not compose, is wrong, or cannot be tried on a CPU.
    """
    from verl_mtgrpo.launch.failure import failure_report
    from verl_mtgrpo.toy.answers import answers, calls_in

    shutil.rmtree(trial.out, ignore_errors=True)
    config = check_config(trial.line)
    line, dropped = _on_fsdp(trial.line)
    assets = make_assets(trial.made, config)
    changes = {
        **cpu_values(line.overrides),
        **sizes(config, steps=trial.steps, prompt=assets.prompt, response=assets.response),
        **files(trial.out, assets.folder),
        **assets.changes,
    }
    report(trial.name, line.overrides, dropped, changes)
    started, log, metrics = time.monotonic(), trial.out / "log.txt", trial.out / "metrics.jsonl"
    options = [f"--config-path={line.path}"] * bool(line.path) + [f"--config-name={line.name}"] * bool(line.name)
    added = [] if "mtgrpo_cpu" in written(line.overrides) else ["+mtgrpo_cpu=default"]
    command = [*options, *line.overrides, *added, *as_overrides(changes)]
    code = _train(replace(trial, line=line), command, assets.index, metrics, log)
    steps = _logged(metrics)
    if code or not {1, trial.steps} <= set(steps):
        print(f"{trial.name}: steps {sorted(steps)} were logged. {failure_report(code, log)}", file=sys.stderr)
        return code or 1
    print(f"{trial.name}: dry run passed, {trial.steps} steps in {time.monotonic() - started:.0f} s. Log: {log}")
    for said in summary({step: steps[step] for step in sorted({1, trial.steps})}):
        print(f"    {said}")
    for said in answers(calls_in(trial.out / "rollouts")):
        print(f"    {said}")
    return 0


def summary(steps: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the metrics of each step, in a line, and how to read them."""
    for step, metrics in steps.items():
        yield f"step {step}: {', '.join(f'{name} {metrics[name]:.2f}' for name in _SHOWN if name in metrics)}"
    yield (
        "Each is a mean over the rollouts that have it. turn/1/reward holds the outcome of those that end with turn 1, "
        "so the turns and the outcome do not add up to the score"
    )


def check_config(line: CommandLine) -> Any:
    """Compose the command exactly as written with verl's real config, check it as at the start of a run; return it."""
    from omegaconf import OmegaConf

    from verl_mtgrpo.doctor.compose import PRIMARY, compose_config
    from verl_mtgrpo.doctor.models import has_critic
    from verl_mtgrpo.integration.parts import uses_turns
    from verl_mtgrpo.integration.preflight import check_run
    from verl_mtgrpo.integration.row_loops import check_agent_names
    from verl_mtgrpo.toy.rows import files_here

    config = compose_config(line)
    OmegaConf.resolve(config)
    if uses_turns(config):
        check_run(config)
        for file in (*files_here(config.data.train_files), *files_here(config.data.val_files)):
            check_agent_names(str(file), config)
    if OmegaConf.select(config, "reward.reward_model.enable"):
        raise ConfigError(
            "reward.reward_model.enable=True: a reward model needs a GPU, so this run cannot be tried on a CPU",
            fix="try it with reward.reward_model.enable=False",
        )
    actor, critic = config.actor_rollout_ref, " with a critic" if has_critic(config) else ""
    print(
        f"as written: {config.algorithm.adv_estimator}{critic} on {actor.actor.strategy}, {actor.model.path}, "
        f"{config.data.train_batch_size} questions x {actor.rollout.n} rollouts; composes with verl's "
        f"{line.name or PRIMARY}"
    )
    return config


def _on_fsdp(line: CommandLine) -> tuple[CommandLine, list[str]]:
    """Return the command line for FSDP2, and what only Megatron knows of it."""
    named = [MEGATRON[1]] if line.name == _MEGATRON_PRIMARY else []
    overrides, dropped = without_megatron([*named, *line.overrides])
    name = None if named else line.name
    return replace(line, overrides=tuple(overrides), name=name), dropped


def toy_overrides(toy: Toy) -> list[str]:
    """Return the overrides of a small training of a policy made for some tools, on a CPU."""
    sized = {
        "actor_rollout_ref.model.path": toy.folder / "policy",
        "data.train_files": toy.folder / "train.parquet",
        "data.val_files": toy.folder / "val.parquet",
        "data.max_prompt_length": toy.prompt_tokens,
        "data.max_response_length": OWN_RESPONSE,
        "data.train_batch_size": 8,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 8,
        "actor_rollout_ref.rollout.n": 8,
        "actor_rollout_ref.actor.optim.lr": 3e-4,
        "actor_rollout_ref.rollout.multi_turn.max_assistant_turns": 3,
        "trainer.total_training_steps": 20,
        "trainer.total_epochs": 20,
    }
    return as_overrides(sized)


def report(name: str, overrides: Sequence[str], dropped: Sequence[str], changes: Mapping[str, Any]) -> None:
    """Print what the dry run changes, and what the command said."""
    if dropped:
        print("Megatron needs a GPU: its engine is replaced by FSDP2, everything else stays. Left out:")
        print("".join(f"    {one}\n" for one in dropped), end="")
    said = written(overrides)
    print(f"{name}: +mtgrpo_cpu=default, and instead of what the recipe says:")
    for (key, value), new in zip(changes.items(), as_overrides(changes), strict=True):
        if str(value) != said.get(key):
            print(f"    {new}" + (f"    (recipe: {said[key]})" if key in said else ""))
    sys.stdout.flush()


def _train(trial: Trial, arguments: Sequence[str], index: Path | None, metrics: Path, log: Path) -> int:
    """Run the trainer to its end and return its exit code; nothing that it started is left afterwards."""
    from verl_mtgrpo.launch.command import private_ray
    from verl_mtgrpo.launch.process import run_child

    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "DRY_RUN")},
        **trial.env,
        "VERL_PLATFORM": "cpu",
        "VERL_FILE_LOGGER_PATH": str(metrics),
        "HF_HUB_OFFLINE": "1",
        **({"MTGRPO_INDEX": str(index)} if index else {}),
    }
    command = [*shlex.split(trial.launcher), sys.executable, "-m", "verl.trainer.main_ppo", *arguments]
    with private_ray() as ray:
        return run_child(command, env={**environment, **ray}, log=log, cwd=trial.cwd)


def _logged(metrics: Path) -> dict[int, dict[str, Any]]:
    """Return the metrics of each logged step."""
    steps: dict[int, dict[str, Any]] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []:
        record = json.loads(line)
        steps.setdefault(record["step"], {}).update(record["data"])
    return steps
