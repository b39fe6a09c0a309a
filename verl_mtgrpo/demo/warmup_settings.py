"""Length and pace of the demo policy's warm-up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupSettings:
    """Length and pace of the warm-up; the defaults of ``make demo`` take about three minutes on two idle cores.

    Small batches: how soon the policy learns to read depends on the number of steps, not samples.
    """

    drill_steps: int = 800
    habit_steps: int = 150
    batch_size: int = 16
    learning_rate: float = 2e-3
    warmup_steps: int = 50

    @property
    def steps(self) -> int:
        """The number of all optimiser steps."""
        return self.drill_steps + self.habit_steps
