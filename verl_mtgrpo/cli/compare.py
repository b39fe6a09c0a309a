"""Compare methods that train with the same budget: ``mtgrpo compare``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from verl_mtgrpo.cli import Subparsers
from verl_mtgrpo.config import group_names
from verl_mtgrpo.demo.runs import RunPlan, RunResult, train_to_end
from verl_mtgrpo.demo.session import add_world, plan_run, prepare_assets, settings_from
from verl_mtgrpo.demo.training import DemoSettings
from verl_mtgrpo.launch.progress import format_duration
from verl_mtgrpo.launch.provenance import describe_machine

_METHODS = ("grpo_or", "grpo_mr", "mt_grpo")

REACHED = 0.9
_PAIRED = (
    "Differences within a seed, where both started from the same policy on the same questions: mean over the seeds, "
    "[Student's 95 % interval of that mean], and how many of the seeds are above 0."
)

WINDOW = 5
"""Training steps that a number at equal time is averaged over."""
_EQUAL_TIME = (
    "At equal training time, that of the quickest method of each seed without verl's start-up and validation: "
    f"training rollouts, mean of the last {WINDOW} steps within that time. Whatever else this machine did counts too."
)

_DESCRIPTION = """\
Train methods with the same budget: GRPO-OR (outcome reward only), GRPO-MR (turn rewards merged into the
outcome) and MT-GRPO (turn-level credit), unless --methods names others. A seed fixes the world, the policy,
the order of the questions and the sampling, so within a seed all methods start from the same policy. Finished
runs are skipped and interrupted ones are resumed, so you can stop the command and start it again. Three methods
with five seeds take about two hours.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "compare",
        help="train MT-GRPO and its baselines, or other methods, on the demo's task",
        description=_DESCRIPTION,
    )
    parser.add_argument("--methods", nargs="+", choices=group_names(), default=list(_METHODS), metavar="PRESET",
                        help=f"any of {', '.join(group_names())} (default: {' '.join(_METHODS)})")  # fmt: skip
    parser.add_argument("--runs", type=Path, default=Path("runs/demo"), metavar="DIR",
                        help="folder of the runs, shared with mtgrpo demo (default: %(default)s)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), metavar="DIR",
                        help="folder for table, plot and data (default: %(default)s)")  # fmt: skip
    add_world(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 1 2 3 4")
    parser.add_argument("--steps", type=int, help="training steps (default: DEMO_STEPS or the demo's)")
    parser.add_argument("--lr", type=float, help="learning rate of the policy (default: the demo's)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train what is missing, then write the table and the plot."""
    settings = settings_from(args.steps, args.world, args.lr)
    results: dict[str, dict[int, RunResult]] = {preset: {} for preset in args.methods}
    total = len(results) * len(args.seeds)
    for seed in args.seeds:
        assets = prepare_assets(args.runs, seed=seed, world=args.world)
        for preset in results:
            plan = plan_run(args.runs, assets, preset=preset, seed=seed, settings=settings, world=args.world)
            done = sum(len(by_seed) for by_seed in results.values())
            results[preset][seed] = _train(plan, label=f"[{done + 1}/{total}] {_title(preset)} seed {seed}")
    write_comparison(args.out, results, settings=settings, world=args.world)
    return 0


def write_comparison(
    out: Path,
    results: Mapping[str, Mapping[int, RunResult]],
    *,
    settings: DemoSettings,
    world: str,
) -> None:
    """Write ``comparison.md``, ``comparison.png`` and ``comparison.json``.

    Args:
        out: Folder to write into.
        results: Results by preset and seed.
        settings: How all of them were trained.
        world: Name of the world that they trained in.
    """
    from verl_mtgrpo.report.curves import comparison_figure, save_figure

    out.mkdir(parents=True, exist_ok=True)
    sources = sorted({run.source for by_seed in results.values() for run in by_seed.values()})
    facts = {"world": world, "source": sources, **describe_machine(), "settings": settings.to_dict()}
    headlines = settings.headlines
    text = comparison_markdown(results, facts, headlines)
    (out / "comparison.md").write_text(text, encoding="utf-8")
    (out / "comparison.json").write_text(_data(results, facts, headlines), encoding="utf-8")
    series = {_title(preset): [run.metrics for run in by_seed.values()] for preset, by_seed in results.items()}
    seeds = len(next(iter(results.values())))
    title = f"mean of {seeds} seeds, band from lowest to highest"
    figure = comparison_figure(series, title=title, headlines=headlines)
    save_figure(figure, out / "comparison.png")
    print(f"\n{text}\nwritten to {out}: comparison.md, comparison.png, comparison.json")


def comparison_markdown(
    results: Mapping[str, Mapping[int, RunResult]], facts: Mapping[str, Any], headlines: Mapping[str, str]
) -> str:
    """Return the comparison as Markdown: the means with their spread, each run, and how they were trained."""
    from verl_mtgrpo.report.tables import markdown_table, mean_and_spread

    columns = list(headlines)
    header = ["method", *(headlines[name] for name in columns)]
    reached = f"first step with {header[1]} ≥ {REACHED}"
    start = [value for by_seed in results.values() for value in by_seed.values()]
    summary = [["before training", *(mean_and_spread(_ends(start, name, first=True)) for name in columns), ""]]
    for preset, by_seed in results.items():
        runs = list(by_seed.values())
        steps = ", ".join(_first_step(run, columns[0]) for run in runs)
        summary.append([_title(preset), *(mean_and_spread(_ends(runs, name)) for name in columns), steps])
    single = [
        [f"{_title(preset)}, seed {seed}", *(mean_and_spread(_ends([run], name)) for name in columns),
         format_duration(run.train_seconds)]
        for preset, by_seed in results.items()
        for seed, run in by_seed.items()
    ]  # fmt: skip
    seeds = sorted({seed for by_seed in results.values() for seed in by_seed})
    pairs = _pairs(results, columns)
    paired = f"{_PAIRED}\n\n{markdown_table(['difference', *header[1:]], pairs)}\n\n" if pairs else ""
    timed = _at_equal_time(results, columns)
    equal = f"{_EQUAL_TIME}\n\n{markdown_table(['method', 'steps', *header[1:]], timed)}\n\n" if timed else ""
    described = "\n".join(f"- {name}: {_plain(value)}" for name, value in {**facts, "seeds": seeds}.items())
    return (
        f"# {', '.join(_title(preset) for preset in results)}\n\n"
        "Sampled validation after training: mean over the seeds (lowest to highest). Last column: in training, one "
        "number per seed.\n\n"
        f"{markdown_table([*header, reached], summary)}\n\n{paired}{equal}"
        f"Each run:\n\n{markdown_table(['run', *header[1:], 'training time'], single)}\n\n"
        f"Made by `mtgrpo compare` with:\n\n{described}\n"
    )


def _pairs(results: Mapping[str, Mapping[int, RunResult]], columns: Sequence[str]) -> list[list[str]]:
    """Return a row for each method but the last one: by how much the last one is above it, seed by seed."""
    from verl_mtgrpo.report.tables import paired_difference

    *others, last = results
    rows: list[list[str]] = []
    for preset in others:
        both = [(results[last][seed], results[preset][seed]) for seed in results[last] if seed in results[preset]]
        row = [f"{_title(last)} – {_title(preset)}"]
        for name in columns:
            ends = [(_ends([one], name), _ends([two], name)) for one, two in both]
            known = [(one[0], two[0]) for one, two in ends if one and two]
            row.append(paired_difference([one for one, _ in known], [two for _, two in known]))
        rows.append(row)
    return rows


def _at_equal_time(results: Mapping[str, Mapping[int, RunResult]], columns: Sequence[str]) -> list[list[str]]:
    """Return a row for each method: its steps, and training metrics, by the time when a seed's quickest had ended."""
    from verl_mtgrpo.report.tables import mean_and_spread

    times = {
        preset: {seed: run.metrics.train.get("timing_s/step", {}) for seed, run in by_seed.items()}
        for preset, by_seed in results.items()
    }
    seeds = [seed for seed in next(iter(times.values())) if all(by_seed.get(seed) for by_seed in times.values())]
    if len(results) < 2 or not seeds:
        return []
    budget = {seed: min(sum(by_seed[seed].values()) for by_seed in times.values()) for seed in seeds}
    rows = []
    for preset, by_seed in times.items():
        steps = {seed: _steps_within(by_seed[seed], budget[seed]) for seed in seeds}
        row = [_title(preset), mean_and_spread([len(steps[seed]) for seed in seeds], digits=0)]
        for name in columns:
            series = {seed: results[preset][seed].metrics.train.get(name, {}) for seed in seeds}
            known = [[series[seed][step] for step in steps[seed] if step in series[seed]] for seed in seeds]
            row.append(mean_and_spread([fmean(values[-WINDOW:]) for values in known if values]))
        rows.append(row)
    return rows


def _steps_within(seconds: Mapping[int, float], budget: float) -> list[int]:
    """Return the first steps that take no more than ``budget`` seconds together."""
    steps = sorted(seconds)
    ends = accumulate(seconds[step] for step in steps)
    # Summed in another order, the quickest run's own seconds may differ from the budget in the last digit.
    return [step for step, end in zip(steps, ends, strict=True) if end <= budget * (1 + 1e-9)]


def _title(preset: str) -> str:
    from verl_mtgrpo.credit import method_title  # late: torch takes seconds to import

    return method_title(preset)


def _train(plan: RunPlan, *, label: str) -> RunResult:
    result = train_to_end(plan, label=label)
    if result.reused:
        print(f"{label}  already finished", flush=True)
    return result


def _ends(runs: Sequence[RunResult], name: str, *, first: bool = False) -> list[float]:
    """Return each run's validation value of ``name`` at its last step, or at its first."""
    found = [ends for run in runs if (ends := run.metrics.validated(name))]
    return [start if first else end for start, end in found]


def _first_step(run: RunResult, name: str) -> str:
    """Return the first training step in which the metric ``name`` reached ``REACHED``."""
    series = run.metrics.train.get(name, {})
    return str(next((step for step in sorted(series) if series[step] >= REACHED), "never"))


def _data(
    results: Mapping[str, Mapping[int, RunResult]], facts: Mapping[str, Any], headlines: Mapping[str, str]
) -> str:
    """Return the comparison as JSON. Its training series are those that are plotted; verl logs a hundred more."""
    runs = [
        {"preset": preset, "seed": seed, "train_seconds": run.train_seconds, "starts": run.starts,
         "validation": run.metrics.validation,
         "train": {name: run.metrics.train[name] for name in headlines if name in run.metrics.train}}
        for preset, by_seed in results.items()
        for seed, run in by_seed.items()
    ]  # fmt: skip
    return json.dumps({"facts": dict(facts), "runs": runs}, indent=1) + "\n"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
