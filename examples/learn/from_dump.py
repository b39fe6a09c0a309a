"""Locate a run on the map of ``mtgrpo lab learn`` by its validation dump, and print the command for that point.

    python examples/learn/from_dump.py runs/mine/validation/0.jsonl

The dump should be from before training. docs/when.md explains P, b, q and r, and how far to trust them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
NEEDED = ("tool/calls", "tool/used", "outcome/em")


def point(rows: list[Row]) -> dict[str, float]:
    """Return the settings of the search task that fit the rollouts of a dump.

    Raises:
        SystemExit: No rollout called the tool, or all did, so that one of the numbers cannot be estimated.
    """
    kept = [row for row in rows if not row.get("outcome/dropped")]
    called = [row for row in kept if row["tool/calls"]]
    by_heart = [row for row in kept if not row["tool/calls"]]
    sound = [row for row in called if row["tool/used"]]
    asked = [row for row in sound if row.get("tool/hit") is not None]  # undefined for yes/no questions
    hits = [row for row in asked if row["tool/hit"]]
    return {
        "heart": _share(by_heart, lambda row: row["outcome/em"], "answered without a call"),
        "broken": _share(called, lambda row: not row["tool/used"], "called the tool"),
        "good": _share(asked, lambda row: row["tool/hit"], "had a call carried out"),
        "read": _share(hits, lambda row: row["outcome/em"], "had an answer in its results"),
        "use": _share(kept, lambda row: row["tool/calls"], "was scored"),
    }


def _share(rows: list[Row], what: Callable[[Row], Any], of: str) -> float:
    """Return a share between 0 and 1, both excluded, as the laboratory requires."""
    if not rows:
        sys.exit(
            f"no rollout of the dump {of}, so there is nothing to measure; validate with more samples (val_kwargs.n)"
        )
    return min(max(sum(bool(what(row)) for row in rows) / len(rows), 0.01), 0.99)


def read(path: str) -> list[Row]:
    """Return the rollouts of a dump.

    Raises:
        SystemExit: The file cannot be read, is empty, or is no dump of a run with turn rewards.
    """
    rows: list[Row] = []
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                rows.append(json.loads(line))
    except OSError as error:
        sys.exit(f"{path} cannot be read: {error.strerror}; a validation writes it (trainer.validation_data_dir)")
    except ValueError:
        sys.exit(f"{path}, line {len(rows) + 1}: not JSON, perhaps cut off; remove the line, or validate again")
    if not rows:
        sys.exit(f"{path} is empty; validate again")
    missing = [name for name in NEEDED if any(name not in row for row in rows if not row.get("outcome/dropped"))]
    if missing:
        sys.exit(
            f"{path} has rollouts without {', '.join(missing)}; expected the dump of a validation with our rewards"
        )
    return rows


def main(path: str) -> None:
    """Print the command for a dump."""
    print("mtgrpo lab learn --set " + " ".join(f"{name}={share:.2f}" for name, share in point(read(path)).items()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give one dump: from_dump.py runs/mine/validation/0.jsonl")
    main(sys.argv[1])
