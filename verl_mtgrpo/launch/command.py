"""Put together the command line of verl's stock trainer from our presets and a user's overrides."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.external_modules import MODULES, MODULES_FIX
from verl_mtgrpo.launch.process import run_child

# Hydra reads these without quotes; anything else in a value could be its grammar.
_PLAIN_VALUE = re.compile(r"[\w./:+-]+")
_BEFORE_QUOTE = re.compile(r"(\\*)('|$)")


def hydra_value(value: object) -> str:
    """Return a value as Hydra's override grammar reads it, quoted if necessary."""
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(hydra_value(item) for item in value) + "]"
    text = str(value)
    if _PLAIN_VALUE.fullmatch(text):
        return text
    # A backslash is literal unless it stands before a quote, so only those are doubled.
    return "'" + _BEFORE_QUOTE.sub(lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


@dataclass(frozen=True)
class TrainCommand:
    """One run of ``python -m verl.trainer.main_ppo``.

    Attributes:
        preset: A config of our Hydra group ``mtgrpo``.
        cpu: True to run on verl's ``cpu`` platform, which this package registers.
        cpu_config: A config of our Hydra group ``mtgrpo_cpu``, with ``cpu`` only.
        overrides: Further Hydra overrides; later ones win, so the user's come last.
        env: Environment variables the run needs in addition to the caller's.
    """

    preset: str
    cpu: bool = False
    cpu_config: str = "default"
    overrides: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def argv(self, python: str = sys.executable) -> list[str]:
        """Return the program and its arguments."""
        groups = [f"+mtgrpo={self.preset}", *([f"+mtgrpo_cpu={self.cpu_config}"] if self.cpu else [])]
        searchpath = "hydra.searchpath=[pkg://verl_mtgrpo.config]"
        return [python, "-m", "verl.trainer.main_ppo", searchpath, *groups, *self.overrides]

    def variables(self) -> dict[str, str]:
        """Return the environment variables the run needs."""
        return {**({"VERL_PLATFORM": "cpu"} if self.cpu else {}), **self.env}

    def shell_text(self) -> str:
        """Return the command for a shell, one override per line, ready to copy."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.variables().items()]
        python, dash_m, module, *arguments = self.argv()
        program = " ".join([*variables, shlex.quote(python), dash_m, module])
        return " \\\n    ".join([program, *(shlex.quote(argument) for argument in arguments)])


def run_train_command(
    command: TrainCommand,
    *,
    log: Path,
    on_tick: Callable[[], None] | None = None,
    cwd: Path | None = None,
) -> int:
    """Run the trainer to its end and leave none of its processes behind.

    On a CPU the run gets a private Ray. Otherwise the environment decides which Ray is used, because a
    GPU run may well belong to a cluster.

    Returns:
        The trainer's exit code, negative if a signal ended it.

    Raises:
        ConfigError: ``VERL_USE_EXTERNAL_MODULES`` names a module that does not exist.
    """
    env = {**os.environ, **command.variables()}
    check_external_modules(env.get(MODULES, ""), cwd or Path.cwd())
    if not command.cpu:
        return run_child(command.argv(), env=env, log=log, on_tick=on_tick, cwd=cwd)
    with private_ray() as ray_env:
        env.pop("RAY_ADDRESS", None)
        return run_child(command.argv(), env={**env, **ray_env}, log=log, on_tick=on_tick, cwd=cwd)


def check_external_modules(named: str, cwd: Path) -> None:
    """Raise ``ConfigError`` if ``VERL_USE_EXTERNAL_MODULES`` names a module that does not exist.

    verl would end with a traceback from ``import verl``. Nothing is imported here: an error inside an existing module
    shows up in the log.

    Args:
        named: The value of the variable, comma-separated names.
        cwd: The trainer's working directory: ``python -m`` finds modules there.
    """
    if not named:
        return
    sys.path.insert(0, str(cwd))
    try:
        missing = [name for name in named.split(",") if not _is_there(name.partition(".")[0])]
    finally:
        sys.path.remove(str(cwd))
    if missing:
        raise ConfigError(
            f"the environment variable {MODULES} names {missing[0]!r}, but there is no such module",
            fix=MODULES_FIX,
        )


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # an empty name
        return False


@contextmanager
def private_ray() -> Generator[dict[str, str]]:
    """Yield the environment of a run that starts a private Ray, in a folder that is removed afterwards."""
    # Sockets live below this folder, and the path of a socket may have 107 bytes at most: not TMPDIR,
    # which is long on some systems.
    base = "/tmp" if Path("/tmp").is_dir() else None
    # Ray's dashboard agent may still write its last log lines while we delete.
    with tempfile.TemporaryDirectory(prefix="mtgrpo-", dir=base, ignore_cleanup_errors=True) as folder:
        yield {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
