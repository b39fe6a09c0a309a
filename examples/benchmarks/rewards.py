"""Measure how many rollouts per second and core the verifiable reward presets score.

    python examples/benchmarks/rewards.py

Each rollout has four turns and about 4,000 tokens (16,000 characters): three searches with three passages each, then
the answer. As a yardstick from the same run, it also prints the time for lower-casing the same text once.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

from verl_mtgrpo.rewards import PRESETS, ToolCall, Transcript, Turn

CHARACTERS = 16_000


def rollout(rng: random.Random, words: list[str]) -> Transcript:
    """Three searches, then an answer, in the format search_r1."""

    def text(length: int) -> str:
        return " ".join(rng.choice(words) for _ in range(length // 7))

    turns: list[Turn] = []
    for k in range(3):
        thought = f"<think>{text(300)}</think><search>{text(40)}</search>"
        result = "\n".join(f"Doc {n} (Title: {text(20)}) {text(CHARACTERS // 9 - 150)}" for n in range(1, 4))
        turns.append(Turn(thought, (k, k + 1), (ToolCall("search", "{}", result=result),)))
    turns.append(Turn(f"<think>{text(300)}</think><answer>{text(14)}</answer>", (3, 4)))
    return Transcript(tuple(turns), "answered", format="search_r1")


def per_second(work: Callable[[Transcript], object], rollouts: list[Transcript], repeats: int) -> float:
    """Measure rollouts per second, the best of ``repeats`` rounds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for one in rollouts:
            work(one)
        best = min(best, time.perf_counter() - start)
    return len(rollouts) / best


def lower(one: Transcript) -> list[str]:
    """Do the least that any comparison of answers has to do."""
    return [call.result.lower() for turn in one.turns for call in turn.tool_calls]


def main() -> None:
    """Print one line per preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rng = random.Random(0)
    words = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 10))) for _ in range(3000)]
    words += ["the", "a", "an", "of", "in", "1978,", "(see)", "it's", "The"] * 100
    rollouts = [rollout(rng, words) for _ in range(args.rollouts)]
    size = sum(len(t.text) + sum(len(c.result) for c in t.tool_calls) for t in rollouts[0].turns)
    truth = {"target": ["an answer that does not occur", "another one"]}
    yardstick = per_second(
        lambda one: [c.result.lower() for t in one.turns for c in t.tool_calls], rollouts, args.repeats
    )
    print(f"{args.rollouts} rollouts of 4 turns, {size:,} characters each; lower() alone: {yardstick:,.0f} a second")
    for name, preset in PRESETS.items():
        rate = per_second(lambda one, preset=preset: preset(one, truth), rollouts, args.repeats)
        print(f"  {name:10s} {rate:8,.0f} rollouts a second and core, {yardstick / rate:5.1f} x the time of lower()")


if __name__ == "__main__":
    main()
