"""Stop the run cleanly when a dump of rollouts or a checkpoint cannot be written.

verl writes dumps in a thread and raises what went wrong there while it writes a later one, before it has logged that
step. Here the run stops between two steps, with the metrics of the last one logged, and says which file it was.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_mtgrpo.checkpoints import PREFIX, TRACKER, checkpoint_folder, last_checkpoint
from verl_mtgrpo.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

_MB = 1 << 20
_SIGNS = ("inline_container", os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
"""Errors of a full disk from torch's and safetensors' file writers, which do not raise OSError."""

_Verls = PPOTrainer if TYPE_CHECKING else object


class SafeStorage(_Verls):
    """Mixin with what our trainers write differently from verl's; it comes before verl's class in the bases."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        check_last_checkpoint(config.trainer)  # before any model is loaded
        super().__init__(config, *args, **kwargs)

    def on_step_begin(self) -> None:
        """Do what verl does; raise ``StorageError`` if an earlier dump could not be written."""
        for future in self._dump_futures:
            if future.done():
                future.result()
        super().on_step_begin()

    def _dump_generations(self, *args: Any, **kwargs: Any) -> None:
        """Do what verl does; the failure of an earlier dump is raised after this step has been logged."""
        with suppress(StorageError):
            super()._dump_generations(*args, **kwargs)

    @classmethod
    def _write_generations(cls, *args: Any, **kwargs: Any) -> None:
        """Do what verl does, in its thread, but write a step's file completely or not at all."""
        dump_path, step = args[-2:]
        try:
            super()._write_generations(*args, **kwargs)
        except OSError as error:
            file = Path(dump_path) / f"{step}.jsonl"
            with suppress(OSError):
                file.unlink()
            why = error.strerror or error
            raise StorageError(
                f"the rollouts of step {step} could not be written to {file}: {why}; {_free(file)}",
                fix=(
                    "free space, or set another folder (trainer.rollout_data_dir, trainer.validation_data_dir), or "
                    "write fewer groups (trainer.turn.dump.groups), then start again with the same command: verl "
                    "continues from its last checkpoint"
                ),
            ) from error

    def _save_checkpoint(self) -> None:
        """Do what verl does; errors of writing, such as a full disk, name the checkpoint to continue from."""
        trainer = self.config.trainer
        with _explained(Path(trainer.default_local_dir), self.global_steps):
            super()._save_checkpoint()


def check_last_checkpoint(trainer: Any) -> None:
    """Raise ``ConfigError`` if the checkpoint to continue from is named but does not exist.

    verl would only log a line and start over at step 0, overwriting the existing checkpoints.

    Args:
        trainer: the node ``trainer`` of verl's config.
    """
    folder = Path(trainer.default_local_dir)
    tracker = folder / TRACKER
    if trainer.resume_mode != "auto" or not tracker.exists():
        return
    if last_checkpoint(folder) is not None:
        return
    there = sorted(int(path.name.removeprefix(PREFIX)) for path in folder.glob(f"{PREFIX}*"))
    said = tracker.read_text(errors="replace").strip()
    raise ConfigError(
        f"{tracker} says {said!r}, but there is no such checkpoint next to it (found: "
        f"{', '.join(map(str, there)) or 'none'}), so verl would start over at step 0",
        fix=(
            "write the number of a complete one into that file, set another trainer.default_local_dir, or "
            "remove the file to start over. (trainer.max_actor_ckpt_to_keep=1 lets verl remove the last checkpoint "
            "before the new one is complete: set it to 2)"
        ),
    )


@contextmanager
def _explained(folder: Path, step: int) -> Generator[None]:
    before = last_checkpoint(folder)
    try:
        yield
    except Exception as error:
        if not _of_the_disk(error):  # a model that does not fit into memory, a dead worker: said as it is
            raise
        left = last_checkpoint(folder)
        if left is None and before is not None:  # the file that names it was emptied, or it was removed
            left_text = f"that of step {before} is damaged too"
        else:
            left_text = (
                "there is no earlier one"
                if left is None
                else f"that of step {left} is complete: the next start uses it"
            )
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        if "inline_container" in reason:  # torch's words for it name no cause
            reason = f"a file could not be written completely, as on a full disk ({reason.strip()})"
        raise StorageError(
            f"the checkpoint of step {step} could not be written to {checkpoint_folder(folder, step)}: "
            f"{reason.strip()}; {_free(folder)}; {left_text}",
            fix="free space, or set another trainer.default_local_dir, then start again",
        ) from error


def _of_the_disk(error: BaseException) -> bool:
    """Return True if a file could not be written. Not all writers raise ``OSError``; Ray passes errors on as text."""
    if isinstance(error, TimeoutError | ConnectionError):  # OSErrors too, and about a process or a network
        return False
    if isinstance(error, OSError):
        return True
    return any(sign in str(error) for sign in _SIGNS)


def _free(path: Path) -> str:
    """Return how much space is left at a path."""
    while not path.is_dir():
        path = path.parent
    return f"{shutil.disk_usage(path).free / _MB:,.0f} MB are free there"
