"""Find the model of a verl checkpoint for `mtgrpo eval`, and merge its parts if needed.

verl writes ``global_step_N/actor`` (verl 0.9.1, ``utils/checkpoint/fsdp_checkpoint_manager.py``):

* ``model_world_size_W_rank_R.pt``: the weights, one part per process. verl loads them into a model that it has built
  from weights in Hugging Face's format at ``actor_rollout_ref.model.path``.
* ``huggingface/``: config and tokenizer; weights too if ``checkpoint.save_contents`` names ``hf_model``.

Without weights in ``huggingface/`` the parts are therefore merged first, by verl's own ``verl.model_merger``.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_mtgrpo.checkpoints import PREFIX, checkpoint_folder, last_checkpoint
from verl_mtgrpo.errors import ConfigError

MODEL_PATH = "actor_rollout_ref.model.path"
_LORA = "lora_train_meta.json"


@dataclass(frozen=True)
class Merge:
    """The merge of a checkpoint's parts into one model in Hugging Face's format.

    Attributes:
        actor: The folder ``actor`` of the checkpoint.
        target: The folder that the model is written to.
    """

    actor: Path
    target: Path

    def argv(self, python: str = sys.executable) -> list[str]:
        """Return verl's program and its arguments."""
        folders = ["--local_dir", str(self.actor), "--target_dir", str(self.target)]
        return [python, "-m", "verl.model_merger", "merge", "--backend", "fsdp", *folders]

    def shell_text(self) -> str:
        """Return the command for a shell."""
        return shlex.join(self.argv())


def find_checkpoint(folder: Path) -> Path:
    """Return ``global_step_N`` itself, or the last one in a folder of checkpoints.

    Raises:
        ConfigError: There is no checkpoint.
    """
    folder = folder.resolve()
    last = last_checkpoint(folder)
    if last is not None:
        folder = checkpoint_folder(folder, last)
    step = folder.name.removeprefix(PREFIX)
    if step == folder.name or not step.isdigit() or not (folder / "actor").is_dir():
        raise ConfigError(
            f"--checkpoint {folder}: not a checkpoint of verl",
            expected=(
                "a folder global_step_N with the policy in actor/, or its parent folder (trainer.default_local_dir)"
            ),
            fix="for a model in Hugging Face's format use --model",
        )
    return folder


def model_of(checkpoint: Path, overrides: Sequence[str], out: Path) -> tuple[Path | None, Merge | None]:
    """Return the folder of the checkpoint's model in Hugging Face's format, and the merge that it needs first.

    Args:
        checkpoint: A folder ``global_step_N``.
        overrides: The user's overrides; a model that they name is used.
        out: Folder for a merged model.

    Raises:
        ConfigError: No model is named, and none can be made from the checkpoint.
    """
    if any(one.lstrip("+").startswith(f"{MODEL_PATH}=") for one in overrides):
        return None, None
    actor = checkpoint / "actor"
    model = actor / "huggingface"
    if (model / "config.json").is_file() and _has_weights(model):
        return model, None
    name_it = f"name the model that training started from, after the options: -- {MODEL_PATH}=..."
    if (actor / _LORA).is_file():
        raise ConfigError(f"--checkpoint {checkpoint} holds adapters (LoRA) of a model that is not in it", fix=name_it)
    if not (model / "config.json").is_file() or not any(actor.glob("model_world_size_*_rank_0.pt")):
        raise ConfigError(
            f"--checkpoint {checkpoint} holds neither a model in Hugging Face's format (actor/huggingface) nor FSDP  "
            "parts that can be merged into one",
            fix=name_it,
        )
    merge = Merge(actor, out / f"model-{checkpoint.name}")
    return merge.target, merge


def _has_weights(folder: Path) -> bool:
    return any(True for pattern in ("*.safetensors", "pytorch_model*.bin") for _ in folder.glob(pattern))
