"""Show where the credit of a run went, as one HTML page or on the terminal: ``mtgrpo report``."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from verl_mtgrpo.cli import Subparsers
from verl_mtgrpo.errors import ConfigError, DataError
from verl_mtgrpo.launch.provenance import describe_source

if TYPE_CHECKING:
    from verl_mtgrpo.report.catalog import Catalog
    from verl_mtgrpo.report.metrics import RunMetrics

_DESCRIPTION = """\
Why did this turn get this advantage? Show dumped rollouts turn by turn, with the text, the tool calls, the passages,
what was paid, the advantage as colour and how it was computed, next to the other rollouts of the prompt; curves
over the steps and distributions by turn. One self-contained HTML page, or --rich on a terminal.

  mtgrpo report runs/mine                             # what is in runs/mine/rollouts and runs/mine/validation
  mtgrpo report runs/mine/rollouts --steps 10:20 --out credit.html
  mtgrpo report runs/mine/validation/500.jsonl --rich
  mtgrpo report runs/mine --against runs/other        # two runs side by side, question by question

DUMP is what verl writes to trainer.rollout_data_dir (training rollouts with the advantages that they were trained on,
if trainer.v1.trainer_mode is one of this package's) or trainer.validation_data_dir (whose advantages are recomputed
as mt_grpo: nothing is trained on a validation).
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "report",
        help="show where the credit went: rollouts turn by turn, as an HTML page or on the terminal",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "dumps", nargs="+", type=Path, metavar="DUMP", help="file, folder of <step>.jsonl, or run folder"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.html", help="the page (default: report.html, or against.html)"
    )
    parser.add_argument("--rich", action="store_true", help="print to the terminal; with --out, write the page too")
    parser.add_argument(
        "--rollouts",
        type=int,
        default=4,
        metavar="N",
        help="rollouts shown by --rich, those whose advantages differ most within a group "
        "(default: %(default)s); the page has all, with filters",
    )
    parser.add_argument("--steps", metavar="A:B", help="only these steps, both included: 20, 10:20, 10:, :20")
    parser.add_argument("--metrics", nargs="+", type=Path, default=[], metavar="FILE", help="what verl's file logger "
                        "wrote (trainer.logger=[console,file]), for curves")  # fmt: skip
    parser.add_argument("--against", nargs="+", type=Path, default=[], metavar="DUMP", help="another run, to be shown "
                        "beside the first on one page")  # fmt: skip
    parser.add_argument("--against-metrics", nargs="+", type=Path, default=[], metavar="FILE", help="the other run's "
                        "--metrics")  # fmt: skip
    parser.add_argument("--title", help="title of the page (default: the dump's name)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the dumps, then write the page or print."""
    from verl_mtgrpo.integration.external_modules import load_external_modules
    from verl_mtgrpo.report.credit import print_credit, write_report

    if args.rollouts < 1:
        raise ConfigError(f"--rollouts is {args.rollouts}", expected="1 or more")
    if args.against_metrics and not args.against:
        raise ConfigError("--against-metrics belongs to --against", fix="name the other run: --against DUMP")
    load_external_modules()  # the records of custom estimators hold what the report says about them
    catalog, metrics = _read(args.dumps, args.metrics, args.steps)
    if args.against:
        return _write_both(args, catalog, metrics)
    if args.rich:
        print_credit(catalog, rollouts=args.rollouts, overview=True)
    if args.out or not args.rich:
        out = args.out or Path("report.html")
        title = args.title or f"Where the credit went: {_names(args.dumps)}"
        write_report(out, catalog, title=title, made_by=describe_source(), metrics=metrics)
        print(f"{out}: {sum(1 for _ in catalog.entries())} rollouts, {out.stat().st_size / 1e6:.1f} MB")
    return 0


def _write_both(args: argparse.Namespace, catalog: Catalog, metrics: RunMetrics | None) -> int:
    """Read the other run and write the page of both."""
    from verl_mtgrpo.report.against import Run, common_questions
    from verl_mtgrpo.report.credit import write_against

    if args.rich:
        raise ConfigError("--rich prints one run", fix="leave out --rich or --against")
    other, others_metrics = _read(args.against, args.against_metrics, args.steps)
    names = [_names(args.dumps), _names(args.against)]
    if names[0] == names[1]:
        names = [", ".join(str(dump) for dump in dumps) for dumps in (args.dumps, args.against)]
    out = args.out or Path("against.html")
    runs = (Run(names[0], catalog, metrics), Run(names[1], other, others_metrics))
    write_against(out, runs, title=args.title or f"{names[0]} against {names[1]}", made_by=describe_source())
    common = len(common_questions(catalog.groups, other.groups))
    print(f"{out}: {common} questions are in both runs, {out.stat().st_size / 1e6:.1f} MB")
    return 0


def _read(dumps: list[Path], metrics: list[Path], wanted: str | None) -> tuple[Catalog, RunMetrics | None]:
    """Read the dumps and the logged metrics of one run."""
    from verl_mtgrpo.bars import with_progress
    from verl_mtgrpo.report.catalog import read_catalog
    from verl_mtgrpo.report.dump_files import dump_files, parse_steps
    from verl_mtgrpo.report.metrics import read_metrics

    steps = parse_steps(wanted) if wanted is not None else None
    files = [file for dump in dumps for file in dump_files(dump, steps)]
    if len({file.resolve() for file in files}) < len(files):
        raise ConfigError("the same dump is named twice", fix="name each dump once")
    for missing in (path for path in metrics if not path.is_file()):
        raise DataError(f"--metrics {missing} does not exist", expected="what verl's file logger wrote (*.jsonl)")
    counted = partial(with_progress, progress=True, label="reading", unit="rollouts")
    return read_catalog(files, counted), read_metrics(metrics) if metrics else None


def _names(dumps: list[Path]) -> str:
    return ", ".join(dump.resolve().name for dump in dumps)
