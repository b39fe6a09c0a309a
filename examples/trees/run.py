"""Train chains and trees of rollouts in the demo's multi-hop world, and compare them at equal generated tokens.

    python examples/trees/run.py --seeds 0 1 2

Chains are trained with MT-GRPO. Trees are trained with its form on trees (every state has two children), with ARPO
(branches after tool results that surprise the policy), and, as a control, with ARPO's advantages on trees that branch
at random. A tree writes a turn that its rollouts share once, so its steps cost fewer tokens. Finished runs are read
again and interrupted ones continued; the chains are those of ``mtgrpo compare --world hops --runs RUNS``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from verl_mtgrpo.demo.runs import RunPlan, RunResult, train_to_end
from verl_mtgrpo.demo.session import plan_run, prepare_assets
from verl_mtgrpo.demo.training import DemoSettings
from verl_mtgrpo.demo.worlds import WORLDS
from verl_mtgrpo.launch.progress import format_duration
from verl_mtgrpo.launch.provenance import describe_machine
from verl_mtgrpo.report.curves import line_style, save_figure
from verl_mtgrpo.report.tables import markdown_table, mean_and_spread

WORLD = "hops"
METHODS = {
    "chains, MT-GRPO": ("mt_grpo", ""),
    "all turns branch, MT-GRPO on trees": ("mt_grpo_tree", ""),
    "surprise branches, ARPO": ("arpo", ""),
    "random branches, ARPO's advantages": ("arpo", "random"),
}
"""Name in table and figure -> config group, and how its trees grow if not as the group says."""
MEASURED = {"outcome/em": "exact match", "tool/hit": "answer in results"}
WINDOW = 5
"""Training steps that a number at equal tokens is averaged over."""


@dataclass(frozen=True)
class Grown(DemoSettings):
    """The demo's settings, with trees that grow as ``grow`` says."""

    grow: str = ""

    def overrides(self, *, seed: int) -> list[str]:
        """Return the Hydra overrides for these settings."""
        return [*super().overrides(seed=seed), f"trainer.turn.branch.grow={self.grow}"]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        result: Its metrics.
        tokens: Tokens generated up to the end of each training step, those of shared turns once.
        shares: Metric -> its value in each training step, the mean over the rollouts.
    """

    result: RunResult
    tokens: list[int]
    shares: dict[str, list[float]]

    def at(self, name: str, budget: int) -> float:
        """Return a metric where the run had generated this many tokens: the mean of the last steps within them."""
        step = sum(tokens <= budget for tokens in self.tokens)
        return fmean(self.shares[name][max(0, step - WINDOW) : step])


def main() -> None:
    """Train the runs that are missing, then write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/hops"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("runs/trees"), help="folder of table and figure")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="default: the world's")
    args = parser.parse_args()
    runs: dict[str, list[Run]] = {name: [] for name in METHODS}
    for seed in args.seeds:
        assets = prepare_assets(args.runs, seed=seed, world=WORLD)
        for name, found in runs.items():
            plan = plan_of(name, args.runs, assets, seed=seed, steps=args.steps)
            found.append(read(plan, train_to_end(plan, label=f"{name}, seed {seed}")))
    args.out.mkdir(parents=True, exist_ok=True)
    text = describe(runs, args.seeds)
    (args.out / "trees.md").write_text(text, encoding="utf-8")
    save_figure(draw(runs), args.out / "trees.png")
    print(text)


def plan_of(name: str, out: Path, assets: Any, *, seed: int, steps: int | None) -> RunPlan:
    """Return a run in its folder."""
    preset, grow = METHODS[name]
    usual = WORLDS[WORLD].training
    settings = replace(usual, steps=steps or usual.steps)
    plan = plan_run(out, assets, preset=preset, seed=seed, settings=settings, world=WORLD)
    if grow:
        folder = plan.folder.with_name(plan.folder.name.replace(preset, f"{preset}-{grow}", 1))
        plan = replace(plan, folder=folder, settings=Grown(**{**vars(settings), "grow": grow}))
    return plan


def read(plan: RunPlan, result: RunResult) -> Run:
    """Return a finished run with its tokens, counted in the dumps of its rollouts."""
    shares = {name: [result.metrics.train[name][step + 1] for step in range(plan.settings.steps)] for name in MEASURED}
    dumps = [plan.folder / "rollouts" / f"{step + 1}.jsonl" for step in range(plan.settings.steps)]
    counts = [generated(json.loads(line) for line in dump.open(encoding="utf-8")) for dump in dumps]
    return Run(result, list(accumulate(counts)), shares)


def generated(rows: Any) -> int:
    """Count the generated tokens of rollouts; a turn that several rollouts of a tree share counts once."""
    turns: dict[tuple[str, ...], int] = {}
    for row in rows:
        spans = [turn["span"] for turn in json.loads(row["transcript"])["turns"]]
        path = row.get("node_path")
        # A row is {uid}_{session}_{output}; the outputs of a session are the leaves of a tree.
        tree = row["uid"].rpartition("_")[0]
        names = path.split("/") if path else [str(turn) for turn in range(len(spans))]
        for name, (start, end) in zip(names, spans, strict=True):
            turns[tree, name] = end - start
    return sum(turns.values())


def describe(runs: dict[str, list[Run]], seeds: Sequence[int]) -> str:
    """Return the tables as Markdown: at equal tokens in training, and in the validation at the end."""
    budgets = [min(run.tokens[-1] for run in of_seed) for of_seed in zip(*runs.values(), strict=True)]
    equal = []
    for name, found in runs.items():
        per_step = [run.tokens[-1] / len(run.tokens) for run in found]
        steps = [sum(tokens <= budget for tokens in run.tokens) for run, budget in zip(found, budgets, strict=True)]
        values = [[run.at(key, budget) for run, budget in zip(found, budgets, strict=True)] for key in MEASURED]
        equal.append([name, f"{fmean(per_step):,.0f}", f"{fmean(steps):.0f}", *map(mean_and_spread, values)])
    header = ["method", "tokens per step", "steps", *MEASURED.values()]
    validated = [["before training", *(_validated(next(iter(runs.values())), key, 0) for key in MEASURED), ""]]
    for name, found in runs.items():
        took = format_duration(fmean(run.result.train_seconds for run in found))
        validated.append([name, *(_validated(found, key, -1) for key in MEASURED), took])
    ended = ["method", *MEASURED.values(), "training time"]
    sources = sorted({run.result.source for found in runs.values() for run in found})
    return (
        f"World {WORLD}, seeds {', '.join(map(str, seeds))}, {len(next(iter(runs.values()))[0].tokens)} steps. "
        f"Source: {', '.join(sources)}. {'; '.join(describe_machine().values())}.\n\n"
        f"At equal generated tokens, those of the run that generated fewest ({fmean(budgets):,.0f} on average): "
        f"training rollouts, mean of the last {WINDOW} steps within them, over the seeds (lowest to highest).\n\n"
        f"{markdown_table(header, equal)}\n\n"
        f"After all steps, in the sampled validation, which grows no trees:\n\n{markdown_table(ended, validated)}\n"
    )


def _validated(runs: Sequence[Run], name: str, which: int) -> str:
    found = [ends for run in runs if (ends := run.result.metrics.validated(name))]
    return mean_and_spread([ends[which] for ends in found])


def draw(runs: dict[str, list[Run]]) -> Figure:
    """Plot the metrics over the generated tokens, one line per run."""
    figure = Figure(figsize=(4.6 * len(MEASURED), 3.8), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(MEASURED)), MEASURED.items(), strict=True):
        for number, (name, found) in enumerate(runs.items()):
            for seed, run in enumerate(found):
                millions = [tokens / 1e6 for tokens in run.tokens]
                axes.plot(millions, run.shares[key], label=None if seed else name, alpha=0.8, **line_style(number))
        axes.set(title=title, xlabel="generated tokens, millions", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share of training rollouts")
    figure.axes[0].legend(fontsize="small")
    return figure


if __name__ == "__main__":
    main()
