"""Measure what one training step costs the driver and the workers compared with verl's parts, at real size.

    python examples/benchmarks/step.py                                    # 2,048 rollouts of 4 turns, a few minutes
    python examples/benchmarks/step.py --turns 16 --rollouts 8192
    python examples/benchmarks/step.py --before CHECKOUT                  # an earlier version of the package beside it

Rollouts with made-up text go through the real pieces: agent loop, reward manager, post-processing, Ray and
TransferQueue, sampler, estimator, metrics and guards, dump, validation. The two sides (verl's is ``tool_agent``,
``naive``, ``ReplayBuffer``, ``PPOTrainerSync`` with ``grpo``) run one after the other, each with a separate process,
Ray and queue. Only the models are missing. Numbers of the driver are the best of three.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import step_rollouts as rollouts
from step_side import DUMPED, GROUP, Side

from verl_mtgrpo.launch.provenance import describe_machine, describe_source

SIZES = ("rollouts", "turns", "tokens", "passages", "questions", "samples", "late", "wait")
TITLES = {
    "loop_ms": "agent loop without the model, ms a rollout",
    "reward_ms": "reward manager, ms a rollout (one core)",
    "rewards_per_s": "… rollouts a second and core",
    "post_ms": "post-processing and put, ms a rollout",
    "sample_s": "sampler on finished groups, s",
    "advantage_s": "advantages (ours with metrics and guards), s",
    "measure_s": "… of which metrics (`measure`), s",
    "dump_s": f"dump of {DUMPED} groups, s",
    "dump_default_s": "dump as it is set by default (verl: all), s",
    "driver_s": "**driver, a step** (sampler, advantages, default dump), s",
    "driver_no_dump_s": "driver, a step without a dump, s",
    "look_s": "one look at the queue while waiting, s",
    "look_share": "… share of the waiting time",
    "fetch_s": "validation: `extra_fields` of as many rollouts, s",
    "validation_s": "**validation metrics**, s",
    "tensor_kb": "tensors per rollout, kB",
    "other_kb": "other data through the queue per rollout, kB",
    "other_x": "… multiple of the rollout's text",
    "no_dump_kb": "… where nothing is written down, kB",
    "to_reward_kb": "to the reward worker per rollout, kB",
    "late_p50_ms": "event loop late, p50, ms",
    "late_p99_ms": "event loop late, p99, ms",
    "late_max_ms": "event loop late, longest, ms",
    "late_processor_s": "… processor time of that run, s",
    "peak_mb": "peak memory of the driver above its start, MB",
}


@contextlib.contextmanager
def queue(config: Any) -> Iterator[None]:
    """Start a Ray and a TransferQueue for this process."""
    import ray
    import transfer_queue as tq
    from omegaconf import OmegaConf

    os.environ.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory(prefix="mtg", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(num_cpus=16, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
        try:
            settings = OmegaConf.create(OmegaConf.to_container(config.transfer_queue, resolve=True))
            settings.enable = True
            tq.init(settings)
            yield
            tq.close()
        finally:
            ray.shutdown()


def one_side(args: argparse.Namespace) -> None:
    """Measure one side in this process and write the numbers."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        side = Side(args, Path(name))
        with queue(side.config):
            asyncio.run(side.work())
            side.drive()
        if args.late:
            side.found |= lateness(args, side)
    Path(args.json).write_text(rollouts.as_json(side.found))


def lateness(args: argparse.Namespace, side: Side) -> dict[str, float]:
    """Run 256 rollouts of 12,000 tokens in one worker: verl's loop in its format, ours in ``search_r1``."""
    from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop

    from verl_mtgrpo.integration.rollout.agent_loop import TurnToolAgentLoop

    kind, spoken = (TurnToolAgentLoop, "search_r1") if side.ours else (ToolAgentLoop, "hermes")
    sizes = {"rollouts": args.late, "tokens": 12000, "turns": 4, "wait": args.wait}
    found = rollouts.event_loop_lateness(kind, side.tokenizer, ours=side.ours, spoken=spoken, **sizes)
    found = {f"late_{name}": value for name, value in found.items()}
    side.note(**found)
    return found


def table(args: argparse.Namespace, sides: dict[str, dict[str, float]]) -> str:
    """Format all sides as Markdown."""
    stock, ours = sides["stock"], sides["ours"]
    columns = {"stock": "verl", "before": "before", "ours": "ours"}
    shown = [side for side in columns if side in sides]
    lines = [
        f"{args.rollouts} rollouts, K = {args.turns}, {ours['response_tokens']:.0f} tokens and "
        f"{ours['text_kb']:.0f} kB of text each, {args.passages} passages a call; "
        f"validation: {args.questions} questions, n = {args.samples}",
        f"{describe_source()}; {describe_machine()['machine']}; load {os.getloadavg()[0]:.1f}",
        "",
        f"| | {' | '.join(columns[side] for side in shown)} | ours / verl |",
        f"|---{'|---' * len(shown)}|---|",
    ]
    for name, title in TITLES.items():
        if not any(name in sides[side] for side in shown):
            continue
        left, right = stock.get(name), ours.get(name)
        ratio = f"{right / left:.2f}" if left and right is not None else ""
        lines.append(f"| {title} | {' | '.join(cell(sides[side], name, args) for side in shown)} | {ratio} |")
    return "\n".join(lines)


def cell(found: dict[str, float], name: str, args: argparse.Namespace) -> str:
    """Format one number."""
    if name not in found:
        return ""
    scaled = name == "validation_s" and found["validation_questions"] < args.questions
    return f"{found[name]:.3g}" + (f" (from {found['validation_questions']:.0f} questions)" if scaled else "")


def in_process(args: argparse.Namespace, side: str, env: dict[str, str] | None = None) -> dict[str, float]:
    """Return one side's numbers, from a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        given = [word for name in SIZES for word in (f"--{name}", str(getattr(args, name)))]
        command = [sys.executable, __file__, *given, "--side", side, "--json", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **(env or {})})
        return json.loads(file.read_text())


def main() -> None:
    """Measure both sides, one after the other, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=2048, help=f"a multiple of {GROUP}, up to 8192")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=4096, help="of a rollout, passages included")
    parser.add_argument("--passages", type=int, default=3, help="a call")
    parser.add_argument("--questions", type=int, default=500, help="of a validation")
    parser.add_argument("--samples", type=int, default=8, help="of each of these questions (val_kwargs.n)")
    parser.add_argument("--late", type=int, default=256, help="rollouts of the event loop's part; 0 leaves it out")
    parser.add_argument("--wait", type=float, default=10.0, help="longest generation of a turn there, seconds")
    parser.add_argument("--json", help="write the numbers there")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier version, measured too")
    parser.add_argument("--side", choices=("stock", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        one_side(args)
        return
    sides = {side: in_process(args, side) for side in ("stock", "ours")}
    if args.before:
        sides["before"] = in_process(args, "ours", {"PYTHONPATH": str(args.before.resolve())})
    print(table(args, sides))
    if args.json:
        sizes = {name: getattr(args, name) for name in SIZES}
        Path(args.json).write_text(rollouts.as_json({"sizes": sizes, "source": describe_source(), **sides}))


if __name__ == "__main__":
    main()
