"""Tests that do more than their marks say are failed: the check of tests/costs.py, in a real run of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.costs import LARGE, SMALL, may_select, unmarked

ROOT = Path(__file__).parents[1]
TESTS = '''
import multiprocessing, os, socket, subprocess, sys, threading
import pytest

def test_process():
    subprocess.run([sys.executable, "-c", ""])

def test_fork():
    if not os.fork():
        os._exit(0)
    os.wait()

def test_system():
    os.system("exit")

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

@pytest.mark.process
def test_leaves_a_child():
    globals()["left"] = subprocess.Popen([sys.executable, "-c", ""])

def test_in_which_a_child_of_another_ends():
    left.wait()

def test_beside_a_thread_that_starts_a_process():
    """As openai's client asks for the processor of this machine, once, in a thread of its own."""
    busy = [sys.executable, "-c", "sum(range(10**7))"]
    thread = threading.Thread(target=subprocess.run, args=(busy,))
    thread.start()
    thread.join()

def test_cheap(tmp_path):
    thread = threading.Thread(target=lambda: socket.create_server(("127.0.0.1", 0)).close())  # a server's own
    thread.start()
    thread.join()
    (tmp_path / "ppo_trainer.yaml").write_text("not read")
'''


@pytest.mark.process
def test_what_no_mark_says_is_an_error(tmp_path: Path):
    """With another verl, which takes no time to import."""
    (tmp_path / "verl").mkdir()
    (tmp_path / "verl" / "__init__.py").touch()
    (tmp_path / "ppo_trainer.yaml").touch()
    (tmp_path / "test_made.py").write_text(TESTS)
    done = pytest_in(tmp_path)
    errors = {line.split("::")[1].split(" ")[0] for line in done.stdout.splitlines() if line.startswith("ERROR ")}
    costly = {"process", "fork", "system", "multiprocessing", "network", "compose", "imports_verl"}
    assert errors == {f"test_{cost}" for cost in costly}, done.stdout
    assert "12 passed, 7 errors" in done.stdout


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
    assert may_select("fast", file) is not whole
    assert may_select(mark, file)
    assert not may_select(f"not {mark} and not fast", file)


SELECTED = [
    ("verl and not slow", "", False),
    ("verl and not slow", "@pytest.mark.verl\ndef test(): ...\n", True),
    ("verl and not slow", "pytestmark = pytest.mark.slow\n@pytest.mark.verl\ndef test(): ...\n", False),
    ("verl and not slow", "@pytest.mark.slow\n@pytest.mark.verl\ndef test(): ...\n", True),  # one may have verl alone
    ("not verl and not fast", "@pytest.mark.verl\ndef test(): ...\n", False),
    ("not verl and not fast", "@pytest.mark.process\ndef test(): ...\n", True),
    ("(clock or browser) and not slow", "@pytest.mark.clock\ndef test(): ...\n", True),
    ("(clock or browser) and not slow", "@pytest.mark.process\ndef test(): ...\n", False),
    ("skipif", "", True),  # of a mark that is not ours nothing is known
    ("", "", True),
]


@pytest.mark.parametrize(("expression", "text", "read"), SELECTED)
def test_modules_without_a_test_that_is_selected_are_not_read(tmp_path: Path, expression: str, text: str, read: bool):
    file = tmp_path / "test_it.py"
    file.write_text(text)
    assert may_select(expression, file) is read
    assert may_select(expression, tmp_path / "conftest.py"), "only test modules are left out"


@pytest.mark.process
def test_a_mark_from_elsewhere_is_refused(tmp_path: Path):
    (tmp_path / "test_made.py").write_text(
        "import pytest\npytestmark = getattr(pytest.mark, 've' 'rl')\ndef test_it(): ...\n"
    )
    done = pytest_in(tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "test_it is marked with ['verl'] outside of its module" in done.stderr


def pytest_in(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the test modules of a folder with our conftest."""
    command = [
        "pytest",
        "-q",
        "-c",
        ROOT / "pyproject.toml",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        folder,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True
    )
