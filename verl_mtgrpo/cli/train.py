"""``mtgrpo train``: verl's stock trainer with one of our presets."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.launch.checkpoint import Merge
from verl_mtgrpo.launch.command import TrainCommand, run_train_command
from verl_mtgrpo.launch.failure import failure_report
from verl_mtgrpo.launch.process import run_child
from verl_mtgrpo.retrieval.addresses import base_url, is_address, meant_address

_DESCRIPTION = """\
Run `python -m verl.trainer.main_ppo` with a preset of this package. The full command is printed first: it
can be copied and run without mtgrpo. Everything after -- goes to verl as Hydra overrides and wins over the
preset, e.g.

  mtgrpo train --index runs/index -- actor_rollout_ref.model.path=Qwen/Qwen2.5-3B data.train_files=train.parquet

The trainer's output goes to the screen and to a log. Ctrl-C ends the run with all processes it started.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help="run verl's trainer with one of the presets",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="mt_grpo", help="config of the group mtgrpo (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="run on this machine's CPU, with a Ray of its own")
    parser.add_argument("--index", metavar="DIR|URL", help="index of the search tool (else MTGRPO_INDEX)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="log file (default: runs/train/<time>.log)")
    parser.add_argument("--quiet", action="store_true", help="write the trainer's output to the log only")
    parser.add_argument("--dry-run", action="store_true", help="print the command and stop")
    parser.add_argument("overrides", nargs="*", metavar="-- OVERRIDE", help="Hydra overrides for verl")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the command, run it, and give back its exit code."""
    env = index_variable(args.index)
    check_preset(args.preset, args.overrides)
    command = TrainCommand(preset=args.preset, cpu=args.cpu, overrides=tuple(args.overrides), env=env)
    print(command.shell_text(), flush=True)
    if args.dry_run:
        return 0
    log = args.log or Path("runs/train") / time.strftime("%Y%m%d-%H%M%S.log")
    code = run_and_show(command, log=log, quiet=args.quiet)
    if code != 0:
        print(f"mtgrpo: error: {failure_report(code, log)}", file=sys.stderr)
    # A signal's number is no exit code; shells report 128 + n.
    return code if code >= 0 else 128 - code


def check_preset(preset: str, overrides: Sequence[str]) -> None:
    """Raise ``ConfigError`` if there is no such config; one of the user's own comes with a search path of their own."""
    group = resources.files("verl_mtgrpo.config") / "mtgrpo"
    ours = sorted(file.name.removesuffix(".yaml") for file in group.iterdir() if not file.name.startswith("_"))
    if preset not in ours and not any("searchpath" in one for one in overrides):
        close = difflib.get_close_matches(preset, ours, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"there is no preset {preset!r}; {meant}choose one of {', '.join(ours)}")


def index_variable(index: str | None) -> dict[str, str]:
    """The environment variable that names the search tool's index: as given, or as it is set already."""
    if index:
        return {"MTGRPO_INDEX": index_of(index)}
    # Not needed to run it from here, but the printed command has to be complete.
    return {"MTGRPO_INDEX": os.environ["MTGRPO_INDEX"]} if "MTGRPO_INDEX" in os.environ else {}


def index_of(option: str) -> str:
    """What ``--index`` says, as the workers of a run need it: the address of a service, or an absolute path.

    Raises:
        ConfigError: It is no address of an HTTP service, or one without ``http://``.
    """
    if is_address(option):
        base_url(option)
        return option
    if not Path(option).exists() and (address := meant_address(option)):
        raise ConfigError(f"--index {option} is not a folder; for a search service write --index {address}")
    return os.path.abspath(option)


def run_and_show(command: TrainCommand | Merge, *, log: Path, quiet: bool) -> int:
    """Run a program of verl's, its output on the screen too unless ``quiet``; returns its exit code."""
    print(f"\nlog: {log}\n", flush=True)
    echo = _Echo(log)
    on_tick = None if quiet else echo.tick
    if isinstance(command, TrainCommand):
        code = run_train_command(command, log=log, on_tick=on_tick)
    else:
        code = run_child(command.argv(), env=os.environ, log=log, on_tick=on_tick)
    if not quiet:
        echo.tick()
    return code


class _Echo:
    """Copies what a log gains to the screen."""

    def __init__(self, log: Path) -> None:
        self._log = log
        # A log that exists already is appended to: its old part was shown when it was written.
        self._offset = log.stat().st_size if log.exists() else 0

    def tick(self) -> None:
        with self._log.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        sys.stdout.write(data.decode("utf-8", errors="replace"))
        sys.stdout.flush()
