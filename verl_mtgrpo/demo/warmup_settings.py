"""Length and pace of the demo policy's warm-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from verl_mtgrpo.demo.stored import stored_settings


@dataclass(frozen=True)
class WarmupSettings:
    """Length and pace of the warm-up; the defaults of ``make demo`` take about four minutes on two idle cores.

    Small batches: how soon the policy learns to read depends on the number of steps, not samples.

    Attributes:
        drill_steps: Steps that teach what the policy must be able to do.
        habit_steps: Steps that teach how it behaves at the start of reinforcement learning.
        batch_size: Demonstrations per step.
        learning_rate: The highest learning rate.
        warmup_steps: Steps until it is reached.
        chain_drills: Share of the drills that look up several facts in a row.
    """

    drill_steps: int = 800
    habit_steps: int = 300
    batch_size: int = 16
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    chain_drills: float = 0.15

    @property
    def steps(self) -> int:
        """The number of all optimiser steps."""
        return self.drill_steps + self.habit_steps

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that stored assets are compared by."""
        return stored_settings(self, later=("chain_drills",))
