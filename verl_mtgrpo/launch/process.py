"""Run one long child process and leave none of its processes behind, however the run ends.

Ray puts its daemons and workers into separate sessions, and a process whose parent died belongs to
init: neither a signal to the process group nor a walk of the children at the end finds them all.
So the family of a child is every descendant that was ever seen, plus every process of this user whose
environment has the run's marker, which children inherit. Another user's or run's Ray is in neither set.
"""

from __future__ import annotations

import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

_MARKER = "MTGRPO_RUN_ID"
_POLL_S = 0.5
# How long the child may take to clean up after an interrupt, and everything else after a SIGTERM.
_INTERRUPT_GRACE_S = 10.0
_TERMINATE_GRACE_S = 5.0
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied)
_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


def run_child(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log: Path,
    on_tick: Callable[[], None] | None = None,
    cwd: Path | None = None,
) -> int:
    """Run ``argv`` to its end with its output in a file, then end every process it started.

    Args:
        argv: Program and arguments.
        env: The complete environment of the child.
        log: File that stdout and stderr are appended to; its folder is created.
        on_tick: Called about twice a second while the child runs, e.g. to show progress.
        cwd: Working directory of the child; None for the current one.

    Returns:
        The child's exit code, ``-n`` if signal n ended it.

    Raises:
        KeyboardInterrupt: After Ctrl-C, when the child and its family are gone.
        SystemExit: After SIGTERM or SIGHUP likewise, with the shell's code 128 + n.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    marker = uuid.uuid4().hex
    with log.open("ab") as sink, _terminations_raise():
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**env, _MARKER: marker},
            cwd=cwd,
            # A terminal sends Ctrl-C to the whole foreground group. The child gets it from here instead,
            # once and in order, so that Ray can shut down before the remaining processes are ended.
            start_new_session=True,
        )
        family = _Family(child.pid, marker)
        try:
            while True:
                family.look()
                if on_tick is not None:
                    on_tick()
                with suppress(subprocess.TimeoutExpired):
                    return child.wait(timeout=_POLL_S)
        finally:
            with _interrupts_ignored():
                _interrupt(child)
                family.end()
                child.wait()


class _Family:
    """The processes that one child started, directly or not, whatever their parent is by now."""

    def __init__(self, pid: int, marker: str) -> None:
        self._pid = pid
        self._marker = marker
        self._seen: set[psutil.Process] = set()

    def look(self) -> None:
        """Remember the processes below the child."""
        with suppress(*_GONE):
            root = psutil.Process(self._pid)
            self._seen.add(root)
            self._seen.update(root.children(recursive=True))

    def end(self) -> None:
        """Terminate, then kill, until none of the family is left."""
        self.look()
        _signal_all(self._alive(), signal.SIGTERM)
        deadline = time.monotonic() + _TERMINATE_GRACE_S
        while (alive := self._alive()) and time.monotonic() < deadline:
            time.sleep(0.1)
        # Repeated, because a process may fork between the look and the signal.
        for _ in range(50):
            if not alive:
                return
            _signal_all(alive, signal.SIGKILL)
            time.sleep(0.1)
            alive = self._alive()

    def _alive(self) -> list[psutil.Process]:
        # Remembered, because a process that is being killed loses its environment shortly before it is gone.
        self._seen.update(process for process in psutil.process_iter() if self._is_marked(process))
        return [process for process in self._seen if _is_alive(process)]

    def _is_marked(self, process: psutil.Process) -> bool:
        with suppress(*_GONE):
            return process.environ().get(_MARKER) == self._marker
        return False


def _is_alive(process: psutil.Process) -> bool:
    # A zombie only waits for its parent to collect the exit code; is_running() detects a reused pid.
    with suppress(*_GONE):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _signal_all(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(*_GONE):
            process.send_signal(number)


def _interrupt(child: subprocess.Popen[bytes]) -> None:
    """Interrupt a child that is still running and give it time to shut down."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=_INTERRUPT_GRACE_S)


@contextmanager
def _terminations_raise() -> Generator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit and SIGINT into KeyboardInterrupt, so that ``finally`` runs.

    A shell without job control starts background processes with SIGINT ignored, and Python
    keeps that; here it is undone, because then only a signal meant for this run arrives. That
    ``nohup`` ignores SIGHUP is respected.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handlers: dict[int, _Handler] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: stop}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handlers[signal.SIGHUP] = stop
    with _handlers(handlers):
        yield


@contextmanager
def _interrupts_ignored() -> Generator[None]:
    """Ignore an impatient second Ctrl-C while the family is being ended."""
    ignored = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with _handlers(dict.fromkeys(ignored, signal.SIG_IGN)):
        yield


@contextmanager
def _handlers(handlers: Mapping[int, _Handler]) -> Generator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
