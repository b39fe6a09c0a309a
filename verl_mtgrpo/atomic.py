"""Files and folders that appear under their name only when they are complete, and locks between processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock


@contextmanager
def atomic_write(path: Path) -> Generator[Path]:
    """Yield a draft next to ``path`` to write to; it replaces ``path`` at the end of the block.

    If the block raises, the draft is removed and an old file stays as it was. Processes that write the same file at
    once have separate drafts: the last one to finish wins.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def is_draft(name: str, of: str) -> bool:
    """Return True if a file is a draft of ``of`` that a killed process left behind."""
    return name.startswith(f".{of}.") and name.endswith(".part")


@contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """Yield a new folder next to ``path`` to fill; it replaces ``path`` at the end of the block.

    Hold :func:`lock_beside` inside the block. Leftovers of the same draft from a killed process are removed first.
    """
    draft = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        shutil.rmtree(path, ignore_errors=True)
        os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def lock_beside(path: Path) -> BaseFileLock:
    """Return the lock for making ``path``, to be held in a ``with``; the system drops that of a killed process."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))
