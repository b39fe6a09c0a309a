"""Mark tests by their cost, and check that no mark is forgotten.

A test without any of these marks is ``fast``, which is what ``make t`` runs: it starts no process, composes no config
of verl, does not import verl and opens no socket. One that does is failed and told which mark it needs.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# What Python itself reports (docs.python.org, "Audit events table") -> the mark that a test needs for it.
EVENTS = {
    "subprocess.Popen": "process",
    "os.fork": "process",
    "os.forkpty": "process",
    "os.posix_spawn": "process",
    "os.exec": "process",
    "socket.connect": "network",
    "socket.bind": "network",
    "tests.process": "process",  # of tests/fresh.py
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


def marked_module(path: Path) -> bool:
    """Return True if a test module is marked as a whole (``pytestmark``) as costly."""
    if not (path.name.startswith("test_") and path.suffix == ".py"):
        return False
    found = _MODULE_MARKS.search(path.read_text() + "\nend")
    return bool(found and (SMALL | set(LARGE)) & set(re.findall(r"pytest\.mark\.(\w+)", found[0])))


class Costs:
    """A pytest plugin that marks fast tests and watches what tests do."""

    def __init__(self) -> None:
        self.spent: set[str] = set()
        self.thread: int | None = None  # of the test that is running
        self.of_children = 0.0
        sys.addaudithook(self._happened)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            marks = {mark.name for mark in item.iter_markers()}
            if not marks & (SMALL | set(LARGE)):
                item.add_marker(pytest.mark.fast)
            if "timeout" not in marks and marks & set(LARGE):
                item.add_marker(pytest.mark.timeout(max(LARGE[mark] for mark in marks & set(LARGE))))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[Any]:
        self.spent, self.thread, self.of_children = set(), threading.get_ident(), children_s()
        try:
            return (yield)
        finally:
            self.thread = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[Any]:
        result = yield
        if children_s() > self.of_children:  # as multiprocessing starts them, without a word to Python
            self.spent.add("process")
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


def children_s() -> float:
    """Return the processor time of all children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def unmarked(spent: set[str], marks: set[str]) -> list[str]:
    """Return the marks that are missing."""
    if marks & set(LARGE):
        return []
    return sorted(cost for cost in spent if not COVERED_BY.get(cost, {cost}) & marks)
