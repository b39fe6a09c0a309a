"""Check the layout: what may import what, without circles and without imports back up."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "verl_mtgrpo"
BASE = {
    *("atomic", "bars", "cache", "checkpoints", "errors", "installed", "own_code", "passages"),
    *("plain_yaml", "retry_after", "settings", "text", "threads", "version"),
}
# Folder -> the folders it may import, besides itself and BASE.
MAY_IMPORT = {
    "credit": set(),
    "environments": {"rewards"},
    "rewards": set(),
    "roles": {"rewards"},
    "retrieval": set(),
    "config": set(),
    "deciders": {"credit", "rewards"},
    "watch": {"credit"},
    "data": {"retrieval", "rewards"},
    "report": {"credit", "rewards"},
    "lab": {"credit", "report"},
    "integration": {"credit", "watch", "rewards", "environments", "retrieval", "data", "config", "roles", "deciders"},
    "cpu": {"credit", "rewards", "retrieval", "data", "integration"},
    "launch": {"integration", "retrieval", "report", "config"},
    "demo": {"data", "environments", "rewards", "retrieval", "report", "cpu", "launch"},
    "doctor": {
        "credit",
        "deciders",
        "environments",
        "rewards",
        "retrieval",
        "data",
        "integration",
        "launch",
        "config",
        "plugin",
        "roles",
    },
    "init": {"config", "integration", "doctor"},
    "toy": {"data", "rewards", "demo", "launch", "doctor", "integration"},
    "plugin": {"integration", "cpu", "doctor"},
    "cli": {
        *("credit", "lab", "data", "retrieval", "report", "integration", "cpu", "launch", "demo", "doctor", "config"),
        *("init", "toy"),
    },
}
# verl's seams: what each part of integration/ may import of the others; "" means files outside of them.
SEAMS = {
    "hydra": set(),
    "advantage": {""},
    "rollout": {"", "advantage"},
    "trainer": {"", "advantage", "rollout"},
    "": {"advantage"},
}
TESTS = sorted((PACKAGE.parent / "tests").rglob("test_*.py"))
PURE = {
    *("credit", "deciders", "environments", "rewards", "roles", "retrieval", "data", "watch"),
    *(f"integration/trainer/{name}" for name in ("accounting", "left_out", "memory", "validation", "waiting")),
}
FORBIDDEN_IN_PURE = {"verl", "ray", "vllm", "transfer_queue"}


def imported(path: Path) -> set[str]:
    """Dotted names of every import in a file, those inside functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files_of(part: str) -> list[Path]:
    return sorted((PACKAGE / part).rglob("*.py")) if (PACKAGE / part).is_dir() else [PACKAGE / f"{part}.py"]


def ours(path: Path) -> list[list[str]]:
    """The parts of every name of this package that a file imports, without the package's own."""
    return [name.split(".")[1:] for name in imported(path) if name.startswith("verl_mtgrpo.")]


def test_every_room_is_in_the_table():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms | {"plugin"} == set(MAY_IMPORT)


def test_the_table_has_no_circle():
    # The doctor asks the plugin which hooks there are; the plugin names the doctor's start check as one of them.
    left = {room: set(others) - {"plugin"} for room, others in MAY_IMPORT.items()}
    while left:
        free = [room for room, others in left.items() if not others & set(left)]
        assert free, f"a circle in {left}"
        for room in free:
            del left[room]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_one_way(room):
    allowed = MAY_IMPORT[room] | BASE | {room}
    for path in files_of(room):
        for name in ours(path):
            assert name[0] in allowed, f"{path.name} imports {'.'.join(name)}"


@pytest.mark.parametrize("seam", SEAMS)
def test_verls_seams(seam):
    folder = PACKAGE / "integration"
    for path in sorted((folder / seam).glob("*.py")):
        for name in ours(path):
            if name[0] == "integration":
                other = name[1] if (folder / name[1]).is_dir() else ""
                assert other in SEAMS[seam] | {seam}, f"{path.name} imports {'.'.join(name)}"


@pytest.mark.parametrize("part", sorted(PURE))
def test_pure_parts_never_import_their_hosts(part):
    for path in files_of(part):
        roots = {name.split(".")[0] for name in imported(path)}
        assert not roots & FORBIDDEN_IN_PURE, f"{path} imports {roots & FORBIDDEN_IN_PURE}"


CONFIG_KEY = re.compile(r"\b(algorithm|actor_rollout_ref|critic|data|reward|rollout|trainer)\.(?!py\b)[a-z_]")


def strings(path: Path) -> Iterator[tuple[str, bool]]:
    """Every string of a file, and whether it is documentation: one that nothing uses."""
    tree = ast.parse(path.read_text())
    unused = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, id(node) in unused


def names_its_host(text: str, documentation: bool) -> bool:
    """Config keys are the glue's, everywhere; in documentation a function may be compared with verl's own."""
    return bool(CONFIG_KEY.search(text)) or (not documentation and re.search(r"\bverl\b", text, re.I) is not None)


@pytest.mark.parametrize("room", ["credit", "watch"])
def test_pure_rooms_name_no_config_key_and_no_message_of_theirs_names_verl(room):
    found = [(path.name, text) for path in files_of(room) for text, doc in strings(path) if names_its_host(text, doc)]
    assert not found


def test_the_rule_above_can_fail(tmp_path):
    (tmp_path / "one.py").write_text('''
"""As verl's own; set by trainer.turn."""
def f():
    """Raise."""
    raise ValueError(f"lower critic.optim.lr by {1}" if 1 else "verl has it")
''')
    assert [text for text, doc in strings(tmp_path / "one.py") if names_its_host(text, doc)] == [
        "As verl's own; set by trainer.turn.",
        "verl has it",
        "lower critic.optim.lr by ",
    ]
    assert not names_its_host("One turn: verl's own ``rloo``.", True)


def test_no_command_imports_another():
    commands = {path.stem for path in (PACKAGE / "cli").glob("*.py")} - {"__init__", "main"}
    for path in sorted((PACKAGE / "cli").glob("*.py")):
        if path.stem != "main":
            assert not [name for name in ours(path) if name[0] == "cli" and name[1] in commands], path.name


@pytest.mark.parametrize("folder", ["recipes", "examples"])
def test_recipes_and_examples_import_no_command(folder):
    for path in (PACKAGE.parent / folder).rglob("*.py"):
        assert not [name for name in ours(path) if name[:1] == ["cli"]], path


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_no_test_module_imports_another(path):
    """Things that several of them need are in conftest.py (fixtures) or in a plain module."""
    assert not [name for name in imported(path) if re.match(r"tests\.(\w+\.)*test_", name)]


def test_only_one_module_composes():
    """tests/composed.py composes each config once; a test that wants what Hydra says itself goes through the doctor."""
    found = {path.name for path in TESTS if {"hydra.compose", "hydra.initialize_config_module"} & imported(path)}
    assert not found


def test_files_stay_short():
    roots = [PACKAGE, PACKAGE.parent / "examples", PACKAGE.parent / "recipes", PACKAGE.parent / "tests"]
    files = [path for root in roots for path in root.rglob("*.py")]
    long = {str(path): n for path in files if (n := len(path.read_text().splitlines())) > 400}
    assert not long
