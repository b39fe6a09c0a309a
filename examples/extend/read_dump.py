"""Explain why a turn got its advantage: the arithmetic of MT-GRPO on a validation dump, written out.

    python examples/extend/read_dump.py runs/demo/mt_grpo-seed0/validation/50.jsonl

This shows the question whose rollouts were paid most differently, and it needs only json and statistics: a row of the
dump (``trainer.validation_data_dir``) has ``uid`` (<prompt>_<rollout>_<output>), ``turn_rewards`` and ``transcript``,
both JSON, and every metric of the rollout (``tool/hit``, ``outcome/em``, ...). ``mtgrpo report`` shows the whole dump,
``mtgrpo eval`` makes tables of it.
"""

import json
import statistics
import sys
from collections import defaultdict


def norm(value: float, values: list[float]) -> float:
    """Return (value - mean) / std over the compared rollouts; a single one keeps its value."""
    if len(values) == 1:
        return value
    return (value - statistics.fmean(values)) / (statistics.stdev(values) + 1e-6)


def explain(group: list[list[float]], rollout: int) -> list[dict[str, float]]:
    """Return for each turn of a rollout its reward, the two terms of its advantage, and their sum.

    Args:
        group: The turn rewards of each rollout of one question; the last reward of a rollout is its outcome.
        rollout: Index of the rollout to explain.
    """
    mine = group[rollout]
    outcome = norm(mine[-1], [rewards[-1] for rewards in group])
    terms = []
    for k in range(len(mine)):
        # Compare the rollouts that had a turn k. One that ended with it counts as 0: it was paid nothing for going on.
        alive = [rewards[k] if k < len(rewards) - 1 else 0.0 for rewards in group if k < len(rewards)]
        terms.append(norm(mine[k] if k < len(mine) - 1 else 0.0, alive))
    return [
        {"reward": mine[k], "turns": sum(terms[k:]), "outcome": outcome, "advantage": sum(terms[k:]) + outcome}
        for k in range(len(mine))
    ]


def main(path: str) -> None:
    """Print the group with the largest spread, and the terms of each of its advantages."""
    groups = defaultdict(list)
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            row["paid"] = json.loads(row["turn_rewards"])
            if row["paid"] and not row["outcome/dropped"]:  # dropped ones are in no statistics
                groups[row["uid"].rsplit("_", 2)[0]].append(row)
    rows = max(groups.values(), key=lambda rows: statistics.pstdev(sum(row["paid"]) for row in rows))
    prompt = json.loads(rows[0]["transcript"])["prompt"]
    print(f"{prompt[-1]['content']}\naccepted: {rows[0]['gts']}")
    for number, row in enumerate(rows):
        print(f"\nrollout {number}")
        why = explain([other["paid"] for other in rows], number)
        for turn, terms in zip(json.loads(row["transcript"])["turns"], why, strict=True):
            sums = "advantage {advantage:+.2f} = turns {turns:+.2f} + outcome {outcome:+.2f}".format(**terms)
            print(f"  {terms['reward']:+.2f} paid, {sums}\n    {turn['text']}")
            for call in turn["tool_calls"]:
                print(f"    -> {call['result'][:100]}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give one dump: read_dump.py runs/demo/mt_grpo-seed0/validation/50.jsonl")
    main(sys.argv[1])
