"""Read what verl's ``file`` logger wrote about a run, as series by step."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

# verl names the mean over the n samples of a validation prompt val-aux/<data source>/<name>/mean@n.
_VALIDATION = re.compile(r"^val-(?:aux|core)/(?P<source>.+?)/(?P<name>(?:turn|tool|outcome|judge|env)/.+)/mean@\d+$")

Series = dict[int, float]


@dataclass(frozen=True)
class RunMetrics:
    """The scalars of one run.

    Attributes:
        train: Name -> step -> value, as logged in each training step.
        validation: Name (``tool/used``, ``outcome/em``, …) -> step -> mean over the validation samples,
            over all data sources. Step 0 is the policy before training.
    """

    train: Mapping[str, Series] = field(default_factory=dict)
    validation: Mapping[str, Series] = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        """The last logged training step; 0 if none."""
        return max(self.train.get("timing_s/step", {}), default=0)

    def validated(self, name: str) -> tuple[float, float] | None:
        """Return a validation metric before and after training; None without one."""
        series = self.validation.get(name)
        return (series[min(series)], series[max(series)]) if series else None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form; JSON turns steps into strings."""
        return {"train": self.train, "validation": self.validation}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunMetrics:
        """Invert :meth:`to_dict`, even after a round trip through JSON."""
        return cls(train=_series_by_name(data["train"]), validation=_series_by_name(data["validation"]))


def collect_metrics(rows: Iterable[tuple[int, Mapping[str, Any]]]) -> RunMetrics:
    """Sort logged rows ``(step, name -> value)`` into series; if a step has two rows, the later one counts."""
    train: dict[str, Series] = defaultdict(dict)
    validation: dict[str, Series] = defaultdict(dict)
    for step, data in rows:
        for name, values in validation_values(data).items():
            validation[name][step] = fmean(values)
        for name, value in data.items():
            if not name.startswith("val-") and isinstance(value, (int, float)):
                train[name][step] = float(value)
    return RunMetrics(train=dict(train), validation=dict(validation))


def validation_values(data: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return our validation metrics in one logged row: name -> one value per data source."""
    found: dict[str, list[float]] = defaultdict(list)
    for key, value in data.items():
        if (match := _VALIDATION.match(key)) and isinstance(value, (int, float)):
            found[match["name"]].append(float(value))
    return dict(found)


def parse_rows(text: str) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the rows of a metrics file, without a last line that is still being written."""
    complete, _, _ = text.rpartition("\n")
    rows = [json.loads(line) for line in complete.splitlines() if line.strip()]
    return [(int(row["step"]), row["data"]) for row in rows]


def read_metrics(paths: Sequence[Path]) -> RunMetrics:
    """Return the metrics of a run from several files, oldest first, as a resumed run writes them."""
    rows = [row for path in paths for row in parse_rows(path.read_text(encoding="utf-8"))]
    return collect_metrics(rows)


def _series_by_name(data: Mapping[str, Mapping[Any, float]]) -> dict[str, Series]:
    return {name: {int(step): value for step, value in series.items()} for name, series in data.items()}
