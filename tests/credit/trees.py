"""Random forests for the estimator tests: any shape, rows without a path, dropped rows, turns of any length."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.oracles_tree import Tree


@dataclass
class TreeBatch:
    rewards: Tensor
    mask: Tensor
    index: list[str]
    paths: list[str | None]
    values: Tensor
    log_probs: Tensor

    def rows(self, order: list[int]) -> TreeBatch:
        tensors = [x[order] for x in (self.rewards, self.mask, self.values, self.log_probs)]
        index, paths = [self.index[i] for i in order], [self.paths[i] for i in order]
        return TreeBatch(*tensors[:2], index, paths, *tensors[2:])

    def oracle(self) -> Tree:
        rewards = (self.rewards * self.mask).double().tolist()
        return Tree(rewards, self.mask.tolist(), self.index, self.paths)


@dataclass
class _Row:
    mask: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def copy(self) -> _Row:
        return _Row(*(list(part) for part in (self.mask, self.rewards, self.values, self.log_probs, self.ids)))


def random_forest(seed: int, *, prompts: int = 4, chains: bool = False, turns: int = 4, stop: float = 0.3) -> TreeBatch:
    """Trees of up to ``turns`` turns with one to three first turns; ``chains``: nothing branches later."""
    rng = random.Random(seed)
    rows: list[tuple[str, _Row]] = []

    def grow(prompt: str, row: _Row, name: str, value: float) -> None:
        """Write one turn behind ``row``; all turns of a state have the same value at their first token."""
        length = rng.randint(1, 3)
        row.mask += [1] * length
        row.ids.append(name)
        row.values += [value, *(rng.gauss(0, 1) for _ in range(length - 1))]
        row.log_probs += [-rng.uniform(0.1, 2.0) for _ in range(length)]
        # Multiples of 1/64: their sums are exact, so that equal totals stay equal whatever is added first.
        row.rewards += [0.0] * (length - 1) + [rng.choice([0.0, 1.0, rng.randint(-64, 128) / 64])]
        if len(row.ids) == turns or rng.random() < stop:
            rows.append((prompt, row))
            return
        gap = rng.randint(1, 2)  # the tool's answer
        for part, fill in ((row.mask, 0), (row.rewards, 0.0), (row.values, 9.0), (row.log_probs, 0.0)):
            part += [fill] * gap
        later = rng.gauss(0, 1)
        for n in range(1 if chains else rng.choice([1, 1, 2, 3])):
            grow(prompt, row.copy(), f"{name}.{n}", later)

    for p in range(prompts):
        first = rng.gauss(0, 1)
        for n in range(rng.randint(1, 3)):
            grow(f"prompt-{p}", _Row(), str(n), first)
    rng.shuffle(rows)
    width = max(len(row.mask) for _, row in rows) + 1

    def table(name: str) -> Tensor:
        return torch.tensor([getattr(row, name) + [0] * (width - len(row.mask)) for _, row in rows])

    return TreeBatch(
        table("rewards").float(),
        table("mask"),
        [prompt for prompt, _ in rows],
        ["/".join(row.ids) for _, row in rows],
        table("values").float(),
        table("log_probs").float(),
    )
