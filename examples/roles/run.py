"""Train two roles with one tiny policy on the CPU, with the real trainer.

    python examples/roles/run.py mhgpo --seeds 0 1 2    # a rewriter that searches and an answerer; 20 steps each
    python examples/roles/run.py rema                   # a planner and a worker who talk; 5 steps
    python examples/roles/run.py resume                 # mhgpo's first seed once more, killed and started again

Each run is finished, continued or read again, whichever its folder asks for. OUT/METHOD.md and OUT/METHOD.png have the
numbers. With ``--paid`` the rewriter is also paid for what it finds, which needs no other answer.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import psutil
import yaml
from matplotlib.figure import Figure

from verl_mtgrpo.demo.runs import RunPlan, RunResult, checkpoint_step, train_to_end
from verl_mtgrpo.demo.training import DemoSettings
from verl_mtgrpo.launch.command import hydra_value
from verl_mtgrpo.launch.progress import format_duration
from verl_mtgrpo.launch.provenance import describe_origin
from verl_mtgrpo.own_code import load_file
from verl_mtgrpo.report.curves import line_style, save_figure
from verl_mtgrpo.report.tables import markdown_table

HERE = Path(__file__).resolve().parent
REWARDS = HERE.parents[1] / "recipes" / "mhgpo_search" / "rewards.py"
SEARCH = {
    "rewriter": {"prompt": "{question}", "tools": ["search"], "call_ends": True},
    "answerer": {"prompt": "{question}\n\n{rewriter.result}"},
}
MEASURED = {
    "outcome/f1": "F1 of the answer",
    "tool/hit": "answer in results",
    "role/planner/finished": "finished",
}
"""Metrics of training steps. A conversation has no search, and a search is not a conversation."""


@dataclass(frozen=True)
class Settings(DemoSettings):
    """How the policy of this example is trained; ``roles`` is the file that names them."""

    steps: int = 20
    prompts: int = 16
    rollouts: int = 4
    prompt_length: int = 192
    response_length: int = 64
    rewards: str = f"{REWARDS}:answer_f1"
    save_every: int = 5
    validation_samples: int = 2
    roles: str = ""

    @property
    def validated(self) -> tuple[str, ...]:
        """verl's validation has the metrics of the role that answers, and it searches nothing."""
        return ("outcome/f1",)

    def overrides(self, *, seed: int) -> list[str]:
        """Return the Hydra overrides for these settings."""
        return [*super().overrides(seed=seed), f"trainer.turn.roles.file={hydra_value(self.roles)}"]


def main() -> None:
    """Train the runs that are missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=("mhgpo", "rema", "resume"))
    parser.add_argument("--out", type=Path, default=Path("runs/roles"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="default: 20 for mhgpo, 5 for rema, 10 for resume")
    parser.add_argument("--paid", action="store_true", help="pay the rewriter for what it finds")
    args = parser.parse_args()
    rows, results = [], []
    for seed in args.seeds:
        plan = plan_of(args.method, args.out, seed=seed, steps=args.steps, paid=args.paid)
        killed = kill_once(plan) if args.method == "resume" else ""
        result = train_to_end(plan, label=f"{args.method}, seed {seed}", show_command=True)
        rows.append([*row(plan, result), killed])
        results.append(result)
    header = ["seed", "step", *MEASURED.values(), "starts, time", "killed"]
    name = f"{args.method}{'-paid' if args.paid else ''}"
    text = f"{describe_origin()}\n\n{markdown_table(header, rows)}\n"
    (args.out / f"{name}.md").write_text(text, encoding="utf-8")
    save_figure(draw(results, args.seeds), args.out / f"{name}.png")
    print(text)


def plan_of(method: str, out: Path, *, seed: int, steps: int | None, paid: bool) -> RunPlan:
    """Return a run in its folder; its assets are made if they are missing."""
    talks = method == "rema"
    made = load_file(HERE / ("talk.py" if talks else "search.py"))
    assets = made.prepare(out / f"assets-{'talk' if talks else 'search'}-seed{seed}", seed=seed)
    rewriter = {**SEARCH["rewriter"], "reward": f"{REWARDS}:{'paid_for_hits' if paid else 'watched'}"}
    roles = made.ROLES if talks else {"names": {**SEARCH, "rewriter": rewriter}}
    name = f"{method}{'-paid' if paid else ''}-seed{seed}"
    file = out.resolve() / f"roles-{name}.yaml"
    file.write_text(yaml.safe_dump(roles, sort_keys=False), encoding="utf-8")
    settings = replace(Settings(), roles=str(file), steps=steps or {"mhgpo": 20, "rema": 5, "resume": 10}[method])
    preset = "rema" if talks else "mhgpo"
    if talks:  # its roles are the file's
        settings = replace(settings, prompts=8)
    return RunPlan(folder=out / name, preset=preset, seed=seed, assets=assets, settings=settings)


def row(plan: RunPlan, result: RunResult) -> list[str]:
    """Return the numbers of the first and the last two training steps, which know all roles, unlike validation."""
    last = plan.settings.steps

    def mean(name: str, few: tuple[int, int]) -> str:
        series = result.metrics.train.get(name, {})
        values = [series[step] for step in few if step in series]
        return f"{fmean(values):.3f}" if values else "-"

    shown = [f"{mean(name, (1, 2))} to {mean(name, (last - 1, last))}" for name in MEASURED]
    return [
        str(plan.seed),
        str(plan.settings.steps),
        *shown,
        f"{result.starts}, {format_duration(result.train_seconds)}",
    ]


def draw(results: list[RunResult], seeds: list[int]) -> Figure:
    """Plot the metrics over the training steps: one colour per metric, one line per seed."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for number, (name, title) in enumerate(MEASURED.items()):
        found = [result.metrics.train[name] for result in results if name in result.metrics.train]
        for which, series in enumerate(found):
            steps = sorted(series)
            (line,) = axes.plot(steps, [series[step] for step in steps], label=None if which else title)
            line.set(**line_style(number))
    axes.set(xlabel="training step", ylabel="share", ylim=(-0.02, 1.02), title=f"seeds {', '.join(map(str, seeds))}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def kill_once(plan: RunPlan) -> str:
    """Kill the run, with everything that it started, after its first checkpoint; return the step."""
    if checkpoint_step(plan.folder):
        return "earlier"
    child = multiprocessing.get_context("spawn").Process(target=train_to_end, args=(plan,), kwargs={"label": "killed"})
    child.start()
    while checkpoint_step(plan.folder) == 0:
        assert child.is_alive(), f"ended by itself; see the logs in {plan.folder}"
        time.sleep(1.0)
    family = psutil.Process(child.pid).children(recursive=True)
    for process in [psutil.Process(child.pid), *family]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    child.join()
    return str(checkpoint_step(plan.folder))


if __name__ == "__main__":
    main()
