"""Write the turns of a dump as a table: ``mtgrpo export``."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_mtgrpo.cli import Subparsers
from verl_mtgrpo.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

_DESCRIPTION = """\
Write dumped rollouts as a table with one row per turn: question, text, tool call and result, reward, advantage and why.
FILE is .parquet, .csv or .jsonl. --wandb and --trackio log it as a table instead, as a run of its own in the project.
DUMP is as in `mtgrpo report`. Text is written as it is: a spreadsheet may take a cell that begins with = for a formula.

  mtgrpo export runs/mine/rollouts --steps 100: --out turns.parquet
  mtgrpo export runs/mine/validation --steps 500 --wandb my-project --run my-run-transcripts
  mtgrpo export runs/mine/validation --steps 500 --trackio my-project --run my-run-transcripts

From Python: verl_mtgrpo.report.turn_table.read_turns(files) is a pandas data frame.
"""
_KINDS = (".parquet", ".csv", ".jsonl")
_NAME = "transcripts"


def add_parser(subparsers: Subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "export",
        help="write rollouts as a table, one row per turn: a file, or a table of wandb or trackio",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dumps", nargs="+", type=Path, metavar="DUMP", help="file, folder, or run folder")
    parser.add_argument("--steps", metavar="A:B", help="only these steps, both included: 20, 10:20, 10:, :20")
    to = parser.add_mutually_exclusive_group(required=True)
    to.add_argument("--out", type=Path, metavar="FILE", help=f"table to write: {', '.join(_KINDS)}")
    to.add_argument("--wandb", metavar="PROJECT", help="log the table to this project of Weights & Biases")
    to.add_argument("--trackio", metavar="PROJECT", help="log the table to this project of trackio")
    parser.add_argument("--run", dest="run_name", metavar="NAME", help="name of the run with the table (default: "
                        "the dump's name)")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the dumps and write the table."""
    from verl_mtgrpo.report.dump_files import dump_files, parse_steps
    from verl_mtgrpo.report.turn_table import read_turns

    if args.out is not None and args.out.suffix not in _KINDS:
        raise ConfigError(f"--out {args.out} is of an unknown kind", expected=f"a {', '.join(_KINDS)} file")
    steps = parse_steps(args.steps) if args.steps is not None else None
    table = read_turns([file for dump in args.dumps for file in dump_files(dump, steps)])
    name = args.run_name or f"{args.dumps[0].resolve().stem}-{_NAME}"
    if args.out is not None:
        _write(table, args.out)
        where = str(args.out)
    elif args.wandb is not None:
        where = _to_wandb(table, args.wandb, name)
    else:
        where = _to_trackio(table, args.trackio, name)
    print(f"{where}: {len(table)} turns of {table.groupby(['group', 'rollout']).ngroups} rollouts")
    return 0


def _write(table: pd.DataFrame, out: Path) -> None:
    from verl_mtgrpo.atomic import atomic_write

    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as draft:
        if out.suffix == ".parquet":
            table.to_parquet(draft, index=False)
        elif out.suffix == ".csv":
            table.to_csv(draft, index=False)
        else:
            rows = table.astype(object).where(table.notna(), None).to_dict("records")
            draft.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _to_wandb(table: pd.DataFrame, project: str, name: str) -> str:
    import wandb

    with wandb.init(project=project, name=name, job_type=_NAME) as run:
        run.log({_NAME: wandb.Table(dataframe=table.astype(object).where(table.notna(), None))})
        return run.url or f"wandb, offline: {run.dir}"


def _to_trackio(table: pd.DataFrame, project: str, name: str) -> str:
    if importlib.util.find_spec("trackio") is None:
        raise ConfigError("trackio is not installed", fix="pip install trackio")
    trackio: Any = importlib.import_module("trackio")  # no extra of ours: whoever logs to it has it
    run: Any = trackio.init(project=project, name=name)
    run.log({_NAME: trackio.Table(dataframe=table.astype(object).where(table.notna(), None))})
    trackio.finish()
    return f"trackio, project {project}, run {name}"
