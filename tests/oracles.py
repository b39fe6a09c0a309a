"""Estimators once more, as slow loops written from the papers' definitions, to test the fast ones against.

Nothing here uses the package: rows are Python lists, statistics are sums and roots written out.
"""

from __future__ import annotations

import math


def runs_of_ones(mask: list[int]) -> list[list[int]]:
    """Token positions of each turn of one row."""
    turns: list[list[int]] = []
    previous = 0
    for position, value in enumerate(mask):
        if value == 1 and previous == 0:
            turns.append([])
        if value == 1:
            turns[-1].append(position)
        previous = value
    return turns


def norm(values: list[float], scale: str, epsilon: float) -> list[float]:
    """(x - mean) / (std_{N-1} + epsilon); one value: mean 0, std 1."""
    if len(values) == 1:
        mean, std = 0.0, 1.0
    else:
        mean = sum(values) / len(values)
        std = math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1))
    return [(x - mean) / ((std + epsilon) if scale == "std" else 1.0) for x in values]


def mt_grpo(
    rewards: list[list[float]],
    masks: list[list[int]],
    groups: list,
    *,
    c: float = 1.0,
    alpha: float = 1.0,
    missing_turn: str = "zero",
    scale: str = "std",
    epsilon: float = 1e-6,
) -> list[list[float]]:
    """K-turn MT-GRPO, turn by turn and row by row (issue text, part 1: "`mt_grpo`, exactly")."""
    rows = range(len(masks))
    turns = [runs_of_ones(mask) for mask in masks]
    paid = [[sum(rewards[i][t] for t in turn) for turn in turns[i]] for i in rows]
    last_turn = [len(turn) for turn in turns]  # K_i, turns counted from 1
    advantages = [[0.0] * len(mask) for mask in masks]
    for group in set(groups):
        members = [i for i in rows if groups[i] == group and last_turn[i] > 0]
        if not members:
            continue
        outcome = dict(zip(members, norm([paid[i][-1] for i in members], scale, epsilon), strict=True))
        intermediate: dict[tuple[int, int], float] = {}
        for k in range(1, max(last_turn[i] for i in members) + 1):
            if missing_turn == "zero":
                taking_part = [i for i in members if last_turn[i] >= k]
            else:
                taking_part = [i for i in members if last_turn[i] > k]
            if taking_part:
                values = [paid[i][k - 1] if k < last_turn[i] else 0.0 for i in taking_part]
                for i, value in zip(taking_part, norm(values, scale, epsilon), strict=True):
                    intermediate[i, k] = value
        for i in members:
            for k in range(1, last_turn[i] + 1):
                turn_term = sum(alpha ** (m - k) * intermediate.get((i, m), 0.0) for m in range(k, last_turn[i] + 1))
                value = c * turn_term + alpha ** (last_turn[i] - k) * outcome[i]
                for t in turns[i][k - 1]:
                    advantages[i][t] = value
    return advantages
