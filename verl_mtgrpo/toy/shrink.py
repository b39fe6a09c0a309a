"""Work out what a CPU and a tiny policy need in place of what a command line says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

ROLLOUTS = 32
"""Rollouts of a step, about."""
PROMPT, RESPONSE = 64, 160
"""Tokens of a prompt and of a response with the toy's single question and passage."""
_MOST_UPDATES = 8
"""Updates of a step; a run with more of them is tried with so many."""
MEGATRON = ("model_engine=megatron", "--config-name=ppo_megatron_trainer")
_ACTOR, _ROLLOUT, _MODEL = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "model"))
_ONE = (
    *(f"{part}.ulysses_sequence_parallel_size" for part in (_ACTOR, "actor_rollout_ref.ref", "critic")),
    *(f"{part}.fsdp_config.ulysses_sequence_parallel_size" for part in (_ACTOR, "actor_rollout_ref.ref")),
    "critic.fsdp.ulysses_sequence_parallel_size",
    *(f"{_ROLLOUT}.{kind}_parallel_size" for kind in ("data", "expert", "pipeline_model")),
)
"""Degrees of parallelism: a CPU run has one process that trains."""
_OFF = (f"{_MODEL}.use_liger", f"{_MODEL}.use_fused_kernels", f"{_ROLLOUT}.multi_stage_wake_up")
"""Kernels and phases of a GPU."""
_TINY = {f"{_MODEL}.tokenizer_path": None, f"{_MODEL}.custom_chat_template": None}
"""What belongs to the recipe's own model."""
_MODES = {"mtgrpo_separate_async": "mtgrpo_sync", "separate_async": "sync"}
"""Trainer modes that need GPUs of their own for rollouts, and the nearest one."""


def without_megatron(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides for the same run on verl's FSDP2 engine, and those that only Megatron knows."""
    if not any(one in MEGATRON for one in overrides):
        return list(overrides), []
    dropped = [one for one in overrides if one in MEGATRON or ".megatron." in one.partition("=")[0]]
    return [one for one in overrides if one not in dropped], dropped


def cpu_values(overrides: Sequence[str]) -> dict[str, Any]:
    """Return what a CPU needs in place of what the command sets; a group would lose against the command line."""
    from importlib import resources

    path = resources.files("verl_mtgrpo.config") / "mtgrpo_cpu" / "default.yaml"
    group = dict(leaves(OmegaConf.to_container(OmegaConf.load(str(path))), ""))
    fixed = {**group, **dict.fromkeys(_ONE, 1), **dict.fromkeys(_OFF, False), **_TINY}
    said = written(overrides)
    mode = said.get("trainer.v1.trainer_mode", "")
    other = {"trainer.v1.trainer_mode": _MODES[mode]} if mode in _MODES else {}
    return {**{key: fixed[key] for key in said if key in fixed}, **other}


def leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values of a nested mapping."""
    if not isinstance(node, dict):
        yield prefix, node
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


def sizes(config: Any, *, steps: int, prompt: int = PROMPT, response: int = RESPONSE) -> dict[str, Any]:
    """Return the sizes of small steps with as many rollouts per question and updates per step as the run has.

    Args:
        config: verl's whole config, as the command composes it.
        steps: Training steps.
        prompt: Tokens of a prompt.
        response: Tokens of a response, tool results included.
    """
    batch, mini = "data.train_batch_size", f"{_ACTOR}.ppo_mini_batch_size"
    select = OmegaConf.select
    updates = max(1, min(_MOST_UPDATES, int(select(config, batch)) // int(select(config, mini))))
    wanted = max(4, ROLLOUTS // int(select(config, f"{_ROLLOUT}.n")))
    questions = max(1, wanted // updates) * updates
    return {
        batch: questions,
        mini: questions // updates,
        "data.max_prompt_length": prompt,
        "data.max_response_length": response,
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": steps,
    }


def files(folder: Path, assets: Path) -> dict[str, Any]:
    """Return the paths of a tiny policy and its questions, and of the folder that takes all that the run writes."""
    cluster = {"ray_kwargs.ray_init.num_gpus": None, "ray_kwargs.ray_init.num_cpus": None}
    return {
        f"{_MODEL}.path": assets / "policy",
        "data.train_files": assets / "train.parquet",
        "data.val_files": assets / "val.parquet",
        "trainer.resume_mode": "disable",
        "trainer.default_local_dir": folder / "checkpoints",
        "trainer.rollout_data_dir": folder / "rollouts",
        "hydra.run.dir": folder / "hydra",
        # A cluster that runs already has the resources it has.
        **(cluster if os.environ.get("LAUNCHER") else {}),
    }


def written(overrides: Sequence[str]) -> dict[str, str]:
    """Return keys and values as the command has them; the last one counts if there are several."""
    split = (one.partition("=") for one in overrides if not one.startswith(("--", "~")))
    return {key.lstrip("+"): value for key, _, value in split}


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """Return values as overrides that Hydra reads."""
    from verl_mtgrpo.launch.command import hydra_value

    return [f"{key}={hydra_value(value)}" for key, value in values.items()]
