"""Train the demo's policy with dense rewards, and write down what they paid in each step, and what they cost.

    python examples/dense/run.py --out runs/dense --steps 10              # implicit rewards; a quarter of an hour
    python examples/dense/run.py --out runs/dense --steps 3 --dense information_gain

The run is the demo's in everything but the dense reward: `turn_rloo`, sixteen questions of eight rollouts per step, the
policy at the start as the reference. It writes OUT/NAME.md. You can stop this program and start it again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verl_mtgrpo.demo.runs import RunPlan, RunResult, train_to_end
from verl_mtgrpo.demo.session import prepare_assets
from verl_mtgrpo.demo.training import DemoSettings
from verl_mtgrpo.launch.command import TrainCommand
from verl_mtgrpo.launch.provenance import describe_machine, describe_source
from verl_mtgrpo.report.tables import markdown_table

REFERENCE = ("actor_rollout_ref.actor.use_kl_loss=True", "actor_rollout_ref.actor.kl_loss_coef=0")
DENSE = {
    "implicit": (*REFERENCE, "+trainer.turn.dense.implicit.beta=0.05"),
    # The demo's policy writes a space in front of its answer.
    "information_gain": (
        "+trainer.turn.dense.information_gain.of=probability",
        "trainer.turn.probe.before='<answer> '",
    ),
}
"""Dense reward -> what is added to the demo's command."""
COLUMNS = (
    "turn/1/reward",
    "turn/1/dense/{}",
    "turn/2/reward",
    "turn/2/dense/{}",
    "tool/used",
    "tool/hit",
    "outcome/em",
)


@dataclass(frozen=True)
class DenseRun(RunPlan):
    """A run of the demo with a dense reward."""

    dense: str = "implicit"

    def identity(self) -> dict[str, Any]:
        """Return the settings that make two runs the same run."""
        return {**super().identity(), "dense": list(DENSE[self.dense])}

    def command(self, *, metrics: Path, validate_first: bool) -> TrainCommand:
        """Return the demo's command line with the dense reward."""
        command = super().command(metrics=metrics, validate_first=validate_first)
        return replace(command, overrides=(*command.overrides, *DENSE[self.dense]))


def main() -> None:
    """Train, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/dense"))
    parser.add_argument("--assets", type=Path, default=Path("runs/demo"), help="where mtgrpo demo keeps its worlds")
    parser.add_argument("--dense", choices=DENSE, default="implicit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    plan = DenseRun(
        folder=args.out / f"{args.dense}-seed{args.seed}",
        preset="turn_rloo",
        seed=args.seed,
        assets=prepare_assets(args.assets, seed=args.seed),
        settings=replace(DemoSettings(), steps=args.steps),
        dense=args.dense,
    )
    write(args.out / f"{args.dense}.md", plan, train_to_end(plan, label=args.dense))


def write(path: Path, plan: DenseRun, result: RunResult) -> None:
    """Write the table, the cost and the command that made them."""
    train, steps = result.metrics.train, range(1, plan.settings.steps + 1)
    names = [name.format(plan.dense) for name in COLUMNS]
    rows = [[str(step), *(f"{train[name][step]:.4f}" for name in names)] for step in steps]
    arguments = f"--dense {plan.dense} --steps {plan.settings.steps} --seed {plan.seed}"
    facts = {
        "command": f"python examples/dense/run.py {arguments}",
        "settings": ", ".join(DENSE[plan.dense]),
        "source": describe_source(),
        **describe_machine(),
    }
    if "timing_s/probe" in train:
        ratios = [train["timing_s/probe"][step] / train["timing_s/old_log_prob"][step] for step in steps]
        facts["timing_s/probe ÷ timing_s/old_log_prob"] = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    path.write_text(f"{markdown_table(['step', *names], rows)}\n\n{listed}\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
