"""Keep rollouts of earlier steps, for a critic that learns from them again.

Pure: tensors in, tensors out. :mod:`.replay` moves rollouts between this memory and verl's queue.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verl_mtgrpo.errors import CreditInputError

_LAYOUT = 1


@dataclass(frozen=True)
class Kept:
    """One rollout: what the critic reads, and what its turns were paid. About 13 bytes per token.

    Attributes:
        step: The training step that it was sampled for.
        prompt: Token ids of the prompt, int32.
        response: Token ids of the response, int32.
        mask: 1 at the response tokens that the model generated, bool.
        rewards: Rewards per response token, float32.
        positions: Position ids of prompt and response, int32; the last axis is that of tokens.
    """

    step: int
    prompt: Tensor
    response: Tensor
    mask: Tensor
    rewards: Tensor
    positions: Tensor


class Memory:
    """Holds the newest rollouts, oldest first.

    Args:
        capacity: Most rollouts that are kept; the oldest are forgotten first.
        max_age: Rollouts of more steps ago are forgotten; None: age does not matter.
    """

    def __init__(self, capacity: int, max_age: int | None = None):
        self.capacity, self.max_age = capacity, max_age
        self.rows: list[Kept] = []

    def __len__(self) -> int:
        """Return how many rollouts are kept."""
        return len(self.rows)

    def add(self, rows: Iterable[Kept]) -> None:
        """Keep these rollouts too, and forget the oldest beyond the capacity."""
        self.rows += rows
        del self.rows[: max(len(self.rows) - self.capacity, 0)]

    def forget(self, step: int) -> None:
        """Forget what is too old in this step."""
        if self.max_age is not None:
            self.rows = [row for row in self.rows if step - row.step <= self.max_age]

    def draw(self, count: int, seed: str) -> list[Kept]:
        """Return ``count`` different rollouts, each equally likely; the same for the same seed and contents."""
        return random.Random(seed).sample(self.rows, count)

    def state(self) -> dict[str, Any]:
        """Return everything as a few tensors, for ``torch.save``."""
        columns: dict[str, Any] = {
            name: _joined([getattr(row, name) for row in self.rows])
            for name in ("prompt", "response", "mask", "rewards", "positions")
        }
        lengths = {name: [len(getattr(row, name)) for row in self.rows] for name in ("prompt", "response")}
        return {"layout": _LAYOUT, "step": [row.step for row in self.rows], "lengths": lengths, **columns}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` returned; the oldest are forgotten if the capacity is smaller now.

        Raises:
            CreditInputError: it was written by another version of this package.
        """
        if state.get("layout") != _LAYOUT:
            raise CreditInputError(
                f"the critic's memory has layout {state.get('layout')}",
                expected=f"layout {_LAYOUT}",
                fix="remove the file to begin with an empty memory",
            )
        prompts, responses = state["lengths"]["prompt"], state["lengths"]["response"]
        both = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        parts = {
            "prompt": _split(state["prompt"], prompts),
            "positions": _split(state["positions"], both),
            **{name: _split(state[name], responses) for name in ("response", "mask", "rewards")},
        }
        self.rows = []
        self.add(
            Kept(step, **{name: column[row] for name, column in parts.items()})
            for row, step in enumerate(state["step"])
        )


def _joined(rows: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(rows), dim=-1) if rows else torch.zeros(0)


def _split(column: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    return [part.clone() for part in column.split(list(lengths), dim=-1)] if lengths else []
