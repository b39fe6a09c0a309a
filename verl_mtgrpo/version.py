"""The package version, read by the build and by ``mtgrpo --version``, and the verl it is tested with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"

TESTED_VERL = "0.9.1"
"""The version of verl that this package is tested with; pip takes it or a newer one, and never puts it over one."""


def installed(name: str) -> str | None:
    """Return the version of a distribution; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
