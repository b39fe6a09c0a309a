"""Check that the folders of the models other than the policy exist."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_mtgrpo.doctor.findings import Finding
from verl_mtgrpo.doctor.setup import Setup

CHECK = "models"
MODEL = "actor_rollout_ref.model"
CRITIC, REWARD = "critic.model", "reward.reward_model"


def models(setup: Setup) -> Iterator[Finding]:
    """Check that the folders of the critic and the reward model exist, if the run has them.

    A name on the hub is not looked up: verl downloads it.
    """
    keys = [f"{CRITIC}.path", f"{CRITIC}.tokenizer_path"] if has_critic(setup.config) else []
    if setup.get(f"{REWARD}.enable"):
        keys.append(f"{REWARD}.model_path")
    for key in keys:
        path = str(setup.get(key) or "")
        if looks_local(path) and not Path(path).expanduser().is_dir():
            fix = f"set {key} to the folder of a Hugging Face model, or its name on the hub"
            yield setup.absent(CHECK, f"{key}={path} does not exist", fix)


def has_critic(config: Any) -> bool:
    """Return True if verl would train a critic, without its warning that the methods without one have none."""
    from verl.trainer.ppo.utils import need_critic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return need_critic(config)


def looks_local(path: str) -> bool:
    """Return True if a model's path can only be a folder on this machine; a name on the hub has at most one slash."""
    return "://" not in path and (path.startswith(("/", "~", ".")) or path.count("/") > 1)


def hub_folder(name: str) -> str | None:
    """Return the folder of a model in the Hugging Face cache; None if it is not there.

    Nothing is downloaded.
    """
    try:
        from huggingface_hub import snapshot_download

        return snapshot_download(name, local_files_only=True)
    except Exception:  # not in the cache, or not a valid name
        return None
