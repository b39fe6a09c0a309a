"""Make the folder of a demo's assets once: complete or not at all, and anew only if something about it changed."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from verl_mtgrpo.atomic import atomic_folder, lock_beside
from verl_mtgrpo.errors import DataError
from verl_mtgrpo.version import __version__

_MANIFEST = "demo.json"


def make_once(out: Path, key: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Make the folder ``out`` unless it exists with the same key, and return its manifest.

    The folder appears under its name only when it is complete: a killed run leaves nothing that a
    later run could mistake for finished. A folder with another key is replaced.

    Args:
        out: The folder.
        key: What is equal for equal folders; it becomes part of the manifest.
        make: Fills a draft of the folder, and returns the rest of the manifest.

    Raises:
        DataError: ``out`` holds something else.
    """
    with lock_beside(out):
        if not _is_current(out, key):
            _refuse_foreign(out)
            with atomic_folder(out) as draft:
                manifest = {**key, **make(draft)}
                (draft / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return json.loads((out / _MANIFEST).read_text(encoding="utf-8"))


def _is_current(out: Path, key: dict[str, Any]) -> bool:
    try:
        manifest = json.loads((out / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return {name: manifest.get(name) for name in key} == key


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not (out.is_dir() and ((out / _MANIFEST).exists() or not any(out.iterdir()))):
        raise DataError(f"{out} holds something that is not a demo of verl-mtgrpo", fix="choose another folder")


def versions(*more: str) -> dict[str, str]:
    """Return the versions that a demo is made with.

    Args:
        more: Packages besides those that every policy is made with.
    """
    names = ("torch", "transformers", "tokenizers", "accelerate", *more)
    return {"verl-mtgrpo": __version__, **{name: version(name) for name in names}}


class Clock:
    """Measures the seconds of each stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Store the seconds since the last lap under ``name``."""
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 1)
        self._last = now


@contextlib.contextmanager
def warmup_bar(steps: int, progress: bool) -> Generator[Callable[[], None], None, None]:
    """Show a progress bar for the warm-up; yield the function to call after each step."""
    from tqdm import tqdm

    with tqdm(total=steps, desc="warming up the policy", unit=" steps", disable=not progress) as bar:

        def advance() -> None:
            bar.update()

        yield advance
