"""The Dockerfile: its steps work without a container engine, and it copies what is there."""

from __future__ import annotations

import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

from verl_mtgrpo.installed import TESTED_VERL

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "docker"
CHECK = SimpleNamespace(**runpy.run_path(str(FOLDER / "check.py")))
STEPS = list(CHECK.instructions((FOLDER / "Dockerfile").read_text()))


def test_what_is_copied_is_there():
    copied = [source for name, rest in STEPS if name == "COPY" for source in rest.split()[:-1]]
    assert "verl_mtgrpo" in copied and all((ROOT / source).exists() for source in copied)


def test_its_versions_are_those_of_this_repository():
    torch = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("TORCH ?="))
    assert dict(STEPS)["ARG"]  # there are some
    assert f'TORCH="{torch.partition("= ")[2]}"' in [rest for name, rest in STEPS if name == "ARG"]
    assert any(f"verl=={TESTED_VERL}" in rest for name, rest in STEPS if name == "RUN")


def test_continued_lines_and_comments_are_read():
    text = "# a comment\nFROM x\n\nRUN one \\\n    # inside\n    && two\n"
    assert list(CHECK.instructions(text)) == [("FROM", "x"), ("RUN", "one      && two")]
    with pytest.raises(ValueError, match="the Dockerfile has 'ADD', expected one of FROM"):
        list(CHECK.instructions("ADD x y"))


@pytest.mark.process
@pytest.mark.imports_verl
@pytest.mark.timeout(600)  # a virtual environment, a build and two starts of Python with verl
def test_its_steps_work():
    """On top of the packages of the tests, which count as those of the image."""
    pytest.importorskip("verl")
    command = [sys.executable, str(FOLDER / "check.py"), "--given", sysconfig.get_path("purelib")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verl_mtgrpo.integration.advantage" in done.stdout and "mtgrpo 0." in done.stdout
    assert done.stdout.count("not carried out: apt-get") == 1
