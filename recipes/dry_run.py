"""Try a recipe out: the script of each calls this in place of verl's trainer if DRY_RUN is set.

    python recipes/dry_run.py SCRIPT OVERRIDE...

DRY_RUN=print prints the overrides, one per line.

DRY_RUN=cpu runs two real training steps on this machine's CPU. The recipe's overrides come first and stay as they are;
what a CPU and a tiny policy need is appended, and every value that is changed is printed. The policy speaks its text
format and searches a real index (verl_mtgrpo.demo.toy, made once in runs/dry_run). Environment: DRY_RUN_OUT
(folder, default runs/dry_run), LAUNCHER (a program that gets the trainer's command, such as multi_node's one_node.sh).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

STEPS, ROLLOUTS = 2, 32
MEGATRON = ("model_engine=megatron", "--config-name=ppo_megatron_trainer")


def main(arguments: Sequence[str]) -> int:
    """Do with a recipe's overrides what DRY_RUN says; return 0 if that worked."""
    script, *overrides = arguments
    mode = os.environ.get("DRY_RUN")
    if mode == "cpu":
        return two_steps(Path(script).resolve().parent.name, overrides)
    if mode == "print":
        print(*overrides, sep="\n")
        return 0
    print(f"DRY_RUN={mode}, expected cpu, print or nothing", file=sys.stderr)
    return 1


def two_steps(name: str, overrides: Sequence[str]) -> int:
    """Train two steps of a recipe on the CPU; return 0 if both were logged."""
    from verl_mtgrpo.launch.failure import failure_report

    out = Path(os.environ.get("DRY_RUN_OUT", "runs/dry_run")).resolve()
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    check_config(overrides)
    overrides, dropped = without_megatron(overrides)
    changes = {**cpu_values(overrides), **sizes(overrides), **files(folder, make_assets(out, overrides))}
    report(name, overrides, dropped, changes)
    started, log, metrics = time.monotonic(), folder / "log.txt", folder / "metrics.jsonl"
    command = ["-m", "verl.trainer.main_ppo", *overrides, "+mtgrpo_cpu=default", *as_overrides(changes)]
    code = train(command, out / f"toy-{text_format(overrides)}" / "index", metrics, log)
    steps = sorted({json.loads(line)["step"] for line in metrics.read_text().splitlines()}) if metrics.exists() else []
    if code or not {1, STEPS} <= set(steps):
        print(f"{name}: steps {steps} were logged. {failure_report(code, log)}", file=sys.stderr)
        return code or 1
    print(f"{name}: dry run passed, {STEPS} steps in {time.monotonic() - started:.0f} s. Log: {log}")
    return 0


def check_config(overrides: Sequence[str]) -> None:
    """Compose the recipe exactly as written with verl's real config, and check it as at the start of a run."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import need_critic

    from verl_mtgrpo.integration.parts import uses_turns
    from verl_mtgrpo.integration.preflight import check_run

    primary = "ppo_megatron_trainer" if MEGATRON[1] in overrides else "ppo_trainer"
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose(primary, [one for one in overrides if not one.startswith("--")])
    OmegaConf.resolve(config)
    if uses_turns(config):
        check_run(config)
    actor, critic = config.actor_rollout_ref, " with a critic" if need_critic(config) else ""
    print(
        f"as written: {config.algorithm.adv_estimator}{critic} on {actor.actor.strategy}, {actor.model.path}, "
        f"{config.data.train_batch_size} questions x {actor.rollout.n} rollouts; composes with verl's {primary}"
    )


def without_megatron(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides for the same run on verl's FSDP2 engine, and those that only Megatron knows."""
    if not any(one in MEGATRON for one in overrides):
        return list(overrides), []
    dropped = [one for one in overrides if one in MEGATRON or ".megatron." in one.partition("=")[0]]
    return [one for one in overrides if one not in dropped], dropped


def text_format(overrides: Sequence[str]) -> str:
    """Return the text format that the recipe sets, else verl's default."""
    return written(overrides).get("actor_rollout_ref.rollout.multi_turn.format", "hermes")


def make_assets(out: Path, overrides: Sequence[str]) -> Path:
    """Make a policy that speaks the recipe's format, an index and questions, once; return their folder."""
    from verl_mtgrpo.demo.toy import SPEECHES, make_toy

    speech = SPEECHES[text_format(overrides)]
    return make_toy(out / f"toy-{speech.format}", speech, questions=STEPS * ROLLOUTS)


def cpu_values(overrides: Sequence[str]) -> dict[str, Any]:
    """Return what the group mtgrpo_cpu sets and the script sets too: a group loses against the command line."""
    from importlib import resources

    from omegaconf import OmegaConf

    path = resources.files("verl_mtgrpo.config") / "mtgrpo_cpu" / "default.yaml"
    group = dict(leaves(OmegaConf.to_container(OmegaConf.load(str(path))), ""))
    return {key: group[key] for key in written(overrides) if key in group}


def leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values of a nested mapping."""
    if not isinstance(node, dict):
        yield prefix, node
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


def sizes(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the sizes of two small steps with as many rollouts per question and updates per step as the recipe has."""
    said = written(overrides)
    batch, mini = "data.train_batch_size", "actor_rollout_ref.actor.ppo_mini_batch_size"
    updates = int(said[batch]) // int(said[mini])
    questions = max(4, ROLLOUTS // int(said["actor_rollout_ref.rollout.n"])) // updates * updates
    return {
        batch: questions,
        mini: questions // updates,
        "data.max_prompt_length": 64,
        "data.max_response_length": 160,
        "trainer.total_training_steps": STEPS,
        "trainer.total_epochs": STEPS,
    }


def files(folder: Path, assets: Path) -> dict[str, Any]:
    """Return the paths of a tiny policy and its questions, and of the folder that takes all that the run writes."""
    cluster = {"ray_kwargs.ray_init.num_gpus": None, "ray_kwargs.ray_init.num_cpus": None}
    return {
        "actor_rollout_ref.model.path": assets / "policy",
        "data.train_files": assets / "train.parquet",
        "data.val_files": assets / "val.parquet",
        "trainer.resume_mode": "disable",
        "trainer.default_local_dir": folder / "checkpoints",
        "hydra.run.dir": folder / "hydra",
        # A cluster that runs already has the resources it has.
        **(cluster if os.environ.get("LAUNCHER") else {}),
    }


def written(overrides: Sequence[str]) -> dict[str, str]:
    """Return keys and values as the recipe writes them; the last one counts if there are several."""
    split = (one.partition("=") for one in overrides if not one.startswith(("--", "~")))
    return {key.lstrip("+"): value for key, _, value in split}


def as_overrides(values: dict[str, Any]) -> list[str]:
    """Return values as overrides that Hydra reads."""
    from verl_mtgrpo.launch.command import hydra_value

    return [f"{key}={hydra_value(value)}" for key, value in values.items()]


def report(name: str, overrides: Sequence[str], dropped: Sequence[str], changes: dict[str, Any]) -> None:
    """Print what the dry run changes, and what the recipe said."""
    if dropped:
        print("Megatron needs a GPU: its engine is replaced by FSDP2, everything else stays. Left out:")
        print("".join(f"    {one}\n" for one in dropped), end="")
    said = written(overrides)
    print(f"{name}: +mtgrpo_cpu=default, and instead of what the recipe says:")
    for (key, value), new in zip(changes.items(), as_overrides(changes), strict=True):
        if str(value) != said.get(key):
            print(f"    {new}" + (f"    (recipe: {said[key]})" if key in said else ""))
    sys.stdout.flush()


def train(command: Sequence[str], index: Path, metrics: Path, log: Path) -> int:
    """Run the trainer to its end and return its exit code; nothing that it started is left afterwards."""
    from verl_mtgrpo.launch.command import private_ray
    from verl_mtgrpo.launch.process import run_child

    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "DRY_RUN")},
        "VERL_PLATFORM": "cpu",
        "VERL_FILE_LOGGER_PATH": str(metrics),
        "MTGRPO_INDEX": str(index),
        "HF_HUB_OFFLINE": "1",
    }
    launcher = shlex.split(os.environ.get("LAUNCHER", ""))
    with private_ray() as ray:
        return run_child([*launcher, sys.executable, *command], env={**environment, **ray}, log=log)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
