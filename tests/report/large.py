"""A dump of 10,000 rollouts of realistic size."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.report.made import training_row
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.rewards.transcript import ToolCall, Transcript, Turn

GROUPS, ROLLOUTS = 1250, 8


def large_dump(path: Path) -> Path:
    """Rollouts of three turns, two of which find three passages of 100 words; in a group they often find the same."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(20_000)]
    passages = [
        Passage(str(n), f"Passage {n}", " ".join(rng.choices(words, k=100)), rng.uniform(5, 20)) for n in range(20_000)
    ]

    def search(group: int, k: int) -> Turn:
        found = tuple(passages[(group * 16 + rng.randint(0, 12)) % len(passages)] for _ in range(3))
        result = "\n".join(f"Doc {n} (Title: {one.title}) {one.text}" for n, one in enumerate(found, start=1))
        arguments = json.dumps({"query": " ".join(rng.choices(words, k=5))})
        call = ToolCall("search", arguments, result, documents=found)
        text = f'<tool_call>{{"name": "search", "arguments": {arguments}}}</tool_call>'
        return Turn(text, (600 * k, 600 * k + 30), (call,))

    with path.open("w") as file:
        for group in range(GROUPS):
            prompt = ({"role": "user", "content": f"question {group} {' '.join(rng.choices(words, k=10))}?"},)
            for number in range(ROLLOUTS):
                last = Turn(f"{' '.join(rng.choices(words, k=40))} <answer>Vel</answer>", (1200, 1240))
                said = Transcript((search(group, 0), search(group, 1), last), "answered", prompt, 3)
                paid = [rng.choice([0.0, 0.2, 0.7]), rng.choice([0.0, 0.2]), rng.choice([0.2, 1.7])]
                credit = [rng.gauss(0, 1) for _ in paid]
                file.write(json.dumps(training_row(f"g{group}", number, said, paid, credit, step=group // 25)) + "\n")
    return path
