"""Outputs of roles for tests of what MHGPO gives them: by hand, and at random."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from verl_mtgrpo.credit import mhgpo

KNOBS = [
    {"reduce": reduce, "combine": combine, "group_by": group_by, "baseline": baseline, "scale": scale, "turn_coef": c}
    for reduce, combine, group_by, (baseline, scale), c in product(
        ("mean", "max", "min"),
        ("sum", "apart"),
        ("role", "role_turn"),
        (("mean", "std"), ("others", "none"), ("mean", "none"), ("others", "std")),
        (1.0, 0.3),
    )
]


@dataclass
class Rows:
    rewards: Tensor
    mask: Tensor
    index: list[str]
    role: list[str | None]
    output_id: list[str | None]
    fed_by: list[str | None]

    def advantages(self, **knobs) -> Tensor:
        return mhgpo(self.rewards, self.mask, self.index, self.role, self.output_id, self.fed_by, **knobs)[0]

    def of_rows(self, order: list[int]) -> Rows:
        names = ([values[i] for i in order] for values in (self.index, self.role, self.output_id, self.fed_by))
        return Rows(self.rewards[order], self.mask[order], *names)


def outputs(*rows: tuple[str, str, str, list[float]], prompt: str = "q") -> Rows:
    """Rows of (role, id, fed by, a reward for each turn of two tokens)."""
    width = 3 * max(len(paid) for *_, paid in rows)
    rewards, mask = torch.zeros(2, len(rows), width)
    for i, (*_, paid) in enumerate(rows):
        for k, reward in enumerate(paid):
            mask[i, 3 * k : 3 * k + 2] = 1
            rewards[i, 3 * k + 1] = reward
    roles, ids, fed_by = ([row[n] for row in rows] for n in range(3))
    return Rows(rewards, mask.long(), [prompt] * len(rows), roles, ids, fed_by)


def random_outputs(seed: int, *, frozen: bool = True) -> Rows:
    """Random graphs of outputs: several prompts, roles, turns; outputs are fed by any that came before them."""
    rng = random.Random(seed)
    rows = []
    for prompt in range(rng.randint(1, 3)):
        ids: list[str] = []
        for number in range(rng.randint(1, 9)):
            sources = rng.sample(ids, rng.randint(0, min(3, len(ids))))
            ids.append(f"{number % 3}:{number}")
            turns = 0 if frozen and rng.random() < 0.15 else rng.randint(1, 3)
            rows.append((f"prompt-{prompt}", rng.choice(["one", "two", ""]), ids[-1], "/".join(sources), turns))
    rng.shuffle(rows)
    mask = torch.zeros(len(rows), 13, dtype=torch.long)
    rewards = torch.zeros(len(rows), 13)
    for i, (*_, turns) in enumerate(rows):
        at = 0
        for _ in range(turns):
            length = rng.randint(1, 3)
            mask[i, at : at + length] = 1
            rewards[i, at + length - 1] = rng.choice([0.0, 1.0, rng.randint(-64, 128) / 64])
            at += length + 1
        if not turns:
            rewards[i, rng.randrange(13)] = rng.choice([0.0, 0.5])
    index, roles, ids, fed_by = ([row[n] for row in rows] for n in range(4))
    return Rows(rewards, mask, index, [role or None if i % 2 else role for i, role in enumerate(roles)], ids, fed_by)


# ---- by hand. Two rewrites w1, w2; w1 was answered twice (F1 1.0 and 0.0), w2 once (.4).
SEARCH = outputs(
    ("rewriter", "w1", "", [0.0]),
    ("rewriter", "w2", "", [0.0]),
    ("answerer", "a1", "w1", [1.0]),
    ("answerer", "a2", "w1", [0.0]),
    ("answerer", "a3", "w2", [0.4]),
)
# Worth of the rewrites: (1 + 0)/2 = .5 and .4: mean .45, std .0707107. Answers: mean .4666667, std .5033223.
BY_HAND = [0.7071, -0.7071, 1.0596, -0.9272, -0.1325]
