"""Show in one line how far a training run is: updated live on a terminal, one line per step elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from verl_mtgrpo.report.metrics import collect_metrics, parse_rows, validation_values

_SHOWN = (("tool/used", "tool use"), ("tool/hit", "hit"), ("outcome/em", "exact match"))
_SHOWN_IN_ENVIRONMENT = (("env/outcome", "outcome"), ("env/return", "step rewards"))
_BAR_WIDTH = 20
# Nothing is logged while verl starts; without a terminal, print a sign of life now and then.
_PLAIN_HEARTBEAT_S = 30.0


class MetricsTail:
    """Reads the rows that verl's file logger has added since the last read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read_new(self) -> list[tuple[int, Mapping[str, Any]]]:
        """Return new rows ``(step, name -> value)``; none while the file does not exist yet."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        # A row that is still being written is read next time.
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return parse_rows(complete.decode("utf-8"))


class ProgressLine:
    """Follows the metrics file of one run and shows its progress.

    Args:
        metrics: The file that verl's file logger writes.
        steps: Training steps of the whole run.
        label: Text before the line.
        stream: Where to show it; a terminal gets one line that is redrawn.
    """

    def __init__(self, metrics: Path, *, steps: int, label: str, stream: TextIO | None = None) -> None:
        self._tail = MetricsTail(metrics)
        self._steps = steps
        self._label = label
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._started = time.monotonic()
        self._last_said = self._started
        self._state = "starting verl"
        self._drawn = False

    def tick(self) -> None:
        """Read new rows and show them; call this as often as you like."""
        rows = self._tail.read_new()
        for step, data in rows:
            self._state = describe_row(step, data, self._steps)
            if not self._live:
                self._say(self._state)
        if self._live:
            self._redraw()
        elif not rows and self._state == "starting verl" and self._quiet_for() > _PLAIN_HEARTBEAT_S:
            self._say(f"{self._state} … {self._elapsed()}")

    def close(self) -> None:
        """Leave the last state on the screen."""
        self.tick()
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()

    def _redraw(self) -> None:
        self._stream.write(f"\r\x1b[2K{self._label}  {self._state}  [{self._elapsed()}]")
        self._stream.flush()
        self._drawn = True

    def _say(self, text: str) -> None:
        self._last_said = time.monotonic()
        print(f"{self._label}  {text}", file=self._stream, flush=True)

    def _quiet_for(self) -> float:
        return time.monotonic() - self._last_said

    def _elapsed(self) -> str:
        return format_duration(time.monotonic() - self._started)


def describe_row(step: int, data: Mapping[str, Any], steps: int) -> str:
    """Describe one logged row: bar and training values, or validation values if there is nothing else."""
    train = {name: series[step] for name, series in collect_metrics([(step, data)]).train.items()}
    if "timing_s/step" not in train:
        values = {name: sum(found) / len(found) for name, found in validation_values(data).items()}
        return f"validation at step {step}: {_values(values)}"
    done = round(_BAR_WIDTH * step / max(steps, 1))
    bar = "█" * done + "░" * (_BAR_WIDTH - done)
    return f"{bar} step {step}/{steps}  {_values(train)}  {train['timing_s/step']:.1f} s/step"


def format_duration(seconds: float) -> str:
    """Return seconds as minutes and seconds: ``75`` -> ``1:15``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _values(values: Mapping[str, float]) -> str:
    shown = _SHOWN_IN_ENVIRONMENT if "env/return" in values else _SHOWN
    return "  ".join(f"{label} {values[name]:.2f}" for name, label in shown if name in values)
