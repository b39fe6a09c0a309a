"""Validation metrics that take no longer than verl's own.

verl estimates best, worst and majority of n samples by 1000 bootstrap draws per question, *per name* that a rollout
reports, as soon as a question has two samples (``val_kwargs.n``). A stock reward manager reports one name; this package
reports about 20 and one per turn, which made validation twenty times as long while all GPUs wait. So verl gets its own
names, and the others are averaged here: over the samples of a question, then over the questions of a data source, under
the names that verl would give them. For exact match, best-of-n and worst-of-n come from a formula instead of draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

VERLS = ("reward", "acc", "pred")
"""Names that verl's own statistics are about: the core metric, and the votes of a majority."""
BEST_OF = ("outcome/em", "outcome/score")
"""Names of which best-of-n is worth knowing (pass@n)."""


def split(infos: Mapping[str, list[Any]]) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Part what verl keeps of validation rollouts into what it is to make statistics of and what is averaged here."""
    verls = {name: values for name, values in infos.items() if name in VERLS}
    return verls, {name: values for name, values in infos.items() if name not in VERLS}


def averages(
    data_sources: Sequence[str], questions: Sequence[str], infos: Mapping[str, Sequence[Any]]
) -> dict[str, float]:
    """Average every number that rollouts report, by data source, as verl names and weighs them.

    Args:
        data_sources: Of each rollout.
        questions: Of each rollout, one label per question.
        infos: For each name a value per rollout; None where it is not defined. Names that hold text are left out.

    Returns:
        ``val-aux/<data source>/<name>/mean@<n>``: the mean over the questions that have the number of the mean over
        their samples that have it; n is the most samples a question has. For :data:`BEST_OF` also
        ``best@<k>/mean`` and ``worst@<k>/mean`` for k = 2, 4, ... and n, as verl has them for its core metric.
    """
    named: dict[str, float] = {}
    sources = np.asarray(data_sources, dtype=object)
    for source in dict.fromkeys(data_sources):
        rows = np.flatnonzero(sources == source).tolist()
        _, question = np.unique([str(questions[row]) for row in rows], return_inverse=True)
        n = int(np.bincount(question).max())
        for name, values in infos.items():
            numbers = _numbers([values[row] for row in rows])
            if numbers is None:
                continue
            there = ~np.isnan(numbers)
            count = np.bincount(question, there)
            total = np.bincount(question, np.where(there, numbers, 0.0))
            prefix = f"val-aux/{source}/{name}"
            named[f"{prefix}/mean@{n}"] = float((total[count > 0] / count[count > 0]).mean())
            if name in BEST_OF:
                samples = [numbers[(question == one) & there] for one in np.flatnonzero(count)]
                named |= {f"{prefix}/{what}": value for what, value in _best_and_worst(samples, n).items()}
    return named


def expected_best(samples: np.ndarray, k: int) -> float:
    """Return the expected largest of k draws with replacement from these samples.

    With x_1 ≤ … ≤ x_N: Σ_i x_i ((i/N)^k - ((i-1)/N)^k), what verl's bootstrap estimates by drawing.
    """
    ranks = np.arange(len(samples) + 1) / len(samples)
    return float(np.sort(samples) @ np.diff(ranks**k))


def _best_and_worst(samples: Sequence[np.ndarray], n: int) -> dict[str, float]:
    sizes = [k for k in (2**power for power in range(1, n.bit_length())) if k < n] + ([n] if n > 1 else [])
    return {
        f"{what}@{k}/mean": float(np.mean([sign * expected_best(sign * one, k) for one in samples]))
        for k in sizes
        for what, sign in (("best", 1.0), ("worst", -1.0))
    }


def _numbers(values: Sequence[Any]) -> np.ndarray | None:
    """Return the values as floats, NaN for missing ones; None if they are text or all missing."""
    known = [value for value in values if value is not None]
    if not known or not all(isinstance(value, int | float | np.number | np.bool_) for value in known):
        return None
    numbers = np.array([np.nan if value is None else float(value) for value in values])
    return None if np.isnan(numbers).all() else numbers
