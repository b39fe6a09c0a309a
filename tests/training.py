"""Start verl's real trainer in a separate process, and return what it logged.

For end-to-end tests: every run has its own Ray session folder, a hard time limit, and leaves no
process behind, whatever happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class TrainingRun:
    """The result of a run: exit status, its whole output, and the metrics of each logged step."""

    returncode: int
    log: str
    steps: dict[int, dict[str, Any]]
    seconds: float

    def tail(self, lines: int = 60) -> str:
        """The end of the output, for a failure message."""
        return "\n".join(self.log.splitlines()[-lines:])


def train(
    folder: Path,
    overrides: Sequence[str],
    *,
    groups: Sequence[str] = ("+mtgrpo_cpu=default",),
    env: Mapping[str, str] | None = None,
    timeout: float = 240.0,
    kill_after_step: int | None = None,
) -> TrainingRun:
    """Run ``python -m verl.trainer.main_ppo`` on the CPU platform and wait for its end.

    Args:
        folder: where the run writes its log, metrics and checkpoints; made if missing.
        overrides: Hydra overrides after the groups.
        groups: our config groups to add.
        env: further environment variables.
        timeout: seconds after which the run and everything it started is killed (returncode is then
            negative; the log says so in its last line).
        kill_after_step: kill the run and everything it started (SIGKILL) as soon as this step is logged, that is in
            the middle of the next one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metrics_file = folder / "metrics.jsonl"
    metrics_file.unlink(missing_ok=True)
    # Ray puts sockets below its folder and a socket's path may have 107 characters: a short folder.
    ray_folder = tempfile.mkdtemp(prefix="mtg", dir="/tmp")
    command = [
        *(sys.executable, "-m", "verl.trainer.main_ppo", "hydra.searchpath=[pkg://verl_mtgrpo.config]"),
        *groups,
        f"hydra.run.dir={folder / 'hydra'}",
        f"trainer.default_local_dir={folder / 'checkpoints'}",
        f"+ray_kwargs.ray_init._temp_dir={ray_folder}",
        *overrides,
    ]
    environment = {
        # Without the address of a Ray cluster that is running already: the run starts its own.
        **{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        "RAY_USAGE_STATS_ENABLED": "0",
        "VERL_PLATFORM": "cpu",
        "VERL_FILE_LOGGER_PATH": str(metrics_file),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        **(env or {}),
    }
    start = time.monotonic()
    log_file = folder / "log.txt"
    try:
        returncode = _run(
            command, environment, folder, log_file, timeout, lambda: kill_after_step in _read_metrics(metrics_file)
        )
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
    return TrainingRun(returncode, log_file.read_text(), _read_metrics(metrics_file), time.monotonic() - start)


def _run(
    command: list[str],
    env: Mapping[str, str],
    folder: Path,
    log_file: Path,
    timeout: float,
    is_to_be_killed: Callable[[], bool],
) -> int:
    deadline = time.monotonic() + timeout
    with log_file.open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while time.monotonic() < deadline:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(0.1)
                if is_to_be_killed():
                    log.write("\ntests/training.py: killed, as the test wants it\n")
                    return -signal.SIGKILL
            log.write(f"\ntests/training.py: killed after {timeout:.0f} s\n")
            return -signal.SIGKILL
        finally:
            _kill_session(process)


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill all processes of the session that ``process`` leads, and wait until they are gone.

    Ray gives its daemons process groups of their own, but they stay in the session.
    """
    deadline = time.monotonic() + 20
    while (members := _session_members(process.pid)) and time.monotonic() < deadline:
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()  # reaps the leader
        time.sleep(0.05)


def _session_members(session: int) -> list[int]:
    """Processes, zombies apart, of a session (Linux)."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # "pid (name) state ppid pgrp session ...", and the name may contain anything.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z" and int(fields[3]) == session:
                members.append(int(entry.name))
    return members


def processes_that_mention(text: str) -> list[str]:
    """Command lines of living processes that inherited ``text`` in their environment (Linux)."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if text.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found


def _read_metrics(file: Path) -> dict[int, dict[str, Any]]:
    """verl's file logger: one JSON object per line, several lines of one step are merged."""
    steps: dict[int, dict[str, Any]] = {}
    if file.exists():
        # A row that is being written has no end yet.
        for line in file.read_text().rpartition("\n")[0].splitlines():
            record = json.loads(line)
            steps.setdefault(record["step"], {}).update(record["data"])
    return steps
