"""Try estimators where everything is known exactly: ``mtgrpo lab``, ``lab trees``, and ``lab learn`` for curves."""

from __future__ import annotations

import argparse
import importlib.util
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_mtgrpo.cli import Subparsers
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.launch.provenance import describe_machine, describe_source

if TYPE_CHECKING:
    from verl_mtgrpo.lab import Process
    from verl_mtgrpo.lab.learn import Budget, Curves, Method, Task
    from verl_mtgrpo.lab.measure import Credit

_DESCRIPTION = """\
Sample groups of rollouts from small multi-turn tasks, compute advantages with every estimator of this package
(and verl's grpo, rloo and gae if verl is installed), and compare the resulting gradients with the exact
policy gradient: bias with its 99 % interval, direction, and variance, for several group sizes.

  mtgrpo lab                                  # every estimator, a minute
  mtgrpo lab --groups 400                     # seconds, wide intervals: to see what comes out
  mtgrpo lab --process my_task.py:MY_TASK     # your own: a verl_mtgrpo.lab.Process of about 20 lines

mtgrpo lab trees measures those that compare branches, on trees beside chains: see mtgrpo lab trees --help.
mtgrpo lab learn trains tiny policies instead and shows what they have learned: see mtgrpo lab learn --help.
"""

_TREES = """\
Sample trees of rollouts: at each of the first turns, every state gets G children. Measure the estimators on trees,
and those on chains beside them, at equal numbers of generated tokens; a turn that rollouts share counts once.

  mtgrpo lab trees                            # the task with variable stopping, a minute
  mtgrpo lab trees --branching-turns 2        # chains from the third turn on
  mtgrpo lab trees --process my_task.py:MY_TASK
"""

_LEARN = """\
Train policies of a few logits with any estimator of this package, and see whether they learn, stall or collapse.
A task is a small graph of yes-or-no decisions (search or not? a good query? read it rightly?), so the curves are
the exact values of each policy, and what an estimator thinks of searching at the start is worked out by
enumeration. All methods get the same random numbers and steps of the same length.

  mtgrpo lab learn                            # one point of the search task: curves of four methods, seconds
  mtgrpo lab learn --set heart=0.4 read=0.05  # another point
  mtgrpo lab learn --map                      # over "known by heart" x "reads rightly", minutes
  mtgrpo lab learn --task chain --map         # over the number of searches x group size
  mtgrpo lab learn --task my_task.yaml        # your own; --example prints one to start from
  mtgrpo lab learn --credit-bench             # AgentCreditBench's three tasks, beside its published numbers

Methods: grpo_or (the outcome alone is paid), grpo_mr (all rewards are added up at the end) and every estimator.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "lab",
        help="measure bias and variance of the estimators",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--groups", type=int, default=4_000, help="sampled groups (default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8, 16], metavar="G",
                        help="rollouts per group (default: 2 4 8 16)")  # fmt: skip
    parser.add_argument("--process", action="append", metavar="FILE.py:NAME", help="your own task instead of the "
                        "built-in ones, repeatable")  # fmt: skip
    parser.add_argument("--estimator", action="append", metavar="NAME", help="only this estimator, repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/lab"), metavar="DIR",
                        help="folder for lab.md, lab.csv and lab.png (default: %(default)s)")  # fmt: skip
    parser.set_defaults(run=run)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_learn(commands)
    _add_trees(commands)


def _add_learn(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "learn",
        help="learning curves, and the map of when turn-level credit matters",
        description=_LEARN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--task", default="search", metavar="NAME|FILE.yaml", help="search, chain, price, delayed_effect, recovery, "
        "variable_horizon, or a file of your own (default: %(default)s)")  # fmt: skip
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings of the task, such as heart=0.4",
    )
    add("--map", action="store_true", help="every method at every point of the task's map (search, chain)")
    add("--credit-bench", action="store_true", help="score all estimators on AgentCreditBench's tasks")
    add("--example", action="store_true", help="print a task file to start from")
    add("--estimators", nargs="+", action="extend", default=[], metavar="NAME[:KNOB=VALUE,...]", help="methods to "
        "compare, such as mt_grpo:scale=none; all: every one (default: grpo_or grpo_mr mt_grpo turn_rloo)")  # fmt: skip
    add("--seeds", type=int, metavar="N", help="policies per method (default: 5)")
    add("--steps", type=int, help="training steps (default: 300)")
    add("--groups", type=int, default=16, help="questions per step (default: %(default)s)")
    add("--size", type=int, default=8, help="rollouts per question (default: %(default)s)")
    add("--optimizer", default="normalised", help="normalised: the gradient at the length --length; adam; plain: the "
        "gradient times --length, so that methods differ in length (default: %(default)s)")  # fmt: skip
    add("--length", type=float, default=0.1, help="the learning rate (default: %(default)s)")
    add("--quick", action="store_true", help="2 seeds, 100 steps, a coarser map: to see what comes out")
    add("--out", type=Path, default=Path("runs/learn"), metavar="FOLDER",
        help="folder for tables, CSV and figures (default: %(default)s)")  # fmt: skip
    add("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    parser.set_defaults(run=run_learn, refuse=parser.error)


def _add_trees(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "trees",
        help="bias and variance on trees of rollouts, beside chains",
        description=_TREES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--groups", type=int, default=20_000, help="sampled groups and trees; of trees "
        "with more than 64 leaves as many fewer (default: %(default)s)")  # fmt: skip
    add("--sizes", type=int, nargs="+", default=[2, 4, 8], metavar="G", help="rollouts per group, and children "
        "per state (default: 2 4 8)")  # fmt: skip
    add("--branching-turns", type=int, default=3, metavar="N", help="turns that are sampled G times in each state "
        "(default: %(default)s)")  # fmt: skip
    add("--process", metavar="FILE.py:NAME", help="your own task (default: the built-in one with variable stopping)")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("runs/lab"), metavar="DIR", help="folder for trees.md (default: %(default)s)")
    add("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    parser.set_defaults(run=run_trees)


def run_trees(args: argparse.Namespace) -> int:
    """Measure on trees and chains, print the table and write it."""
    from tqdm import tqdm

    from verl_mtgrpo.lab.processes import STOPPING
    from verl_mtgrpo.lab.trees import measure_trees, trees_table

    if min(args.sizes) < 2 or args.groups < 2 or args.branching_turns < 1:
        raise ConfigError(
            f"--sizes is {args.sizes}, --groups {args.groups} and --branching-turns {args.branching_turns}",
            expected="2 or more, 2 or more, and 1 or more",
        )
    process = load_process(args.process) if args.process else STOPPING
    with tqdm(unit=" groups", unit_scale=True) as bar:
        rows = measure_trees(
            process,
            sizes=args.sizes,
            groups=args.groups,
            branching_turns=args.branching_turns,
            seed=args.seed,
            on_groups=bar.update,
        )
    about = f"{args.groups:,} groups, {args.branching_turns} branching turns, seed {args.seed}"
    head = f"# Trees\n\n{_made_by('mtgrpo lab trees', about)}\n\n**{process.name}**: {process.about}"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "trees.md").write_text(f"{head}\n\n{trees_table(rows)}\n")
    print(f"{trees_table(rows)}\n\n{args.out}/trees.md")
    return 0


def run(args: argparse.Namespace) -> int:
    """Measure, print the summary, and write the tables and the plot."""
    from tqdm import tqdm

    from verl_mtgrpo.lab import PROCESSES, measure

    _need_matplotlib()
    if min(args.sizes) < 2 or args.groups < 2:
        raise ConfigError(
            f"--sizes is {args.sizes} and --groups {args.groups}",
            expected="2 or more: a group of one has no baseline",
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
    head = (
        f"# The laboratory\n\n{_made_by('mtgrpo lab', f'{args.groups:,} groups, seed {args.seed}')} Tasks:\n\n{about}"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "lab.md").write_text(f"{head}\n\n{summary}\n\n## All numbers\n\n{full_tables(results)}\n")
    (args.out / "lab.csv").write_text(as_csv(results))
    save_figure(lab_figure(results), args.out / "lab.png")
    print(f"{summary}\n\n{args.out}/lab.md, lab.csv, lab.png")


def chosen_estimators(names: Sequence[str] | None) -> dict[str, Credit]:
    """Return the estimators with these names, or all: ours, some with several settings, and verl's if installed."""
    from verl_mtgrpo.credit import ESTIMATORS
    from verl_mtgrpo.lab.trees import credit_of

    variants: dict[str, tuple[dict[str, Any], ...]] = {
        "mt_grpo": ({"scale": "none"}, {"scale": "none", "missing_turn": "exclude"}),
        "turn_rloo": ({"scale": "std"},),
    }
    estimators: dict[str, Credit] = {}
    for name in (name for name, record in ESTIMATORS.items() if record.takes_rollouts):
        for settings in ({}, *variants.get(name, ())):
            critic = ["exact values"] if "values" in ESTIMATORS[name].fields else []
            label = ", ".join([name, *critic, *(f"{value}" for value in settings.values())])
            estimators[label] = credit_of(name, settings)
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
            f"--process {spec} does not name an existing file", expected="FILE.py:NAME, like my_task.py:MY_TASK"
        )
    found = runpy.run_path(path).get(name)
    if not isinstance(found, Process):
        raise ConfigError(f"--process {spec}: {name} is {found!r}", expected="a verl_mtgrpo.lab.Process")
    return found


def run_learn(args: argparse.Namespace) -> int:
    """Train, print the table, and write tables, CSV and figures."""
    from verl_mtgrpo.lab.learn import DEFAULT, EXAMPLE, Budget, load_task, make, methods

    if args.example:
        print(EXAMPLE, end="")
        return 0
    if args.quick:
        args.seeds, args.steps = args.seeds or 2, args.steps or 100
    args.seeds = 5 if args.seeds is None else args.seeds
    if args.seeds < 1:
        raise ConfigError(f"--seeds is {args.seeds}", expected="1 or more")
    _need_matplotlib()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.credit_bench:
        return _credit_bench(args)
    chosen = methods(args.estimators or DEFAULT)
    budget = Budget(300 if args.steps is None else args.steps, args.groups, args.size, args.optimizer, args.length)
    settings = _task_settings(args.set)
    if args.map:
        return _draw_map(args, chosen, budget, settings)
    own = args.task.endswith((".yaml", ".yml"))
    if own and settings:
        raise ConfigError(f"--set {' '.join(args.set)} with a task file", fix="write the values into the file")
    return _learn_one(args, load_task(Path(args.task)) if own else make(args.task, **settings), chosen, budget)


def _learn_one(args: argparse.Namespace, task: Task, chosen: Sequence[Method], budget: Budget) -> int:
    from tqdm import tqdm

    from verl_mtgrpo.lab.learn import DEFINITIONS, learn
    from verl_mtgrpo.lab.learn.show import curves_csv, curves_figure, curves_table
    from verl_mtgrpo.report.curves import save_figure

    learned: list[Curves] = []
    with tqdm(total=len(chosen) * budget.steps, unit=" steps") as bar:
        for method in chosen:
            bar.set_description(method.name)
            learned.append(learn(task, method, budget, seeds=range(args.seeds), on_step=bar.update))
    table = curves_table(task, learned)
    best = f"Best that any policy reaches: {task.reachable:.3f}. Means over the seeds (lowest to highest)."
    head = f"# Learning curves: {task.name}\n\n{_made_by(_command(args), _budget(args, budget))}\n\n{task.about}"
    (args.out / "learn.md").write_text(f"{head}\n\n{best}\n\n{table}\n\n{DEFINITIONS}\n")
    (args.out / "learn.csv").write_text(curves_csv(learned))
    save_figure(curves_figure(task, learned), args.out / "learn.png")
    print(f"{task.about}\n{best}\n\n{table}\n\n{args.out}/learn.md, learn.csv, learn.png")
    return 0


def _draw_map(args: argparse.Namespace, chosen: Sequence[Method], budget: Budget, settings: dict[str, Any]) -> int:
    from tqdm import tqdm

    from verl_mtgrpo.lab.learn import DEFINITIONS, MAPS, draw_up, thinned
    from verl_mtgrpo.lab.learn.show import map_csv, map_figure, map_table
    from verl_mtgrpo.report.curves import save_figure

    if args.task not in MAPS:
        raise ConfigError(f"--map: there is none of {args.task!r}", expected=f"--task {' or '.join(MAPS)}")
    plan = thinned(MAPS[args.task]) if args.quick else MAPS[args.task]
    points = len(plan.across.values) * len(plan.up.values)
    with tqdm(total=points * len(chosen), unit=" cells") as bar:

        def on_cell(what: str) -> None:
            bar.set_description(what)
            bar.update()

        cells = draw_up(plan, chosen, budget, seeds=range(args.seeds), settings=settings, on_cell=on_cell)
    table = map_table(plan, cells)
    fixed = ", ".join(f"{key} {value}" for key, value in {**plan.settings, **settings}.items())
    head = f"# Map: {args.task}\n\n{_made_by(_command(args), _budget(args, budget))} Task: {fixed}."
    name = f"map-{args.task}"
    (args.out / f"{name}.md").write_text(f"{head}\n\n{table}\n\n{DEFINITIONS}\n")
    (args.out / f"{name}.csv").write_text(map_csv(cells))
    save_figure(map_figure(plan, cells), args.out / f"{name}.png")
    print(f"{table}\n\n{DEFINITIONS}\n\n{args.out}/{name}.md, {name}.csv, {name}.png")
    return 0


def _credit_bench(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from verl_mtgrpo.lab.learn.credit_bench import as_csv, as_markdown, run_all

    with tqdm(unit=" batches") as bar:
        scores = run_all(args.estimators or ["all"], quick=args.quick, on_batches=bar.update)
    text = as_markdown(scores)
    about = "1/20 of the batches" if args.quick else "numbers of batches as published"
    (args.out / "credit-bench.md").write_text(f"# AgentCreditBench\n\n{_made_by(_command(args), about)}\n\n{text}\n")
    (args.out / "credit-bench.csv").write_text(as_csv(scores))
    print(f"{text}\n\n{args.out}/credit-bench.md, credit-bench.csv")
    return 0


def _task_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Return ``KEY=VALUE`` pairs as a dictionary; values are YAML, a list becomes a tuple."""
    import yaml

    from verl_mtgrpo.plain_yaml import read_yaml

    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {pair!r}", expected="KEY=VALUE, such as heart=0.4")
        try:
            read = read_yaml(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {pair!r}: {error}", expected="KEY=VALUE, such as heart=0.4") from error
        settings[key] = tuple(read) if isinstance(read, list) else read
    return settings


def _command(args: argparse.Namespace) -> str:
    """Return the command without what :func:`_budget` says."""
    task = ["--task", args.task] if args.task != "search" else []
    flags = [flag for flag in ("map", "credit_bench", "quick") if getattr(args, flag)]
    lists = [word for name in ("set", "estimators") if (given := getattr(args, name)) for word in (f"--{name}", *given)]
    return " ".join(["mtgrpo lab learn", *task, *(f"--{flag.replace('_', '-')}" for flag in flags), *lists])


def _budget(args: argparse.Namespace, budget: Budget) -> str:
    return (
        f"{args.seeds} seeds, {budget.steps} steps of {budget.groups * budget.size} rollouts in groups of "
        f"{budget.size}, {budget.optimizer} gradient, length {budget.length:g}"
    )


def _made_by(command: str, about: str) -> str:
    return f"Made by `{command}` ({describe_source()}; {about}; {describe_machine()['packages']})."


def _need_matplotlib() -> None:
    if not importlib.util.find_spec("matplotlib"):
        raise ConfigError("mtgrpo lab draws with matplotlib, which is not installed", fix="pip install matplotlib")
