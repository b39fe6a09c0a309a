"""Measure bias and variance of estimators where the exact policy gradient is known: ``mtgrpo lab``."""

from __future__ import annotations

import argparse
import importlib.util
import runpy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_mtgrpo.cli import Subparsers
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.launch.provenance import describe_machine, describe_source

if TYPE_CHECKING:
    from verl_mtgrpo.lab import Process
    from verl_mtgrpo.lab.measure import Credit

_DESCRIPTION = """\
Sample groups of rollouts from small multi-turn tasks, compute advantages with every estimator of this package
(and verl's own grpo, rloo and gae if verl is installed), and compare the gradients that follow with the exact
policy gradient: bias with its 99 % interval, direction, and variance, for several group sizes.

Your own task is a verl_mtgrpo.lab.Process in a Python file, about 20 lines:

  mtgrpo lab --process my_task.py:MY_TASK
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "lab",
        help="bias and variance of the estimators, measured",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--groups", type=int, default=4_000, help="sampled groups (default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8, 16], metavar="G",
                        help="rollouts per group (default: 2 4 8 16)")  # fmt: skip
    parser.add_argument("--process", action="append", metavar="FILE.py:NAME", help="your own task instead of the "
                        "built-in ones, repeatable")  # fmt: skip
    parser.add_argument("--estimator", action="append", metavar="NAME", help="only this one, repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/lab"), metavar="DIR",
                        help="folder for lab.md, lab.csv and lab.png (default: %(default)s)")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print the summary, write tables and plot."""
    from tqdm import tqdm

    from verl_mtgrpo.lab import PROCESSES, measure

    if not importlib.util.find_spec("matplotlib"):
        raise ConfigError("mtgrpo lab draws with matplotlib, which is not installed", fix="pip install matplotlib")
    if min(args.sizes) < 2 or args.groups < 2:
        raise ConfigError(
            f"--sizes is {args.sizes} and --groups {args.groups}",
            expected="2 or more, as there is no baseline in a group of one",
        )
    processes = [load_process(spec) for spec in args.process] if args.process else list(PROCESSES)
    estimators = chosen_estimators(args.estimator)
    results: dict[str, Any] = {process.name: {} for process in processes}
    with tqdm(total=args.groups * len(processes) * len(args.sizes), unit=" groups", unit_scale=True) as bar:
        for process in processes:
            for size in args.sizes:
                bar.set_description(f"{process.name}, G = {size}")
                results[process.name][size] = measure(
                    process, estimators, size=size, groups=args.groups, seed=args.seed, on_groups=bar.update
                )
    _write(args, processes, results)
    return 0


def _write(args: argparse.Namespace, processes: Sequence[Process], results: dict[str, Any]) -> None:
    from verl_mtgrpo.lab.tables import as_csv, full_tables, lab_figure, summary_tables
    from verl_mtgrpo.report.curves import save_figure

    summary = summary_tables(results, size=8 if 8 in args.sizes else args.sizes[-1])
    about = "\n".join(f"- **{process.name}**: {process.about}" for process in processes)
    machine = describe_machine()
    head = (
        f"# The laboratory\n\nMade by `mtgrpo lab` ({describe_source()}; {args.groups:,} groups, seed {args.seed}; "
        f"{machine['packages']}). Tasks:\n\n{about}"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "lab.md").write_text(f"{head}\n\n{summary}\n\n## All numbers\n\n{full_tables(results)}\n")
    (args.out / "lab.csv").write_text(as_csv(results))
    save_figure(lab_figure(results), args.out / "lab.png")
    print(f"{summary}\n\n{args.out}/lab.md, lab.csv, lab.png")


def chosen_estimators(names: Sequence[str] | None) -> dict[str, Credit]:
    """Return the estimators with these names, or all: ours, some with several settings, and verl's if installed."""
    from verl_mtgrpo.credit import ESTIMATORS
    from verl_mtgrpo.lab import Rollouts

    def credit(rollouts: Rollouts, *, name: str, **settings: Any) -> Any:
        # The exact values, which a critic would have to estimate, are known here.
        fields = {field: getattr(rollouts, field) for field in ESTIMATORS[name].fields}
        return ESTIMATORS[name](rollouts.rewards, rollouts.mask, rollouts.index, **fields, **settings)[0]

    variants: dict[str, tuple[dict[str, Any], ...]] = {
        "mt_grpo": ({"scale": "none"}, {"scale": "none", "missing_turn": "exclude"}),
        "turn_rloo": ({"scale": "std"},),
    }
    estimators: dict[str, Credit] = {}
    for name in ESTIMATORS:
        for settings in ({}, *variants.get(name, ())):
            critic = ["exact values"] if "values" in ESTIMATORS[name].fields else []
            label = ", ".join([name, *critic, *(f"{value}" for value in settings.values())])
            estimators[label] = partial(credit, name=name, **settings)
    if importlib.util.find_spec("verl") and (not names or set(names) - set(estimators)):
        from verl_mtgrpo.lab.verl_estimators import verl_estimators

        estimators |= verl_estimators()
    unknown = sorted(set(names or ()) - set(estimators))
    if unknown:
        raise ConfigError(
            f"--estimator {unknown[0]!r} is unknown", fix=f"choose from {', '.join(map(repr, estimators))}"
        )
    return {name: credit for name, credit in estimators.items() if not names or name in names}


def load_process(spec: str) -> Process:
    """Return the :class:`Process` that ``file.py:NAME`` names."""
    from verl_mtgrpo.lab import Process

    path, _, name = spec.rpartition(":")
    if not path or not Path(path).is_file():
        raise ConfigError(
            f"--process {spec} names no file that exists", expected="FILE.py:NAME, like my_task.py:MY_TASK"
        )
    found = runpy.run_path(path).get(name)
    if not isinstance(found, Process):
        raise ConfigError(f"--process {spec}: {name} is {found!r}", expected="a verl_mtgrpo.lab.Process")
    return found
