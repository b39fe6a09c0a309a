"""Dumps of given rewards, with the advantages of the estimators that train, and what their calibration is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.report.made import dump_row, training_row, transcript, write_rows
from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.report.calibration import Calibration, Correlation, calibrate
from verl_mtgrpo.report.catalog import read_catalog

Rollouts = dict[str, list[list[float]]]
"""Group -> what each of its rollouts was paid, by turn; the last turn's is the outcome."""


def estimated(name: str, paid: list[list[float]], groups: list[str], **settings: Any) -> list[list[float]]:
    """Advantages by turn, from the estimator that trains: one token per turn, at every second place."""
    rewards = torch.zeros(len(paid), 2 * max(map(len, paid)))
    mask = torch.zeros_like(rewards)
    for row, one in enumerate(paid):
        rewards[row, : 2 * len(one) : 2], mask[row, : 2 * len(one) : 2] = torch.tensor(one), 1.0
    advantages, _ = ESTIMATORS[name](rewards, mask, groups, **settings)
    return [row[: 2 * len(one) : 2] for row, one in zip(advantages.tolist(), paid, strict=True)]


def trained(
    folder: Path,
    rollouts: Rollouts,
    *,
    name: str = "mt_grpo",
    more: list[dict[str, Any]] | None = None,
    **settings: Any,
) -> Calibration:
    """The calibration of a training dump, with real advantages."""
    groups = [group for group, some in rollouts.items() for _ in some]
    paid = [one for some in rollouts.values() for one in some]
    credit = estimated(name, paid, groups, **settings)
    method = {"estimator": name, "estimator_settings": json.dumps({**ESTIMATORS[name].knobs, **settings})}
    rows = [
        {
            **training_row(groups[n], n, transcript("Vel", searches=["x"] * (len(one) - 1)), one, credit[n], **method),
            **(more[n] if more else {}),
        }
        for n, one in enumerate(paid)
    ]
    (found,) = calibrate(read_catalog([write_rows(folder / "1.jsonl", rows)]).groups)
    return found


def validated(folder: Path, rows: list[dict[str, Any]]) -> Calibration:
    (found,) = calibrate(read_catalog([write_rows(folder / "0.jsonl", rows)]).groups)
    return found


def named(calibration: Calibration, name: str) -> Correlation:
    (found,) = (one for one in calibration.correlations if one.name == name)
    return found


def rows_of(rollouts: Rollouts, **more: Any) -> list[dict[str, Any]]:
    return [
        dump_row(group, n, transcript("Vel", searches=["x"] * (len(one) - 1)), one, **more)
        for group, some in rollouts.items()
        for n, one in enumerate(some)
    ]


OPPOSED: Rollouts = {
    # Centred: turn 1 ±.25, outcome ∓.5 in all four: Σxy = -.5.
    "a": [[0.5, 0.0], [0.5, 0.0], [0.0, 1.0], [0.0, 1.0]],
    # The same sizes, two of a sign and two of the other: Σxy = 0.
    "b": [[0.5, 1.0], [0.0, 0.0], [0.5, 0.0], [0.0, 1.0]],
    # Nothing to compare: the same at turn 1, the same outcome, and one rollout alone.
    "c": [[0.5, 1.0], [0.5, 0.0]],
    "d": [[0.5, 1.0], [0.0, 1.0]],
    "e": [[0.5, 1.0]],
}
