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
from pathlib import Path
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
Nothing is trained and no model is loaded, but with --try-step. Exit code 0 if nothing failed, else 1.

The command line goes after --: overrides as in mtgrpo train, a whole command copied from a recipe, or a shell script. A
script runs up to its command of verl's trainer, which is checked in place of being run.

  mtgrpo doctor
  mtgrpo doctor --preset mt_grpo --index runs/index -- actor_rollout_ref.model.path=Qwen/Qwen2.5-3B-Instruct ...
  mtgrpo doctor -- python -m verl.trainer.main_ppo 'hydra.searchpath=[pkg://verl_mtgrpo.config]' +mtgrpo=mt_grpo ...
  mtgrpo doctor -- bash train.sh
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
    parser.add_argument(
        "--try-step",
        type=int,
        nargs="?",
        const=2,
        metavar="N",
        help="train N steps (2) of the command line on this machine's CPU, with a tiny policy, in place of the checks",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/try"), metavar="DIR", help="of --try-step (default: %(default)s)"
    )
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
        line, cwd = _command_line(args)
        if args.try_step is not None:
            return _try_steps(args, line, cwd)
        with _environment(line.env, cwd), _quiet():
            found = look(line, quick=args.quick, with_ray=not args.no_ray)
    except ConfigError as error:
        found = [from_error("command", error)]
    if args.json:
        print(json.dumps({"ok": not any_failed(found), "findings": as_dicts(found)}, indent=2, ensure_ascii=False))
    else:
        print(as_text(found))
    return int(any_failed(found))


def _try_steps(args: argparse.Namespace, line: CommandLine, cwd: Path) -> int:
    """Train the steps, in the run's own environment; an error is one of the run and not a finding."""
    from verl_mtgrpo.toy.try_step import Trial, try_steps

    if args.try_step < 1:
        raise ConfigError(f"--try-step is {args.try_step}", expected="1 or more")
    out = args.out.resolve()
    with _environment(line.env, cwd):
        return try_steps(Trial("try", line, out / "run", out, args.try_step, env=line.env, cwd=cwd))


def _command_line(args: argparse.Namespace) -> tuple[CommandLine, Path]:
    """Return the command line to check, and its working directory.

    That is what was typed, or what a script would run, plus what the options add, as in `mtgrpo train`.
    """
    from verl_mtgrpo.doctor.compose import parse
    from verl_mtgrpo.launch.caught import caught, runs_a_script

    cwd, words, env = Path.cwd(), args.overrides, dict[str, str]()
    if runs_a_script(words):
        script = caught(words)
        cwd, words, env = script.cwd, script.words, dict(script.env)
    typed = parse(words)
    env |= typed.env
    if args.cpu:
        env["VERL_PLATFORM"] = "cpu"
    if args.index:
        env["MTGRPO_INDEX"] = index_of(args.index)
    added: list[str] = []
    if args.preset and not typed.names_group:
        added += ["hydra.searchpath=[pkg://verl_mtgrpo.config]", f"+mtgrpo={args.preset}"]
    if args.cpu and not any(one.startswith("+mtgrpo_cpu=") for one in typed.overrides) and (added or typed.overrides):
        added += ["+mtgrpo_cpu=default"]
    return replace(typed, overrides=(*added, *typed.overrides), env=env), cwd


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str], cwd: Path) -> Generator[None]:
    """Set the run's variables, working directory and module search path (as ``python -m`` does) inside the ``with``."""
    before, start = {name: os.environ.get(name) for name in wanted}, os.getcwd()
    os.environ.update(wanted)
    os.chdir(cwd)
    folders = [str(cwd), *filter(None, wanted.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:0] = folders
    try:
        yield
    finally:
        os.chdir(start)
        for folder in folders:
            sys.path.remove(folder)
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
