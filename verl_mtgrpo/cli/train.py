"""Run verl's stock trainer with one of our presets: ``mtgrpo train``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from verl_mtgrpo.cli import Subparsers
from verl_mtgrpo.launch.command import TrainCommand
from verl_mtgrpo.launch.echo import run_and_show
from verl_mtgrpo.launch.failure import failure_report
from verl_mtgrpo.launch.options import check_preset, index_variable

_DESCRIPTION = """\
Run `python -m verl.trainer.main_ppo` with a preset of this package. The full command is printed first: it
can be copied and run without mtgrpo. Everything after -- goes to verl as Hydra overrides and wins over the
preset, e.g.

  mtgrpo train --index runs/index -- actor_rollout_ref.model.path=Qwen/Qwen2.5-3B data.train_files=train.parquet

The trainer's output goes to the screen and to a log. Ctrl-C ends the run and all processes it started.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help="run verl's trainer with one of the presets",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="mt_grpo", help="config of the group mtgrpo (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="run on this machine's CPU, with a private Ray")
    parser.add_argument("--index", metavar="DIR|URL", help="index of the search tool (default: MTGRPO_INDEX)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="log file (default: runs/train/<time>.log)")
    parser.add_argument("--quiet", action="store_true", help="write the trainer's output to the log only")
    parser.add_argument("--dry-run", action="store_true", help="print the command and stop")
    parser.add_argument("overrides", nargs="*", metavar="-- OVERRIDE", help="Hydra overrides for verl")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the command, run it, and return its exit code."""
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
    # A signal's number is not an exit code; shells report 128 + n.
    return code if code >= 0 else 128 - code
