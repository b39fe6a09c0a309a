"""``make test-verl-main``: what it takes for a checkout of verl, and whether Python really imports that one."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests import verl_main

pytestmark = pytest.mark.process


def make_fake(folder: Path) -> Path:
    """A checkout with nothing in it but what makes it one."""
    for name, text in {
        "verl/__init__.py": "",
        "verl/version/version": "0.77.0.dev\n",
        "verl/trainer/config/ppo_trainer.yaml": "",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    return make_fake(tmp_path)


@pytest.mark.parametrize("given", ["", "  "])
def test_no_path_is_an_error_that_says_what_to_give(given, capsys):
    assert verl_main.main(["--verl", given]) == 2
    assert "give the folder that has verl/ in it: VERL=/path/to/verl" in capsys.readouterr().err


def test_another_folder_is_refused(tmp_path, capsys):
    assert verl_main.main(["--verl", str(tmp_path)]) == 2
    assert f"{tmp_path} is no checkout of verl: it has no verl/__init__.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("/verl\0main", "null byte"),
        ("~nobody-of-that-name/verl", "home directory"),
        (f"/{'verl' * 2000}", "File name too long"),
        ("{folder}/loop", "loop|symbolic links"),
    ],
    ids=["NUL", "no such user", "too long", "loop"],
)
def test_what_cannot_be_a_folder_is_refused_in_one_line(given, why, tmp_path, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert verl_main.main(["--verl", given.format(folder=tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"is no folder \(.*({why}).*\); give the folder that has verl/ in it", line) and len(line) < 300


def test_a_folder_that_pythonpath_cannot_hold_is_refused(tmp_path, capsys):
    folder = make_fake(tmp_path / "a:b")
    assert verl_main.main(["--verl", str(folder)]) == 2
    assert "a:b has a ':' in it, where PYTHONPATH ends a folder; rename that folder" in capsys.readouterr().err


def test_the_package_folder_itself_is_refused(fake, capsys):
    """The commonest slip: PATH/verl instead of PATH."""
    assert verl_main.main(["--verl", str(fake / "verl")]) == 2
    assert "give the folder that has verl/ in it" in capsys.readouterr().err


def test_a_checkout_is_what_python_imports(fake):
    env = verl_main.environment(verl_main.checkout(str(fake)), os.environ)
    verl_main.check_imported(fake, env)


def test_a_checkout_that_python_does_not_import_is_refused(fake, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "verl").mkdir()
    (other / "verl" / "__init__.py").write_text("")
    env = verl_main.environment(fake, os.environ)
    env["PYTHONPATH"] = f"{other}{os.pathsep}{env['PYTHONPATH']}"
    with pytest.raises(verl_main.NotACheckout, match="and not from"):
        verl_main.check_imported(fake, env)


def test_a_checkout_that_cannot_be_imported_says_why(fake):
    (fake / "verl" / "__init__.py").write_text("import a_package_that_is_not_there")
    with pytest.raises(verl_main.NotACheckout, match="No module named 'a_package_that_is_not_there'; install what"):
        verl_main.check_imported(fake, verl_main.environment(fake, os.environ))


def test_version_and_commit_are_said(fake):
    assert verl_main.describe(fake) == "verl 0.77.0.dev, of no known commit (no git checkout)"
    git = ["git", "-C", str(fake), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert verl_main.describe(fake) == f"verl 0.77.0.dev, commit {commit}"
