"""Describe which source made a result, and on which machine."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from verl_mtgrpo.installed import verl_version
from verl_mtgrpo.threads import usable_cores
from verl_mtgrpo.version import __version__


def describe_source() -> str:
    """Return the version, and the commit if this is a git checkout, noting uncommitted changes."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return __version__
    commit = _git(root, "rev-parse", "HEAD")
    changed = " with uncommitted changes" if _git(root, "status", "--porcelain", "--", "verl_mtgrpo") else ""
    return f"{__version__}, commit {commit}{changed}" if commit else __version__


def describe_machine() -> dict[str, str]:
    """Return what a number depends on: processor, system, and the packages that compute it."""
    packages = ("torch", "verl", "ray", "transformers")
    return {
        "machine": f"{_processor()}, {usable_cores()} cores, {platform.system()}",
        "packages": ", ".join([f"Python {platform.python_version()}", *map(_package, packages)]),
    }


def describe_origin() -> str:
    """Return source, machine and packages in one line."""
    return "; ".join([describe_source(), *describe_machine().values()])


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _package(name: str) -> str:
    try:
        return f"{name} {(name == 'verl' and verl_version()) or version(name)}"
    except PackageNotFoundError:
        return f"{name} (not installed)"


def _git(root: Path, *arguments: str) -> str:
    """Return the output of git; empty if git is missing or fails."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
