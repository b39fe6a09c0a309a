"""Find what is wrong with this environment or command line before anything is trained: ``mtgrpo doctor``."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from verl_mtgrpo.cli import Subparsers
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.launch.options import index_of

if TYPE_CHECKING:
    from verl_mtgrpo.doctor.compose import CommandLine

_DESCRIPTION = """\
Look for what would stop a training run, or silently make it train something else: versions, the plugin in a fresh
process and in a Ray worker, and, for a command line, its config, data, tools, tokenizer and chat template, index, room
for tool results, judge. Each check prints one line (ok, warn, fail, skip), and a fix if something is wrong.
Nothing is trained and no model is loaded. Exit code 0 if nothing failed, else 1.

The command line goes after --: overrides as in mtgrpo train, or a whole command copied from a recipe.

  mtgrpo doctor
  mtgrpo doctor --preset mt_grpo --index runs/index -- actor_rollout_ref.model.path=Qwen/Qwen2.5-3B-Instruct ...
  mtgrpo doctor -- python -m verl.trainer.main_ppo 'hydra.searchpath=[pkg://verl_mtgrpo.config]' +mtgrpo=mt_grpo ...
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "doctor",
        help="check the environment and a command line before training",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--preset", help="config of the group mtgrpo, if the command line names none")
    parser.add_argument(
        "--cpu", action="store_true", help="like mtgrpo train --cpu: adds the group +mtgrpo_cpu=default"
    )
    parser.add_argument("--index", metavar="DIR|URL", help="index of the search tool (default: MTGRPO_INDEX)")
    parser.add_argument("--no-ray", action="store_true", help="do not start Ray to look into a worker")
    parser.add_argument("--quick", action="store_true", help="start no processes: neither Ray nor a fresh Python")
    parser.add_argument(
        "overrides", nargs="*", metavar="-- COMMAND LINE", help="overrides for verl, or a whole command"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the checks, print the findings, and return exit code 1 if any failed."""
    from verl_mtgrpo.doctor.findings import any_failed, as_dicts, as_text, from_error
    from verl_mtgrpo.doctor.look import look

    try:
        line = _command_line(args)
        with _environment(line.env), _quiet():
            found = look(line, quick=args.quick, with_ray=not args.no_ray)
    except ConfigError as error:
        found = [from_error("command", error)]
    if args.json:
        print(json.dumps({"ok": not any_failed(found), "findings": as_dicts(found)}, indent=2, ensure_ascii=False))
    else:
        print(as_text(found))
    return int(any_failed(found))


def _command_line(args: argparse.Namespace) -> CommandLine:
    """Return the command line to check: what was typed, plus what the options add, as in `mtgrpo train`."""
    from verl_mtgrpo.doctor.compose import parse

    typed = parse(args.overrides)
    env = dict(typed.env)
    if args.cpu:
        env["VERL_PLATFORM"] = "cpu"
    if args.index:
        env["MTGRPO_INDEX"] = index_of(args.index)
    added: list[str] = []
    if args.preset and not typed.names_group:
        added += ["hydra.searchpath=[pkg://verl_mtgrpo.config]", f"+mtgrpo={args.preset}"]
    if args.cpu and not any(one.startswith("+mtgrpo_cpu=") for one in typed.overrides) and (added or typed.overrides):
        added += ["+mtgrpo_cpu=default"]
    return replace(typed, overrides=(*added, *typed.overrides), env=env)


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]) -> Generator[None]:
    """Set the run's variables, and the module search path of ``python -m``, inside the ``with`` block."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep stdout for findings: what libraries print goes to stderr, and their warnings are dropped."""
    level = logging.root.manager.disable
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
