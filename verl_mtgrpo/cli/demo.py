"""``mtgrpo demo``: a tiny policy learns to search, under the real trainer, while you watch."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import time
from pathlib import Path

from verl_mtgrpo.cli.demo_settings import DemoSettings
from verl_mtgrpo.cli.progress import format_duration
from verl_mtgrpo.cli.runs import Assets, RunPlan, RunResult, train_to_end
from verl_mtgrpo.errors import ConfigError

_PRESET = "mt_grpo"
_SHOWN_ROLLOUTS = 3

_DESCRIPTION = """\
Make a small world (facts, passages, questions), an index over it and a policy of a million parameters that
has learned some bad habits; then train it with MT-GRPO through `python -m verl.trainer.main_ppo` on the CPU.
What exists is reused: a finished run is shown again, an interrupted one goes on from its checkpoint.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "demo", help="train a tiny search agent with MT-GRPO on this machine's CPU", description=_DESCRIPTION
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of world, policy and training (default: 0)")
    parser.add_argument("--steps", type=int, help="training steps (default: DEMO_STEPS or the demo's own)")
    parser.add_argument("--fresh", action="store_true", help="train again, also if the run is finished")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prepare, train, show."""
    settings = settings_from(args.steps)
    print(f"[1/3] a small world, an index over it and a policy (seed {args.seed})\n", flush=True)
    assets = prepare_assets(args.out, seed=args.seed)
    plan = plan_run(args.out, assets, preset=_PRESET, seed=args.seed, settings=settings)
    if args.fresh and (plan.folder / "run.json").exists():
        shutil.rmtree(plan.folder)
    budget = f"{settings.steps} steps of {settings.prompts} questions x {settings.rollouts} rollouts"
    print(f"\n[2/3] training with MT-GRPO: {budget}\n", flush=True)
    result = train_to_end(plan, label=_PRESET, show_command=True)
    print("\n[3/3] what came out\n", flush=True)
    show_result(plan, result, curve=args.out / f"curves-seed{args.seed}.png")
    return 0


def settings_from(steps: int | None) -> DemoSettings:
    """The demo's settings; ``--steps`` goes before DEMO_STEPS goes before the default.

    Raises:
        ConfigError: Not a positive number of steps.
    """
    asked = steps if steps is not None else os.environ.get("DEMO_STEPS") or DemoSettings.steps
    try:
        count = int(asked)
    except ValueError:
        count = 0
    if count < 1:
        raise ConfigError(f"the number of training steps is {asked!r}; give --steps or DEMO_STEPS 1 or more")
    return dataclasses.replace(DemoSettings(), steps=count)


def prepare_assets(out: Path, *, seed: int) -> Assets:
    """The seed's world, index and policy below ``out``, made unless they exist."""
    # OpenMP reads these when torch loads it. Threads that wait by spinning took three times the CPU time of
    # threads that sleep, on cores that do other things as well.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    from verl_mtgrpo.data.demo import prepare_demo

    started = time.monotonic()
    assets = prepare_demo(out / f"assets-seed{seed}", seed=seed, progress=True)
    took = format_duration(time.monotonic() - started)
    print(f"world, index and policy of seed {seed} ready after {took}: {assets.policy.parent}", flush=True)
    return assets


def plan_run(out: Path, assets: Assets, *, preset: str, seed: int, settings: DemoSettings) -> RunPlan:
    """A run in its usual place below ``out``, where the demo and the comparison share it."""
    folder = out / f"{preset}-seed{seed}"
    return RunPlan(folder=folder, preset=preset, seed=seed, assets=assets, settings=settings)


def show_result(plan: RunPlan, result: RunResult, *, curve: Path) -> None:
    """Print table and rollouts, write the curves."""
    from verl_mtgrpo.report.curves import save_figure, training_figure
    from verl_mtgrpo.report.tables import start_end_rows, text_table

    samples = plan.settings.validation_samples
    header = [f"validation, {samples} samples a question", "before", f"step {plan.settings.steps}", "change"]
    print(text_table(header, start_end_rows(result.metrics)))
    title = f"MT-GRPO on a CPU: {plan.settings.steps} steps, seed {plan.seed}"
    save_figure(training_figure(result.metrics, title=title), curve)
    show_rollouts(plan.validation / f"{plan.settings.steps}.jsonl")
    took = format_duration(result.train_seconds)
    again = "; trained before, --fresh trains again" if result.reused else ""
    print(f"\ncurves: {curve}\nrun:    {plan.folder} (training took {took}{again})")


def show_rollouts(dump: Path) -> None:
    """Print a few rollouts of a validation dump with the credit of each turn."""
    from verl_mtgrpo.report.rollouts import credit_rollouts, pick_rollouts, read_dump, render_rollout

    credited = credit_rollouts(read_dump(dump))
    print("\nValidation rollouts after training; advantages are those MT-GRPO gives within a question's samples:")
    for credit in pick_rollouts(credited, _SHOWN_ROLLOUTS):
        print("\n" + render_rollout(credit))
