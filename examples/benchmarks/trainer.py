"""Measure what our trainer class costs compared with verl's, as a share of a training step.

    python examples/benchmarks/trainer.py                # MT-PPO on the demo's task, 20 steps, a few minutes
    python examples/benchmarks/trainer.py --rollouts 32  # batches four times as large

Both run in the same training and take turns, so that a busy machine slows both: in even steps advantages are computed
by our class (``trainer.v1.trainer_mode=mtgrpo_sync``), which measures the credit turn by turn, in odd ones by verl's.
Our class also fetches the critic's values there as it does for ``turn_gae``, which MT-PPO would not need.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from verl_mtgrpo.demo.session import plan_run, prepare_assets
from verl_mtgrpo.demo.training import DemoSettings
from verl_mtgrpo.launch.command import run_train_command
from verl_mtgrpo.launch.failure import failure_report
from verl_mtgrpo.launch.provenance import describe_machine, describe_source

ALTERNATE = """
import time
import wrapt

@wrapt.when_imported("verl_mtgrpo.integration.trainer.trainer")
def alternate(module):
    ours, stock = module.TurnTrainerSync._compute_advantage, module.PPOTrainerSync._compute_advantage

    def timed(self, batch, metrics):
        start = time.perf_counter()
        if self.global_steps % 2:
            batch, name = stock(self, batch, metrics), "stock"
        else:
            module.fetch(batch, ("values",))
            batch, name = ours(self, batch, metrics), "ours"
        metrics[f"benchmark/advantage_{name}_s"] = time.perf_counter() - start
        return batch

    module.TurnTrainerSync._compute_advantage = timed
"""


def train(out: Path, settings: DemoSettings) -> list[dict[str, float]]:
    """Return the metrics of each step of an alternating run."""
    assets = prepare_assets(out, seed=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "alternate.py").write_text(ALTERNATE)
        plan = plan_run(folder, assets, preset="mt_ppo", seed=0, settings=settings)
        command = plan.command(metrics=folder / "metrics.jsonl", validate_first=False)
        more = ("trainer.v1.trainer_mode=mtgrpo_sync", "trainer.save_freq=-1", "trainer.test_freq=-1")
        path = os.pathsep.join([name, *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {**command.env, "VERL_USE_EXTERNAL_MODULES": "alternate", "PYTHONPATH": path}
        command = dataclasses.replace(command, overrides=(*command.overrides, *more), env=env)
        log = out / "benchmark-trainer.log"
        log.unlink(missing_ok=True)
        if code := run_train_command(command, log=log):
            sys.exit(failure_report(code, log))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["data"] for row in rows if "timing_s/step" in row["data"]]


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rollouts", type=int, default=DemoSettings.rollouts, help="of each question")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where the demo's assets are")
    args = parser.parse_args()
    steps = train(args.out, dataclasses.replace(DemoSettings(), steps=args.steps, rollouts=args.rollouts))[2:]
    took = {
        name: statistics.median(step[name] for step in steps if name in step)
        for name in ("timing_s/step", "benchmark/advantage_stock_s", "benchmark/advantage_ours_s")
    }
    step, stock, ours = took.values()
    size = f"{DemoSettings.prompts * args.rollouts} rollouts of up to {DemoSettings.response_length} tokens"
    print(f"\n{describe_source()}; {describe_machine()['machine']}; MT-PPO, {size}, median of {len(steps)} steps")
    print(f"a step {step:.2f} s; advantages: verl's trainer {1e3 * stock:.0f} ms, ours {1e3 * ours:.0f} ms")
    print(f"ours takes {(ours - stock) / step:.2%} of a step more")


if __name__ == "__main__":
    main()
