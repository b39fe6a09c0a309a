"""One training run of the demo as a folder that can be finished, resumed or read again.

The folder holds ``run.json`` (the run's identity and how often it was started), one metrics file and one
log per start, verl's checkpoints and validation dumps, and finally ``result.json``.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from verl_mtgrpo.atomic import atomic_write
from verl_mtgrpo.checkpoints import last_checkpoint
from verl_mtgrpo.cpu import ROLLOUT_NAME
from verl_mtgrpo.demo.training import DemoSettings
from verl_mtgrpo.errors import TrainingFailed
from verl_mtgrpo.launch.command import TrainCommand, hydra_value, run_train_command
from verl_mtgrpo.launch.failure import failure_report
from verl_mtgrpo.launch.progress import ProgressLine
from verl_mtgrpo.launch.provenance import describe_source
from verl_mtgrpo.report.metrics import RunMetrics, read_metrics
from verl_mtgrpo.version import __version__


class Assets(Protocol):
    """What a run trains on: the part of ``DemoAssets`` that is used here."""

    @property
    def policy(self) -> Path:
        """The Hugging Face folder of the policy."""
        ...

    @property
    def index(self) -> Path | None:
        """The index folder of the search tool; None where nothing is searched."""
        ...

    @property
    def train_file(self) -> Path:
        """The training questions (parquet)."""
        ...

    @property
    def val_file(self) -> Path:
        """The validation questions (parquet)."""
        ...

    @property
    def tool_config(self) -> Path | None:
        """The tool YAML; None where no tool is called."""
        ...

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Seed, settings and the rates of the policy at the start."""
        ...


@dataclass(frozen=True)
class RunPlan:
    """A planned run: its preset, assets, settings and folder.

    Attributes:
        folder: The folder of this run.
        preset: A config of the Hydra group ``mtgrpo``.
        seed: Seed of the training order and of sampling; the assets have their own.
        assets: Policy, index and questions.
        settings: How to train.
        rollout: verl's name of the rollout engine: our server, or ``vllm``.
    """

    folder: Path
    preset: str
    seed: int
    assets: Assets
    settings: DemoSettings
    rollout: str = ROLLOUT_NAME

    @property
    def validation(self) -> Path:
        """Folder of verl's validation dumps, one ``<step>.jsonl`` per validation."""
        return self.folder / "validation"

    def identity(self) -> dict[str, Any]:
        """Return the settings that make two runs the same run."""
        return {
            "preset": self.preset,
            "seed": self.seed,
            # Through JSON, so that it compares equal to what was stored.
            "assets": json.loads(json.dumps(dict(self.assets.manifest), default=str)),
            "settings": self.settings.to_dict(),
            "version": __version__,
            # Stored only if it is not the default: runs stored before there was a choice stay valid.
            **({} if self.rollout == ROLLOUT_NAME else {"rollout": self.rollout}),
        }

    def command(self, *, metrics: Path, validate_first: bool) -> TrainCommand:
        """Return the trainer's command line."""
        paths = {
            "actor_rollout_ref.model.path": self.assets.policy,
            "data.train_files": self.assets.train_file,
            "data.val_files": self.assets.val_file,
            # Searches return what the policy was warmed up on.
            "actor_rollout_ref.rollout.multi_turn.tool_config_path": self.assets.tool_config,
            "trainer.default_local_dir": self.folder / "checkpoints",
            "trainer.validation_data_dir": self.validation,
            "trainer.rollout_data_dir": self.folder / "rollouts",
            "hydra.run.dir": self.folder / "hydra",
        }
        overrides = [f"{key}={hydra_value(path.resolve())}" for key, path in paths.items() if path is not None]
        overrides += self.settings.overrides(seed=self.seed)
        overrides += [f"trainer.experiment_name={self.preset}_seed{self.seed}"]
        overrides += ["trainer.resume_mode=auto", f"trainer.val_before_train={validate_first}"]
        index = self.assets.index
        env = {
            **({} if index is None else {"MTGRPO_INDEX": str(index.resolve())}),
            "VERL_FILE_LOGGER_PATH": str(metrics.resolve()),
        }
        cpu_config = "default" if self.rollout == ROLLOUT_NAME else self.rollout
        return TrainCommand(preset=self.preset, cpu=True, cpu_config=cpu_config, overrides=tuple(overrides), env=env)


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run.

    Attributes:
        metrics: The series of metrics.
        train_seconds: Time of all starts together, including verl's start-up.
        starts: How often the trainer was started; more than 1 if the run was resumed.
        source: Version of this package's source at the last start.
        reused: True if the run was already finished.
    """

    metrics: RunMetrics
    train_seconds: float
    starts: int
    source: str
    reused: bool


def finished_result(plan: RunPlan) -> RunResult | None:
    """Return the stored result of exactly this run; None if there is none."""
    stored = _read_json(plan.folder / "result.json")
    if stored is None or stored["identity"] != plan.identity():
        return None
    return RunResult(
        metrics=RunMetrics.from_dict(stored["metrics"]),
        train_seconds=stored["train_seconds"],
        starts=stored["starts"],
        source=stored["source"],
        reused=True,
    )


def train_to_end(plan: RunPlan, *, label: str, show_command: bool = False) -> RunResult:
    """Finish a run: return its stored result, resume it from its checkpoint, or start it.

    Raises:
        TrainingFailed: The trainer failed; the message says why and names the log.
    """
    if (result := finished_result(plan)) is not None:
        return result
    state = _open_folder(plan)
    saved_step = checkpoint_step(plan.folder)
    if saved_step == 0:
        # The metrics of earlier starts belong to a training that now begins again.
        _remove_metrics(plan.folder)
    state["starts"] += 1
    state["source"] = describe_source()
    metrics_file = plan.folder / f"metrics-{state['starts']:03d}.jsonl"
    log = plan.folder / f"train-{state['starts']:03d}.log"
    # The last checkpoint may be that of the last step, if the run was killed before its validation was logged.
    validate_first = saved_step == 0 or saved_step >= plan.settings.steps
    command = plan.command(metrics=metrics_file, validate_first=validate_first)
    if show_command:
        print(f"{command.shell_text()}\n\nlog: {log}\n", flush=True)
    if saved_step:
        print(f"{label}  continues from the checkpoint of step {saved_step}", flush=True)
    code = _run_timed(plan, state, command, log=log, metrics=metrics_file, label=label)
    if code != 0:
        raise TrainingFailed(failure_report(code, log))
    return _store_result(plan, state)


def checkpoint_step(folder: Path) -> int:
    """Return the step of the run's last checkpoint, 0 if it has none."""
    return last_checkpoint(folder / "checkpoints") or 0


def _run_timed(
    plan: RunPlan, state: dict[str, Any], command: TrainCommand, *, log: Path, metrics: Path, label: str
) -> int:
    """Run the trainer under a progress line; its time counts even if it is interrupted."""
    line = ProgressLine(metrics, steps=plan.settings.steps, label=label)
    started = time.monotonic()
    _write_json(plan.folder / "run.json", state)
    try:
        return run_train_command(command, log=log, on_tick=line.tick)
    finally:
        line.close()
        state["train_seconds"] += time.monotonic() - started
        _write_json(plan.folder / "run.json", state)


def _open_folder(plan: RunPlan) -> dict[str, Any]:
    """Return the run's state; empty a folder with another run of the demo, and refuse any other folder."""
    state_file = plan.folder / "run.json"
    state = _read_json(state_file)
    if state is not None and state["identity"] == plan.identity():
        return state
    if state is not None:
        shutil.rmtree(plan.folder)
    elif plan.folder.exists() and any(plan.folder.iterdir()):
        raise FileExistsError(
            f"{plan.folder} is not empty and holds no run of the demo (no run.json); move it away or choose "
            "another --out"
        )
    plan.folder.mkdir(parents=True, exist_ok=True)
    state = {"identity": plan.identity(), "starts": 0, "train_seconds": 0.0}
    _write_json(state_file, state)
    return state


def _store_result(plan: RunPlan, state: dict[str, Any]) -> RunResult:
    metrics = read_metrics(sorted(plan.folder.glob("metrics-*.jsonl")))
    # The row of the last step has the last validation; after a stop right before it was written, verl has
    # nothing left to train and repeats the validation alone.
    wanted = {0, plan.settings.steps}
    missing = [name for name in plan.settings.validated if not wanted <= set(metrics.validation.get(name, {}))]
    if missing:
        raise TrainingFailed(
            f"the run ended without an error at step {metrics.last_step} of {plan.settings.steps}, but {missing} are "
            "not in its validation metrics",
            fix=f"see the logs in {plan.folder}; remove the folder to train again",
        )
    result = RunResult(metrics, round(state["train_seconds"], 1), state["starts"], state["source"], reused=False)
    stored = {
        "identity": plan.identity(),
        "train_seconds": result.train_seconds,
        "starts": result.starts,
        "source": result.source,
        "metrics": metrics.to_dict(),
    }
    _write_json(plan.folder / "result.json", stored)
    return result


def _remove_metrics(folder: Path) -> None:
    for path in folder.glob("metrics-*.jsonl"):
        path.unlink()


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _write_json(path: Path, data: dict[str, Any]) -> None:
    """Write the whole file or nothing: a run may be killed at any moment."""
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(data, indent=1), encoding="utf-8")
