"""Run one of verl's programs with its output on the screen and in a log."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from verl_mtgrpo.launch.checkpoint import Merge
from verl_mtgrpo.launch.command import TrainCommand, run_train_command
from verl_mtgrpo.launch.process import run_child


def run_and_show(command: TrainCommand | Merge, *, log: Path, quiet: bool) -> int:
    """Run one of verl's programs and return its exit code; show its output on the screen too unless ``quiet``."""
    print(f"\nlog: {log}\n", flush=True)
    echo = _Echo(log)
    on_tick = None if quiet else echo.tick
    if isinstance(command, TrainCommand):
        code = run_train_command(command, log=log, on_tick=on_tick)
    else:
        code = run_child(command.argv(), env=os.environ, log=log, on_tick=on_tick)
    if not quiet:
        echo.tick()
    return code


class _Echo:
    """Copies new lines of a log to the screen."""

    def __init__(self, log: Path) -> None:
        self._log = log
        # An existing log is appended to: its old part was shown when it was written.
        self._offset = log.stat().st_size if log.exists() else 0

    def tick(self) -> None:
        """Print what the log gained since the last call."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        sys.stdout.write(data.decode("utf-8", errors="replace"))
        sys.stdout.flush()
