"""Tests that do more than their marks say are failed: the check of tests/costs.py, in a real run of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.costs import LARGE, SMALL, marked_module, unmarked

ROOT = Path(__file__).parents[1]
TESTS = """
import multiprocessing, os, socket, subprocess, sys, threading
import pytest

def test_process():
    subprocess.run([sys.executable, "-c", ""])

def test_fork():
    if not os.fork():
        os._exit(0)
    os.wait()

def test_multiprocessing():
    child = multiprocessing.get_context("spawn").Process(target=print)
    child.start()
    child.join()

def test_network():
    with socket.create_server(("127.0.0.1", 0)):
        pass

def test_compose():
    with open("ppo_trainer.yaml") as file:
        file.read()

def test_imports_verl():
    import verl

@pytest.mark.compose
@pytest.mark.process
def test_marked():
    test_compose()
    test_process()

def test_cheap(tmp_path):
    thread = threading.Thread(target=lambda: socket.create_server(("127.0.0.1", 0)).close())  # a server's own
    thread.start()
    thread.join()
    (tmp_path / "ppo_trainer.yaml").write_text("not read")
"""


@pytest.mark.process
def test_what_no_mark_says_is_an_error(tmp_path: Path):
    """With another verl, which takes no time to import."""
    (tmp_path / "verl").mkdir()
    (tmp_path / "verl" / "__init__.py").touch()
    (tmp_path / "ppo_trainer.yaml").touch()
    (tmp_path / "test_made.py").write_text(TESTS)
    command = [
        "pytest",
        "-q",
        "-c",
        ROOT / "pyproject.toml",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        tmp_path,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    errors = {line.split("::")[1].split(" ")[0] for line in done.stdout.splitlines() if line.startswith("ERROR ")}
    costly = {"process", "fork", "multiprocessing", "network", "compose", "imports_verl"}
    assert errors == {f"test_{cost}" for cost in costly}, done.stdout
    assert "8 passed, 6 errors" in done.stdout


@pytest.mark.process
def test_the_fast_tests_are_collected_without_verl():
    code = """
import sys, pytest
pytest.main(["--collect-only", "-q", "-m", "fast"])
print("loaded:", [name for name in ("verl", "ray", "vllm") if name in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout
    assert said.splitlines()[-1] == "loaded: []"
    assert "tests/credit/test_turns.py::" in said


def test_which_marks_are_missing():
    assert unmarked({"network", "process"}, {"process"}) == ["network"]
    assert unmarked({"compose", "imports_verl"}, {"compose"}) == []
    assert unmarked({"compose", "imports_verl"}, {"imports_verl"}) == ["compose"]
    assert unmarked({"network"}, {"imports_verl"}) == []
    assert unmarked({"process"}, {"browser"}) == []


WHOLE = [
    "pytestmark = pytest.mark.{}\n",
    "import a\n\npytestmark = [\n    pytest.mark.usefixtures('x'),\n    pytest.mark.{},\n]\nX = 1\n",
]
IN_PART = ["pytestmark = pytest.mark.usefixtures('x')\nY = pytest.mark.{}\n", "@pytest.mark.{}\ndef f(): ...\n"]


@pytest.mark.parametrize("mark", sorted(SMALL | set(LARGE)))
@pytest.mark.parametrize(("text", "whole"), [*((text, True) for text in WHOLE), *((text, False) for text in IN_PART)])
def test_only_modules_that_are_marked_as_a_whole_are_not_read(tmp_path: Path, mark: str, text: str, whole: bool):
    file = tmp_path / "test_it.py"
    file.write_text(text.format(mark))
    assert marked_module(file) is whole
