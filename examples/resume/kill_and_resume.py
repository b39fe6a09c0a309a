"""Kill a training run by SIGKILL in the middle of steps and restart it; compare it with the same run left alone.

    python examples/resume/kill_and_resume.py --out runs/resume          # three seeds, about half an hour on two cores

For each seed the demo's MT-GRPO run is trained twice: once without a break, and once in a process that is killed, with
everything it started, at three random moments and started again with the same command each time. It writes
OUT/README.md with the final validation of both, the steps that each logged, and whether each step asked the same
questions. You can stop this program and start it again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from verl_mtgrpo.demo.runs import RunPlan, RunResult, checkpoint_step, finished_result, train_to_end
from verl_mtgrpo.demo.session import plan_run, prepare_assets
from verl_mtgrpo.demo.training import DemoSettings
from verl_mtgrpo.launch.progress import MetricsTail
from verl_mtgrpo.launch.provenance import describe_machine, describe_source
from verl_mtgrpo.report.tables import markdown_table

KILLS = 3


def main() -> None:
    """Train the runs that are missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/resume"))
    parser.add_argument("--assets", type=Path, default=Path("runs/demo"), help="where mtgrpo demo keeps its worlds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    settings = replace(DemoSettings(), steps=args.steps, save_every=5)
    rows = []
    for seed in args.seeds:
        assets = prepare_assets(args.assets, seed=seed)
        plans = {
            name: plan_run(args.out / name, assets, preset="mt_grpo", seed=seed, settings=settings)
            for name in ("unbroken", "killed")
        }
        whole = train_to_end(plans["unbroken"], label=f"seed {seed}, unbroken")
        killed_at = train_and_kill(plans["killed"], seed=seed)
        rows.append(compare(seed, plans, whole, killed_at))
    write(args.out / "README.md", rows, args.steps)


def train_and_kill(plan: RunPlan, *, seed: int) -> list[tuple[int, int]]:
    """Finish a run with ``KILLS`` kills; return the step of each, and the checkpoint to continue from (0: none)."""
    record = plan.folder.with_suffix(".kills.json")
    killed_at = json.loads(record.read_text()) if record.exists() else []
    chance = random.Random(seed)
    moments = sorted(chance.sample(range(2, plan.settings.steps - 1), KILLS))
    for after in moments[len(killed_at) :]:
        before = metrics_files(plan)[-1:]
        label = {"label": f"seed {seed}, to be killed"}
        child = multiprocessing.get_context("spawn").Process(target=train_to_end, args=(plan,), kwargs=label)
        child.start()
        while metrics_files(plan)[-1:] in ([], before) or max(logged_steps(metrics_files(plan)[-1]), default=0) < after:
            assert child.is_alive(), f"ended by itself; see the logs in {plan.folder}"
            time.sleep(0.2)
        time.sleep(chance.uniform(0.2, 3.0))
        kill_family(child)
        killed_at.append((max(logged_steps(metrics_files(plan)[-1])) + 1, checkpoint_step(plan.folder)))
        record.write_text(json.dumps(killed_at))
        print(f"seed {seed}: killed in step {killed_at[-1][0]}", flush=True)
    train_to_end(plan, label=f"seed {seed}, killed {len(killed_at)} times")
    return killed_at


def metrics_files(plan: RunPlan) -> list[Path]:
    """Return the metrics files, one per start, oldest first."""
    return sorted(plan.folder.glob("metrics-*.jsonl"))


def logged_steps(metrics: Path) -> list[int]:
    """Return the training steps in the order in which they were logged."""
    return [step for step, data in MetricsTail(metrics).read_new() if "timing_s/step" in data]


def kill_family(child: multiprocessing.process.BaseProcess) -> None:
    """Send SIGKILL to a process and all its descendants (verl, Ray, workers), so that none of them can clean up."""
    family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=30)
    child.join()


def compare(seed: int, plans: Mapping[str, RunPlan], whole: RunResult, killed_at: list[tuple[int, int]]) -> list[str]:
    """Return one row of the table."""
    broken = finished_result(plans["killed"])
    assert broken is not None
    steps = plans["unbroken"].settings.steps
    every = list(range(1, steps + 1))
    assert logged_steps(*metrics_files(plans["unbroken"])) == every
    # Each start continues right after its checkpoint. (What a run logged before its first one is removed.)
    saved = [0, *(checkpoint for _, checkpoint in killed_at)]
    kept = max(n for n, checkpoint in enumerate(saved) if checkpoint == 0)
    assert [min(logged_steps(path)) for path in metrics_files(plans["killed"])] == [one + 1 for one in saved[kept:]]
    assert sorted({step for path in metrics_files(plans["killed"]) for step in logged_steps(path)}) == every
    same = sum(questions(plans["unbroken"], step) == questions(plans["killed"], step) for step in every)
    again = sum(step - 1 - saved for step, saved in killed_at)
    cells = [
        str(seed),
        "; ".join(f"{step} ({saved})" for step, saved in killed_at),
        f"1 to {steps}; {again} again",
        f"{same} of {steps}",
    ]
    for name in ("tool/used", "outcome/em"):
        for result in (whole, broken):
            cells.append(f"{result.metrics.validation[name][steps]:.3f}")
    return cells


def questions(plan: RunPlan, step: int) -> list[str]:
    """Return the questions of a step, once per dumped rollout, sorted."""
    lines = (plan.folder / "rollouts" / f"{step}.jsonl").read_bytes().splitlines()
    return sorted(json.loads(line)["input"] for line in lines)


def write(path: Path, rows: list[list[str]], steps: int) -> None:
    """Write the table and the command that made it."""
    header = ["seed", "killed in step (last checkpoint)", "steps trained", "steps with the same questions"]
    header += [f"{name}, {run}" for name in ("tool execution", "exact match") for run in ("unbroken", "killed")]
    facts = {"source": describe_source(), **describe_machine()}
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    text = (
        "# Killed and started again\n\n"
        f"The demo's MT-GRPO run ({steps} steps, a checkpoint every 5), once left alone and once killed by SIGKILL at "
        f"{KILLS} random moments; final sampled validation. Made by `python examples/resume/kill_and_resume.py`:\n\n"
        f"{markdown_table(header, rows)}\n\n{listed}\n"
    )
    path.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
