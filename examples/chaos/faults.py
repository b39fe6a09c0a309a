"""Schedule and cause the faults of the chaos run: killed processes, a search service that is down, a full disk."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Fault:
    """A fault that happens once, as soon as the journal has an event of this kind from that step or a later one."""

    name: str
    step: int
    event: str
    act: Callable[[int], None]
    """Called with the process id of the rollout worker that wrote the line."""


class SearchService:
    """``mtgrpo serve`` on a private port, which can be killed and restarted."""

    def __init__(self, index: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._argv = [sys.executable, "-m", "verl_mtgrpo.cli.main", "serve", str(index), "--port", str(port)]
        self._process: subprocess.Popen[str] | None = None

    def start(self, _pid: int = 0) -> None:
        """Start the service, and return when it answers."""
        self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("ready at"):
            raise RuntimeError(f"the search service said {line!r}, expected 'ready at ...'")

    def kill(self, _pid: int = 0) -> None:
        """Send SIGKILL, whatever the service is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


@dataclass
class Faults:
    """The schedule of a run; a fault does not happen again when steps are repeated."""

    seed: int
    service: SearchService
    dumps: Path
    done: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        # The windows do not overlap, so that the effects of the faults can be told apart.
        down = [rng.randint(*window) for window in ((4, 9), (22, 26), (48, 53))]
        self.disk_full = rng.randint(37, 41)
        self.steps = {
            **{f"retriever killed ({nth})": step for nth, step in enumerate(down, start=1)},
            "rollout worker killed": rng.randint(14, 18),
            "reward worker killed": rng.randint(30, 34),
        }
        self._faults = [
            Fault("rollout worker killed", self.steps["rollout worker killed"], "begun", kill),
            Fault("reward worker killed", self.steps["reward worker killed"], "ended", self._kill_reward_worker),
        ]
        for nth, step in enumerate(down, start=1):
            self._faults.append(Fault(f"retriever killed ({nth})", step, "begun", self.service.kill))
            self._faults.append(Fault(f"retriever started ({nth})", step + 2, "begun", self.service.start))

    def fill_disk(self) -> None:
        """Make the file of one dump a link to /dev/full, where writing fails as on a full disk."""
        self.dumps.mkdir(parents=True)
        self._full.symlink_to("/dev/full")

    def make_room(self) -> None:
        """Free the disk, as a user would before the next start."""
        self._full.unlink(missing_ok=True)

    @property
    def _full(self) -> Path:
        return self.dumps / f"{self.disk_full}.jsonl"

    @contextmanager
    def watching(self, journal: Path) -> Iterator[None]:
        """Cause the faults that are due while a training writes its journal."""
        self._journal, stop = journal, threading.Event()
        thread = threading.Thread(target=self._watch, args=(journal, stop))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _watch(self, journal: Path, stop: threading.Event) -> None:
        offset = 0
        while not stop.wait(0.01):
            if not journal.exists():
                continue
            with journal.open("rb") as file:
                file.seek(offset)
                whole, newline, _ = file.read().rpartition(b"\n")
            offset += len(whole) + len(newline)
            for line in whole.splitlines():
                self._do_what_is_due(json.loads(line))

    def _do_what_is_due(self, line: dict) -> None:
        for fault in self._faults:
            due = fault.name not in self.done and line["event"] == fault.event and line["step"] >= fault.step
            if due and f"{line['step']}" not in self.done.values():  # one fault per step
                self.done[fault.name] = f"{line['step']}"
                fault.act(line["pid"])

    def _kill_reward_worker(self, _pid: int) -> None:
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("CHAOS_JOURNAL") == str(self._journal)
                if ours and process.cmdline()[0].startswith("ray::RewardLoopWorker"):
                    return kill(process.pid)
            except (psutil.Error, IndexError):
                continue
        raise RuntimeError("no reward worker is running")


def kill(pid: int) -> None:
    """Send SIGKILL."""
    os.kill(pid, signal.SIGKILL)
