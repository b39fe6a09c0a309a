"""Measure time and memory of the turn-level estimators, as ratios to verl's vectorised grpo on the same tensors.

Estimators with a critic are listed next to verl's gae.

    python examples/benchmarks/credit.py                 # three sizes, CPU; needs about 3 GB
    python examples/benchmarks/credit.py --device cuda   # also prints the achieved bandwidth

Every ratio comes from one run in which both sides alternate, so a busy machine slows both. Memory is the peak that an
estimator allocates beyond its inputs, its result included, in units of one float32 tensor of the batch's shape.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from verl.trainer.ppo.core_algos import compute_gae_advantage_return as verl_gae
from verl.trainer.ppo.core_algos import compute_grpo_vectorized_outcome_advantage as verl_grpo

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.credit.registry import ROW_NAMES

SIZES = ((512, 4096), (1024, 8192), (4096, 8192))
TURNS, GROUP = 32, 8
MUST_MOVE = 8 + 4 + 4  # bytes per token: read the mask (int64, as in verl) and the reward, write the advantage


def batch(rows: int, length: int, device: str) -> tuple[Tensor, Tensor, np.ndarray]:
    """Make verl's rewards, mask and uid: up to 32 turns per row, tool results between them, padding at the end."""
    generator = torch.Generator().manual_seed(0)
    turns = torch.randint(1, TURNS + 1, (rows, 1), generator=generator)
    edges = torch.randint(1, length, (rows, 2 * TURNS), generator=generator).sort(dim=1).values
    used = torch.arange(2 * TURNS)[None] < 2 * turns - 1
    flips = torch.zeros(rows, length, dtype=torch.int64).scatter_add_(1, edges, used.long())
    mask = ((flips.cumsum(1) + 1) % 2).to(device)
    rewards = torch.randn(rows, length, generator=generator).to(device) * (mask == 1)
    uid = np.array([f"prompt-{row // GROUP}" for row in range(rows)], dtype=object)
    return rewards, mask, uid


def time_alternating(calls: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Return the median seconds of each call."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):  # the first round is the warm-up
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the peak memory of arrays created inside ``call``: torch's peak plus numpy's."""
    tracemalloc.start()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        kept = call()
    peak_of_numpy = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    del kept
    events = run.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()) if e.name() == "[memory]"]
    return max(0, *accumulate(changes)) + peak_of_numpy


def main() -> None:
    """Print one table per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, median of {args.repeats}")
    for rows, length in SIZES:
        rewards, mask, uid = batch(rows, length, args.device)
        values = torch.zeros_like(rewards)
        calls = {"verl grpo": lambda: verl_grpo(rewards, mask, uid)}  # noqa: B023 used within the iteration
        calls["verl gae"] = lambda: verl_gae(rewards, values, mask, 1.0, 1.0)  # noqa: B023
        for name, function in ESTIMATORS.items():
            names = [None] * rows  # no two rows share a turn or a role's output; trees: forest.py
            fields = {field: names if field in ROW_NAMES else values for field in ESTIMATORS[name].fields}
            calls[name] = lambda function=function, fields=fields: function(rewards, mask, uid, **fields)  # noqa: B023
        seconds = time_alternating(calls, args.repeats, args.device)
        print(f"\n(B, T) = ({rows}, {length}), up to {TURNS} turns a row, groups of {GROUP}")
        for name, call in calls.items():
            units = peak_bytes(call) / (4 * rows * length) if args.device == "cpu" else float("nan")
            bandwidth = MUST_MOVE * rows * length / seconds[name] / 1e9
            print(
                f"  {name:18s} {1e3 * seconds[name]:8.1f} ms   {seconds[name] / seconds['verl grpo']:5.2f} x verl"
                f"   peak {units:4.1f} tensors of (B, T)   {bandwidth:7.1f} GB/s of what must move"
            )


if __name__ == "__main__":
    main()
