"""Account for every rollout of a run: compare the training's metrics with the journal of its workers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FATES = ("trained", "dropped", "alone", "failed", "filtered")
COUNTS = ("asked", *FATES, "repeated")


@dataclass
class Start:
    """One start of the training: the metrics of its logged steps, and the rollouts by step in its journal."""

    rows: dict[int, Mapping[str, Any]]
    begun: dict[int, Counter[str]] = field(default_factory=dict)
    ended: dict[int, Counter[str]] = field(default_factory=dict)
    malformed: Counter[str] = field(default_factory=Counter)
    generations: int = 0

    def cut_off(self) -> list[int]:
        """Return the steps that began but were not logged, because the training stopped in them."""
        return sorted(set(self.begun) - set(self.rows))

    def counts(self, step: int) -> dict[str, int]:
        """Return the numbers of rollouts in the metrics of a step."""
        return {name: round(self.rows[step][f"rollouts_total/{name}"]) for name in COUNTS}


def read_start(metrics: Path, journal: Path) -> Start:
    """Read the metrics and the journal of one start."""
    start = Start(rows={row["step"]: row["data"] for row in _lines(metrics) if "rollouts_total/asked" in row["data"]})
    for line in _lines(journal):
        rollout = f"{line['uid']}_{line['session']}"
        if line["event"] == "generated":
            start.generations += 1
            start.malformed.update([line["malformed"]] if line["malformed"] else [])
        else:
            steps = start.begun if line["event"] == "begun" else start.ended
            steps.setdefault(line["step"], Counter())[rollout] += 1
    return start


def check(starts: Sequence[Start], steps: int) -> dict[str, int]:
    """Compare metrics and journal, and add up.

    Returns:
        Sums over the steps that the final policy was trained with (by :data:`COUNTS`); ``undone``: rollouts of logged
        steps that were trained again from a checkpoint; ``cut off``: rollouts of steps that a stop interrupted;
        ``begun``: all rollouts in the journal.

    Raises:
        AssertionError: A rollout is missing in one of them.
    """
    final: dict[int, dict[str, int]] = {}
    undone = 0
    for start in starts:
        for step in start.rows:
            counts = start.counts(step)
            assert counts["asked"] == sum(counts[fate] for fate in FATES), (step, counts)
            assert counts["asked"] == len(start.begun[step]), (step, counts, len(start.begun[step]))
            assert counts["trained"] + counts["dropped"] + counts["alone"] <= len(start.ended[step]), (step, counts)
            again = sum(start.begun[step].values()) - len(start.begun[step])
            assert again <= counts["repeated"], (step, counts, again)
            undone += final[step]["asked"] if step in final else 0
            final[step] = counts
    assert sorted(final) == list(range(1, steps + 1)), sorted(final)
    sums = {name: sum(counts[name] for counts in final.values()) for name in COUNTS}
    sums["undone"] = undone
    sums["cut off"] = sum(len(start.begun[step]) for start in starts for step in start.cut_off())
    sums["begun"] = sum(len(rollouts) for start in starts for rollouts in start.begun.values())
    assert sums["begun"] == sums["asked"] + sums["undone"] + sums["cut off"], sums
    return sums


def _lines(file: Path) -> list[dict[str, Any]]:
    """Return the complete lines; a kill may have cut off the last one."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]
