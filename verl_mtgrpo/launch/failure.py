"""Find out why a run failed, from a log that is mostly routine output of Ray and verl."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from verl_mtgrpo.integration.external_modules import MODULES, MODULES_FIX

# Enough for the final tracebacks of the driver and all workers; logs of long runs are far larger.
_TAIL_BYTES = 400_000
_HEAD_BYTES = 2_000_000
_MESSAGE_LINES = 12
_TAIL_LINES = 8

_OURS = "verl_mtgrpo.errors."
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Ray puts "(TaskRunnerV1 pid=1234) " before the output of a worker.
_WORKER_PREFIX = re.compile(r"^\([\w:. ]+ pid=\d+(?:, ip=[\d.]+)?\) ")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Died|Failed)\b(?:\(.*?\))?(?::|$)")
# These wrap another exception, whose line follows theirs; they are used only if there is nothing better.
_WRAPPER = re.compile(r"^(?:ray\.exceptions\.)?(?:RayTaskError|RayActorError|ActorDiedError)\b")
_GO_ON = "start again with the same command: verl continues from its last checkpoint"
# Fixes for messages that have none because they come from the system, from torch or from Ray.
_ADVICE = (
    (
        # torch says only that a file could not be written, without the reason, which is nearly always this.
        re.compile(r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed|\binline_container\b"),
        "a disk is full: free space where the run writes (trainer.default_local_dir, trainer.rollout_data_dir, "
        f"trainer.validation_data_dir), or write elsewhere, and {_GO_ON}; an incomplete one is never used",
    ),
    (
        re.compile(r"\b(?:RayActorError|ActorDiedError|ActorUnavailableError|OutOfMemoryError)\b"),
        "a process of the run died, most often because memory ran out (the log says which one and what Ray knows): "
        f"give it more memory or reduce what the run needs, and {_GO_ON}",
    ),
)
_NEARLY_FULL = 100_000
"""A log can no longer be written if its disk has fewer free bytes than this."""
_EXTERNAL = re.compile(r'File ".*verl/__init__\.py", line \d+, in <module>\n\s+import_external_libs\(')
"""Where verl imports what ``VERL_USE_EXTERNAL_MODULES`` names; any error there ends ``import verl``."""
_ENDS_MESSAGE = (
    "Traceback (most recent call last)",
    "The above exception was",
    "During handling of the above",
    "Set the environment variable HYDRA_FULL_ERROR",
    "Exception ignored in",
)


def failure_report(code: int, log: Path, *, what: str = "training") -> str:
    """Say in a few lines why a run failed.

    Args:
        code: Exit code of the process, negative if a signal ended it.
        log: Its output.
        what: What the run was doing.
    """
    how = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
    if code == -9:
        how += " (the system kills a process like this when memory runs out)"
    tail = _tail(log)
    cause = root_error(tail, start=_head(log))
    lines = "\n".join(f"  {line}" for line in cause)
    advice = "".join(f"\n  what to do: {text}" for text in _advice(cause, tail, log))
    return f"{what} {how}; its last output:\n{lines}{advice}\n  full log: {log}"


def root_error(text: str, *, start: str = "") -> list[str]:
    """Return the lines of the exception that ended a run, or the last lines of the log if there is none.

    The driver's own traceback decides, because Ray repeats in it why a worker died; exceptions that
    only workers printed count if the driver has none. But verl may continue for a while after a reward worker
    refused its settings, and then fail for lack of rollouts, so an error of this package, whose message says
    what to do, comes first wherever it was printed.

    Args:
        text: The log, or its end.
        start: The beginning of the log, if ``text`` is only the end: settings are refused there.
    """
    lines = _lines(text)
    driver = [line for line in lines if not _WORKER_PREFIX.match(line)]
    everyone = [_WORKER_PREFIX.sub("", line) for line in lines]
    last = _last_exception(driver) or _last_exception(everyone) or _last_lines(driver or everyone)
    if last[0].startswith(_OURS):  # an error of ours before it did not end the run
        return last
    ours = _first_of_ours([_WORKER_PREFIX.sub("", line) for line in _lines(start)] + everyone)
    return last if not ours or ours[0] in last else [*ours, "and finally:", *last]


def _advice(cause: Sequence[str], tail: str, log: Path) -> list[str]:
    """Return fixes for a cause that has none; errors of this package have one."""
    if cause[0].startswith(_OURS):
        return []
    if _EXTERNAL.search(tail):
        return [f"the environment variable {MODULES} names a module that cannot be imported: {MODULES_FIX}"]
    if shutil.disk_usage(log.parent).free < _NEARLY_FULL:
        return [
            f"the disk of {log} is full, so the end of the log may be missing: free space, or write the log elsewhere"
        ]
    return [advice for meant, advice in _ADVICE if meant.search("\n".join(cause))][:1]


def _lines(text: str) -> list[str]:
    return [_ANSI.sub("", line).rstrip() for line in text.splitlines()]


def _first_of_ours(lines: Sequence[str]) -> list[str]:
    """Return the first error of this package, one line only: what follows may come from another worker."""
    return next(([line] for line in lines if line.startswith(_OURS)), [])


def _last_exception(lines: Sequence[str]) -> list[str]:
    wrapper: list[str] = []
    for position in range(len(lines) - 1, -1, -1):
        if not _EXCEPTION.match(lines[position]) or _is_ignored(lines, position):
            continue
        message = _message_at(lines, position)
        if not _WRAPPER.match(lines[position]):
            return message
        wrapper = wrapper or message
    return wrapper


def _is_ignored(lines: Sequence[str], position: int) -> bool:
    """Return True for an exception in a destructor, which Python reports at shutdown and which ends nothing."""
    for line in reversed(lines[max(0, position - 60) : position]):
        if line.startswith("Exception ignored in"):
            return True
        if line and not line.startswith((" ", "Traceback")):
            return False
    return False


def _message_at(lines: Sequence[str], position: int) -> list[str]:
    message = [lines[position]]
    for line in lines[position + 1 : position + _MESSAGE_LINES]:
        if not line.strip() or line.startswith(_ENDS_MESSAGE) or _EXCEPTION.match(line):
            break
        message.append(line)
    return message


def _last_lines(lines: Sequence[str]) -> list[str]:
    said = [line for line in lines if line.strip() and not line.startswith(_ENDS_MESSAGE)]
    return said[-_TAIL_LINES:] or ["(nothing: its log is empty)"]


def _head(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES).decode("utf-8", errors="replace")


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace")
