"""Imports go one way: credit, rewards, retrieval <- data <- integration, cpu <- plugin; nothing imports cli."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "verl_mtgrpo"
BASE = {"errors", "version", "cache", "threads"}
# folder -> the folders of ours it may import (itself and BASE always)
MAY_IMPORT = {
    "credit": set(),
    "rewards": set(),
    "retrieval": set(),
    "data": {"retrieval", "rewards"},
    "integration": {"credit", "rewards", "retrieval", "data", "config"},
    "cpu": {"credit", "rewards", "retrieval", "data", "integration"},
    "report": {"credit", "rewards", "retrieval", "data"},
    "plugin.py": {"integration", "cpu"},
}
PURE = {"credit", "rewards", "retrieval", "data"}
FORBIDDEN_IN_PURE = {"verl", "ray", "vllm"}


def imported(path: Path) -> set[str]:
    """Dotted names of every import in a file, those inside functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return names


def files_of(part: str) -> list[Path]:
    return [PACKAGE / part] if part.endswith(".py") else sorted((PACKAGE / part).rglob("*.py"))


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_go_one_way(part):
    allowed = MAY_IMPORT[part] | BASE | {part}
    for path in files_of(part):
        for name in imported(path):
            if name.startswith("verl_mtgrpo."):
                assert name.split(".")[1] in allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize("part", sorted(PURE))
def test_pure_parts_never_import_their_hosts(part):
    for path in files_of(part):
        roots = {name.split(".")[0] for name in imported(path)}
        assert not roots & FORBIDDEN_IN_PURE, f"{path} imports {roots & FORBIDDEN_IN_PURE}"


def test_nothing_imports_the_command_line():
    for path in PACKAGE.rglob("*.py"):
        if "cli" not in path.relative_to(PACKAGE).parts:
            assert not [name for name in imported(path) if name.startswith("verl_mtgrpo.cli")], path


def test_files_stay_short():
    long = {str(path): n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 400}
    assert not long
