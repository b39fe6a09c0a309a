"""Check that imports are declared, declarations are used, and all files name the same Python as pyproject."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import metadata, packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tests.verl_source import only_tested_version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest requires it on Python 3.10

pytest.importorskip("verl")
pytestmark = pytest.mark.imports_verl

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FOR_DEVELOPERS = ("dev", "bench", "docs")
# Imported by verl's own trainer, which does not require them (pyproject.toml says so).
FOR_VERL = {"pyzmq", "msgspec", "cachetools"}
# Imported and not declared, because pip would try hundreds of versions of each; required by what we or verl require.
FROM_REQUIREMENTS = {
    "huggingface-hub": "transformers",
    "jinja2": "torch",
    "jsonschema": "ray",
    "omegaconf": "hydra-core",
    "pillow": "matplotlib",
    "pyyaml": "transformers",
    "safetensors": "transformers",
    "starlette": "fastapi",
    "tokenizers": "transformers",
    "tomli": "pytest",
}


def distribution(requirement: str) -> str:
    """The name of what is required, in its normal form."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def names(requirements: Iterable[str]) -> set[str]:
    return {distribution(one) for one in requirements}


def imported(folder: str) -> dict[str, str]:
    """Distributions that the Python files of a folder import, and one file for each."""
    found: dict[str, str] = {}
    known = packages_distributions()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            for root in {module.partition(".")[0] for module in modules} - set(sys.stdlib_module_names):
                for name in known.get(root, []):
                    found.setdefault(distribution(name), str(path.relative_to(ROOT)))
    return found


def required_by(name: str) -> set[str]:
    """Return the requirements of an installed distribution, without extras, on any Python."""
    return names(one for one in requires(name) or [] if "extra ==" not in one)


def brought_by_verl() -> set[str]:
    """Return verl's requirements, torch (in the build for this machine), and their requirements."""
    return {"verl", "verl-mtgrpo", "torch"} | required_by("verl") | set(FROM_REQUIREMENTS)


@pytest.mark.parametrize(("name", "by"), FROM_REQUIREMENTS.items())
def test_what_is_not_declared_is_brought(name, by):
    assert name in required_by(by)


def test_every_import_of_the_package_is_declared():
    of_users = [one for name, extra in EXTRAS.items() if name not in FOR_DEVELOPERS for one in extra]
    declared = names([*PROJECT["dependencies"], *of_users]) | brought_by_verl()
    missing = {name: file for name, file in imported("verl_mtgrpo").items() if name not in declared}
    assert not missing


@pytest.mark.parametrize("folder", ["tests", "examples", "recipes", ".ci"])
def test_every_import_beside_the_package_is_declared(folder):
    declared = names([*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)])
    missing = {name: file for name, file in imported(folder).items() if name not in declared | brought_by_verl()}
    assert not missing


def test_what_is_declared_is_imported():
    of_users = [one for name, extra in EXTRAS.items() if name not in FOR_DEVELOPERS for one in extra]
    itself = {"verl-mtgrpo"}  # the extra cpu holds the extra train
    assert names([*PROJECT["dependencies"], *of_users]) - itself - set(imported("verl_mtgrpo")) == FOR_VERL


@only_tested_version
def test_python_versions_are_verls():
    assert SpecifierSet(PROJECT["requires-python"]) == SpecifierSet(str(metadata("verl")["Requires-Python"]))


def test_every_python_version_is_tested():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    tested = workflow["jobs"]["lint-and-unit"]["strategy"]["matrix"]["python"]
    stated = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert tested == stated == [f"3.{minor}" for minor in range(30) if f"3.{minor}" in allowed]


@pytest.mark.process
def test_nothing_is_tracked_that_git_ignores():
    """git replaces what it finds where a tracked file belongs: a tracked link .venv once removed an environment."""
    listing = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout == ""


def make_targets(text: str) -> set[str]:
    """Targets of ``make`` in commands of a text: at the beginning of a line, or as code in it."""
    return set(re.findall(r"(?:^|`|run: |&& )make ([a-z][a-z-]*)", text, re.MULTILINE))


def test_every_make_target_that_a_file_names_is_there():
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    files = [ROOT / ".ci" / "run", *ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.*"), *(ROOT / "docs").rglob("*.md")]
    nightly = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text())
    assert set(nightly["jobs"]["minutes"]["strategy"]["matrix"]["target"]) <= known
    for file in files:
        assert make_targets(file.read_text()) <= known, file


def test_the_test_above_can_fail():
    assert make_targets("run: make lint && make tests\nmake demo\nand `make x-y`, make sure") == {
        "lint",
        "tests",
        "demo",
        "x-y",
    }


def test_a_bug_report_asks_for_the_doctor():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    (doctor,) = [part for part in form["body"] if part["id"] == "doctor"]
    assert "mtgrpo doctor --json" in doctor["attributes"]["label"]
