"""Find out what a shell script really passes to verl: run it with something in the place of its Python.

A script may work its command out in any way, so only the shell knows it. Everything else in the script does run. A
Python that is not found by name (an absolute path, ``uv run``) starts verl itself; then the plugin writes the command
down when Hydra starts the job, and ends the program (:func:`stop_if_asked`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_mtgrpo.errors import ConfigError

VARIABLE = "MTGRPO_CAUGHT"
"""Environment variable that names the file for the command; while it is set, no run of verl starts."""
OVERRIDES = "MTGRPO_OVERRIDES"
"""Environment variable with the overrides that the wrapper of `mtgrpo init` adds; it removes the variable then."""
_SHELLS = ("bash", "sh", "zsh")
_IN_PLACE_OF_PYTHON = """\
#!{python}
import json, os, sys
here = os.path.dirname(os.path.abspath(__file__))
if any(word == "verl.trainer.main_ppo" or word.endswith("main_ppo.py") for word in sys.argv[1:]):
    with open(os.environ["{variable}"], "w") as file:
        json.dump({{"words": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}}, file)
    sys.exit(0)
os.environ["PATH"] = os.pathsep.join(one for one in os.environ["PATH"].split(os.pathsep) if one != here)
os.execvp(os.path.basename(__file__), [os.path.basename(__file__), *sys.argv[1:]])
"""


@dataclass(frozen=True)
class Caught:
    """A command of verl's trainer that a script would have run.

    Attributes:
        words: Its arguments.
        env: The environment variables that the script sets or changes.
        cwd: Its working directory.
    """

    words: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path


def runs_a_script(words: Sequence[str]) -> bool:
    """Return True if a typed command line is that of a shell script."""
    return bool(words) and (Path(words[0]).name in _SHELLS or words[0].endswith(".sh"))


def caught(words: Sequence[str], *, timeout_s: float = 300.0) -> Caught:
    """Run a script up to its command of verl's trainer, and return that.

    Raises:
        ConfigError: The script ended without it, failed or took too long.
    """
    before = dict(os.environ)
    command = list(words) if Path(words[0]).name in _SHELLS else ["bash", *words]
    # The folder is short: Ray is not started, but the script may make paths from TMPDIR.
    with tempfile.TemporaryDirectory(prefix="mtgrpo-caught-") as folder:
        file = Path(folder) / "command.json"
        for name in ("python", "python3"):
            shim = Path(folder) / name
            shim.write_text(_IN_PLACE_OF_PYTHON.format(python=sys.executable, variable=VARIABLE), encoding="utf-8")
            shim.chmod(0o755)
        env = {**before, "PATH": f"{folder}{os.pathsep}{before.get('PATH', '')}", VARIABLE: str(file)}
        if "PYTHON" in before:
            env["PYTHON"] = str(Path(folder) / "python3")
        try:
            done = subprocess.run(command, env=env, stdout=sys.stderr, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            message = f"{' '.join(words)} did not come to its command of verl within {timeout_s:g} s"
            raise ConfigError(message, fix="give the command itself behind --") from error
        if not file.exists():
            message = f"{' '.join(words)} ended with {done.returncode} and did not run verl.trainer.main_ppo"
            raise ConfigError(message, fix="run it alone to see why, or give the command itself behind --")
        said = json.loads(file.read_text(encoding="utf-8"))
    own = {VARIABLE, "PATH", "PYTHON", OVERRIDES, "_", "SHLVL", "PWD", "OLDPWD"}
    env = {name: value for name, value in said["env"].items() if before.get(name) != value and name not in own}
    return Caught(tuple(said["words"]), env, Path(said["cwd"]))


def stop_if_asked() -> None:
    """End this program of verl's trainer if only its command was asked for, or if its overrides did not reach it.

    Raises:
        SystemExit: One of the two holds.
    """
    file = os.environ.get(VARIABLE)
    if os.environ.get(OVERRIDES):
        raise SystemExit(
            "the overrides of run.sh did not reach verl: the script starts a Python that is not called python or "
            'python3 (is PYTHON set?); put "$@" at the end of its command and run `mtgrpo init` again'
        )
    if file:
        said = {"words": ["-m", "verl.trainer.main_ppo", *sys.argv[1:]], "env": dict(os.environ), "cwd": os.getcwd()}
        Path(file).write_text(json.dumps(said), encoding="utf-8")
        raise SystemExit("mtgrpo doctor asked for the command only; nothing is trained")
