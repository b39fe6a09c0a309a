"""Find out what is installed from metadata, without imports: it works if verl is missing, too old or broken."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path

TESTED_VERL = "0.9.1"
"""The version of verl that this package is tested with; pip takes it or a newer one, and never puts it over one."""


def installed(name: str) -> str | None:
    """Return the version of a distribution; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def verl_in_front() -> tuple[str, Path] | None:
    """Return version and folder of a verl that Python imports in place of the installed one (``PYTHONPATH``).

    Its metadata would be those of the installed one. verl keeps its version in a file.
    """
    spec = find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    try:
        there = Path(str(distribution("verl").locate_file("verl")))
    except PackageNotFoundError:
        there = None
    if there is not None and (not there.is_dir() or there.samefile(folder)):
        return None  # the installed one, or one that is installed in another way (pip install -e)
    file = folder / "version" / "version"
    return (file.read_text(encoding="utf-8").strip(), folder) if file.is_file() else None


def verl_version() -> str | None:
    """Return the version of the verl that Python imports; None without one."""
    in_front = verl_in_front()
    return in_front[0] if in_front else installed("verl")
