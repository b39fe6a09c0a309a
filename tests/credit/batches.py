"""Random batches for the estimator tests: variable turn counts, empty rows, groups of any size."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.credit.registry import ROW_NAMES


@dataclass
class Batch:
    rewards: Tensor
    mask: Tensor
    index: list[str]


ON_ROWS = [name for name, record in ESTIMATORS.items() if record.takes_rollouts]
"""Estimators for which every row is a rollout of its own; the others: test_forest.py, test_roles.py."""


def fields_of(name: str, rewards: Tensor, made: Callable[[Tensor], Tensor] = torch.zeros_like) -> dict[str, Any]:
    """What an estimator asks for: numbers of tokens as ``made`` makes them, and names that say nothing."""
    return {field: [None] * len(rewards) if field in ROW_NAMES else made(rewards) for field in ESTIMATORS[name].fields}


def estimate(name: str, token_level_rewards: Tensor, response_mask: Tensor, index, **settings) -> tuple[Tensor, Tensor]:
    """Any estimator on the same three inputs: a critic says 0 (others: test_critic.py), no two rows share a turn."""
    fields = fields_of(name, token_level_rewards.float())
    return ESTIMATORS[name](token_level_rewards, response_mask, index, **fields, **settings)


def random_batch(seed: int, *, max_rows: int = 12, max_length: int = 24) -> Batch:
    """Rewards lie on random generated tokens, a third of the turns earn exactly 0, some rows are empty."""
    rng = random.Random(seed)
    rows, length = rng.randint(1, max_rows), rng.randint(1, max_length)
    masks, rewards = [], []
    for _ in range(rows):
        mask, value = [], rng.random() < 0.8
        while len(mask) < length:
            mask += [int(value)] * rng.randint(1, 5)
            value = not value
        mask = mask[:length] if rng.random() < 0.9 else [0] * length
        masks.append(mask)
        rewards.append([m * rng.choice([0.0, 0.0, rng.uniform(-2, 2)]) for m in mask])
    index = [f"prompt-{rng.randint(0, max(1, rows // 3))}" for _ in range(rows)]
    return Batch(torch.tensor(rewards), torch.tensor(masks), index)


def multi_turn_batch(seed: int, rows: int = 24, groups: int = 4) -> Batch:
    """Rows of one to four turns of unequal length with observations between, rewards on turn ends."""
    rng = random.Random(seed)
    masks, rewards = [], []
    for _ in range(rows):
        mask: list[int] = []
        reward: list[float] = []
        for turn in range(rng.randint(1, 4)):
            gap, run = (rng.randint(1, 3) if turn else 0), rng.randint(1, 4)
            mask += [0] * gap + [1] * run
            reward += [0.0] * (gap + run - 1) + [rng.uniform(-1, 1)]
        masks.append(mask)
        rewards.append(reward)
    width = max(map(len, masks)) + 1
    pad = [width - len(mask) for mask in masks]
    return Batch(
        torch.tensor([reward + [0.0] * p for reward, p in zip(rewards, pad, strict=True)]),
        torch.tensor([mask + [0] * p for mask, p in zip(masks, pad, strict=True)]),
        [f"prompt-{row % groups}" for row in range(rows)],
    )


def insert_columns(values: Tensor, at: list[int], fill: float = 0) -> Tensor:
    """Insert a column of ``fill`` before each position of ``at`` (ascending), the same for every row."""
    pieces, start = [], 0
    for position in at:
        pieces += [values[:, start:position], torch.full((len(values), 1), fill, dtype=values.dtype)]
        start = position
    return torch.cat([*pieces, values[:, start:]], dim=1)


def on_tensors(fields, change):
    """Return the fields, with ``change`` applied to those that are tensors."""
    return {field: change(one) if isinstance(one, torch.Tensor) else one for field, one in fields.items()}
