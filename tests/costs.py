"""Mark tests by their cost, and check that no mark is forgotten.

A test without any of these marks is ``fast``, which is what ``make t`` runs: it starts no process, composes no config
of verl, does not import verl and opens no socket. One that does is failed and told which mark it needs.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import combinations
from multiprocessing import util
from pathlib import Path
from typing import Any

import pytest

# What Python itself reports (docs.python.org, "Audit events table") -> the mark that a test needs for it.
EVENTS = {
    "subprocess.Popen": "process",
    "os.fork": "process",
    "os.forkpty": "process",
    "os.posix_spawn": "process",
    "os.system": "process",
    "os.exec": "process",
    "socket.connect": "network",
    "socket.bind": "network",
    "tests.process": "process",  # of tests/fresh.py, and below of multiprocessing
    "tests.compose": "compose",  # of tests/composed.py, which remembers
}
# What verl's main function composes; Hydra reads it anew each time.
PRIMARY = ("ppo_trainer.yaml", "ppo_megatron_trainer.yaml")
# A test with one of these runs alone or not at all by default, and may do everything. Seconds that it may take.
LARGE = {"verl": 900, "browser": 300, "recipes": 1800, "vllm": 1800, "gpu": 3600, "slow": 3600}
SMALL = {"process", "compose", "imports_verl", "network", "heavy", "clock"}
# Composing imports verl, and verl imports Ray, which opens a socket.
COVERED_BY = {
    "imports_verl": {"imports_verl", "compose"},
    "network": {"network", "imports_verl", "compose"},
}
_MODULE_MARKS = re.compile(r"^pytestmark = .*?(?=^\S)", re.MULTILINE | re.DOTALL)


def marks_in(text: str) -> set[str]:
    """Return the marks of this file that a piece of a test module names."""
    return (SMALL | set(LARGE)) & set(re.findall(r"pytest\.mark\.(\w+)", text))


def may_select(expression: str, path: Path) -> bool:
    """Return False if ``-m EXPRESSION`` selects no test of a module, whichever of the marks in it a test has.

    Importing a module costs more than reading it, and most import verl. Of other words than marks of cost nothing is
    known.
    """
    if not (path.name.startswith("test_") and path.suffix == ".py") or not expression:
        return True
    known = SMALL | set(LARGE) | {"fast"}
    if not set(re.findall(r"\w+", expression)) <= known | {"and", "or", "not"}:
        return True
    text = path.read_text(encoding="utf-8")
    whole = _MODULE_MARKS.search(text + "\nend")
    always = marks_in(whole[0]) if whole else set()
    some = sorted(marks_in(text) - always)
    for count in range(len(some) + 1):
        for chosen in combinations(some, count):
            marks = always | set(chosen) or {"fast"}
            if eval(expression, {"__builtins__": {}}, {name: name in marks for name in known}):
                return True
    return False


class Costs:
    """A pytest plugin that marks fast tests and watches what tests do."""

    def __init__(self) -> None:
        self.spent: set[str] = set()
        self.thread: int | None = None  # of the test that is running
        self.named: dict[Path, set[str]] = {}
        sys.addaudithook(self._happened)
        util.spawnv_passfds = audited(util.spawnv_passfds)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            marks = {mark.name for mark in item.iter_markers()}
            hidden = marks & (SMALL | set(LARGE)) - self.marks_of(item.path)
            if hidden:
                raise pytest.UsageError(
                    f"{item.nodeid} is marked with {sorted(hidden)} outside of its module: write pytest.mark.… there, "
                    "or it is not found by -m (tests/costs.py, may_select)"
                )
            if not marks & (SMALL | set(LARGE)):
                item.add_marker(pytest.mark.fast)
            if "timeout" not in marks and marks & set(LARGE):
                item.add_marker(pytest.mark.timeout(max(LARGE[mark] for mark in marks & set(LARGE))))

    def marks_of(self, path: Path) -> set[str]:
        """Return the marks that a test module names; it is read once."""
        if path not in self.named:
            self.named[path] = marks_in(path.read_text(encoding="utf-8"))
        return self.named[path]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[Any]:
        self.spent, self.thread = set(), threading.get_ident()
        try:
            return (yield)
        finally:
            self.thread = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[Any]:
        result = yield
        forgotten = unmarked(self.spent, {mark.name for mark in item.iter_markers()})
        if forgotten:
            pytest.fail(
                f"costs more than its marks say: mark the module (pytestmark) or the test with {forgotten} "
                "(tests/costs.py), or make it cheaper",
                pytrace=False,
            )
        return result

    def _happened(self, event: str, args: tuple[Any, ...]) -> None:
        """Note what the test does in its own thread; what servers do in theirs may still belong to an earlier test."""
        if threading.get_ident() != self.thread:
            return
        if event in EVENTS:
            if not event.startswith("socket.") or isinstance(args[1], tuple):  # no file name of a Unix socket
                self.spent.add(EVENTS[event])
        elif event == "import" and args[0] == "verl":
            self.spent.add("imports_verl")
        elif event == "open" and args[1] == "r" and isinstance(args[0], str) and args[0].endswith(PRIMARY):
            self.spent.add("compose")


def audited(spawn: Callable[..., int]) -> Callable[..., int]:
    """Return the function with which multiprocessing starts a process, raising an audit event: Python raises none."""

    def spawnv_passfds(path: Any, args: Any, passfds: Any) -> int:
        if "multiprocessing.resource_tracker" not in str(args):  # one for all tests, started by the first
            sys.audit("tests.process")
        return spawn(path, args, passfds)

    return spawnv_passfds


def unmarked(spent: set[str], marks: set[str]) -> list[str]:
    """Return the marks that are missing."""
    if marks & set(LARGE):
        return []
    return sorted(cost for cost in spent if not COVERED_BY.get(cost, {cost}) & marks)
