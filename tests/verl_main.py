"""Run the tests against a checkout of verl instead of the installed one: ``make test-verl-main VERL=PATH``.

The checkout comes first on ``PYTHONPATH``, also for the processes that tests start; nothing is installed, so what verl
requires is what is installed already. The canary (``tests/integration/test_canary.py``) runs first: what it says is
missing explains most of what fails behind it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CANARY = "tests/integration/test_canary.py"
_SHOW = "import verl; print(verl.__file__)"


class NotACheckout(ValueError):
    """The given path is not a checkout of verl, or not the one that Python imports."""


def checkout(given: str) -> Path:
    """The folder of a checkout of verl.

    Raises:
        NotACheckout: nothing was given, it is none, or Python cannot import from it.
    """
    if not given.strip():
        raise NotACheckout("no checkout of verl was named; give the folder that has verl/ in it: VERL=/path/to/verl")
    parts = ("verl/__init__.py", "verl/version/version", "verl/trainer/config/ppo_trainer.yaml")
    try:
        folder = Path(given).expanduser().resolve()
        lacking = next((part for part in parts if not (folder / part).is_file()), None)
    except (OSError, RuntimeError, ValueError) as error:  # no such user, a loop of links, too long, no name of a file
        shown = repr(given) if len(given) <= 80 else f"{given[:79]!r}…"
        why = getattr(error, "strerror", None) or error  # the whole error of the system repeats the path
        raise NotACheckout(f"{shown} is no folder ({why}); give the folder that has verl/ in it") from error
    if lacking:
        raise NotACheckout(
            f"{folder} is no checkout of verl: it has no {lacking}; give the folder that has verl/ in it, as "
            "`git clone https://github.com/verl-project/verl` makes it"
        )
    if os.pathsep in str(folder):
        raise NotACheckout(f"{folder} has a {os.pathsep!r} in it, where PYTHONPATH ends a folder; rename that folder")
    return folder


def describe(folder: Path) -> str:
    """Version and commit of a checkout."""
    version = (folder / "verl" / "version" / "version").read_text(encoding="utf-8").strip()
    command = ["git", "-C", str(folder), "rev-parse", "--show-toplevel", "HEAD"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    top, _, commit = asked.stdout.strip().partition("\n")
    known = asked.returncode == 0 and Path(top).resolve() == folder
    return f"verl {version}, {f'commit {commit}' if known else 'of no known commit (no git checkout)'}"


def environment(folder: Path, env: Mapping[str, str]) -> dict[str, str]:
    """The environment in which Python imports verl from there and this package from here."""
    paths = [str(folder), str(REPOSITORY), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    return {**env, "PYTHONPATH": os.pathsep.join(paths)}


def check_imported(folder: Path, env: Mapping[str, str]) -> None:
    """Import verl in a separate process.

    Raises:
        NotACheckout: it cannot be imported, or comes from somewhere else.
    """
    asked = subprocess.run([sys.executable, "-c", _SHOW], env=dict(env), capture_output=True, text=True, check=False)
    if asked.returncode:
        why = asked.stderr.strip().rpartition("\n")[2]
        raise NotACheckout(f"verl cannot be imported from {folder}: {why}; install what this verl requires")
    found = Path(asked.stdout.strip().rpartition("\n")[2]).resolve()
    if found != folder / "verl" / "__init__.py":
        raise NotACheckout(f"Python imports verl from {found.parent}, and not from {folder}; is it on sys.path before?")


def main(words: Sequence[str] | None = None) -> int:
    """Run the canary, then the tests; the exit status is not 0 if any of them failed."""
    parser = argparse.ArgumentParser(prog="make test-verl-main", description=__doc__)
    parser.add_argument("--verl", default="", help="folder of a checkout of verl (VERL=)")
    parser.add_argument("--workers", default="auto", help="test processes (WORKERS=)")
    parser.add_argument("--marks", default="not verl and not slow", help="pytest's -m")
    parser.add_argument("tests", nargs="*", help="files or folders of tests; none: all (TESTS=)")
    given = parser.parse_args(words)
    try:
        folder = checkout(given.verl)
        env = environment(folder, os.environ)
        check_imported(folder, env)
    except NotACheckout as error:
        print(f"make test-verl-main: {error}", file=sys.stderr)
        return 2
    print(f"{describe(folder)}, from {folder}", flush=True)
    pytest = [sys.executable, "-m", "pytest", "-q", "--tb=short"]
    canary = subprocess.run([*pytest, CANARY], env=env, cwd=REPOSITORY, check=False).returncode
    print("The canary says nothing." if not canary else "The canary has spoken (above). The tests:", flush=True)
    rest = ["-n", given.workers, "--dist", "loadfile", "-m", f"({given.marks}) and not clock", f"--deselect={CANARY}"]
    tests = subprocess.run([*pytest, *rest, *given.tests], env=env, cwd=REPOSITORY, check=False).returncode
    return canary or tests


if __name__ == "__main__":
    sys.exit(main())
