"""verl's folder of checkpoints (``trainer.default_local_dir``): how it names them, and which one it continues from."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

TRACKER = "latest_checkpointed_iteration.txt"
"""The file that says which checkpoint is the last complete one; verl writes it after the checkpoint."""
PREFIX = "global_step_"
"""What precedes the step in the name of a checkpoint's folder."""


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of one step."""
    return folder / f"{PREFIX}{step}"


def last_checkpoint(folder: Path) -> int | None:
    """Return the step of the checkpoint that verl continues from; None if there is none."""
    with suppress(OSError, ValueError):
        step = int((folder / TRACKER).read_text())
        return step if checkpoint_folder(folder, step).is_dir() else None
    return None
