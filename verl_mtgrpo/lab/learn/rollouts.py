"""Sample rollouts of many learners at once, and lay them out as verl would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verl_mtgrpo.lab.learn.task import Task

PAY = ("turns", "merged", "outcome")
"""What is paid, as ``reward.turn.pay``: each turn its own reward; everything at the last turn; only the outcome."""


@dataclass(frozen=True)
class Walks:
    """Ways through a task's graph, one row each, D tokens at most.

    Attributes:
        node_BD: The node of each token, -1 behind the end.
        yes_BD: bool, the answer.
        reward_BD: What each token earns, float32.
        group_B: Group labels.
        turn_BD: The turn of each token, counted from 0, -1 behind the end.
    """

    node_BD: Tensor
    yes_BD: Tensor
    reward_BD: Tensor
    group_B: Tensor
    turn_BD: Tensor

    def at(self, rows: Tensor | slice) -> Walks:
        """Return these rows."""
        return Walks(**{name: tensor[rows] for name, tensor in vars(self).items()})

    @property
    def position_BD(self) -> Tensor:
        """Return the place of each token in the response: one observation token stands between turns."""
        return torch.arange(self.node_BD.shape[1]) + self.turn_BD.clamp(min=0)

    def response(self, values_BD: Tensor) -> Tensor:
        """Lay out one value per token as a response, ``(B, T)``, 0 elsewhere."""
        alive_BD = self.node_BD >= 0
        width = self.node_BD.shape[1] + int(self.turn_BD.max())
        out = values_BD.new_zeros(len(values_BD), width)
        return out.scatter_add_(1, self.position_BD.clamp(max=width - 1), values_BD.masked_fill(~alive_BD, 0))

    @property
    def mask(self) -> Tensor:
        """Return the response mask, ``(B, T)`` int64."""
        return self.response((self.node_BD >= 0).long())

    def paid_BD(self, pay: str) -> Tensor:
        """Return what each token is paid, as :func:`verl_mtgrpo.rewards.pay` pays turns."""
        if pay == "turns":
            return self.reward_BD
        alive_BD = self.node_BD >= 0
        last_B1 = alive_BD.sum(dim=1, keepdim=True) - 1
        in_last_BD = self.turn_BD == self.turn_BD.gather(1, last_B1)
        kept_BD = alive_BD if pay == "merged" else alive_BD & in_last_BD
        total_B1 = (self.reward_BD * kept_BD).sum(dim=1, keepdim=True)
        return torch.zeros_like(self.reward_BD).scatter(1, last_B1, total_B1)


def sample(task: Task, logits_LP: Tensor, draws: Sequence[torch.Generator], *, groups: int, size: int) -> Walks:
    """Sample ``groups`` groups of ``size`` rollouts for each of L learners, learner after learner.

    Learner l takes its random numbers from ``draws[l]`` alone, and always the same number of them, so that what one
    learner meets depends neither on the others nor on what it has learned.
    """
    tables, rows = task.tables, groups * size
    drawn = torch.stack([torch.rand(rows, tables.depth + 1, 2, generator=draw, dtype=torch.float64) for draw in draws])
    question_LG = drawn[:, ::size, tables.depth, 0]
    start_LG = torch.searchsorted(tables.start_N.cumsum(dim=0), question_LG.contiguous(), right=True)
    start_LG = start_LG.clamp(max=int(tables.start_N.nonzero().max()))
    drawn_BD2 = drawn.flatten(0, 1)
    return walk(task, task.yes(logits_LP), drawn_BD2, start_LG.repeat_interleave(size, dim=1).flatten(), size)


def walk(task: Task, yes_LN: Tensor, drawn_BD2: Tensor, node_B: Tensor, size: int) -> Walks:
    """Follow the graph from ``node_B``; of the two random numbers of a token one decides and one is chance."""
    tables, rows = task.tables, len(node_B)
    until = tables.probability.cumsum(dim=2)  # (N, 2, W)
    learner_B = torch.arange(rows) // (rows // len(yes_LN))
    node_BD = torch.full((rows, tables.depth), -1)
    yes_BD = torch.zeros(rows, tables.depth, dtype=torch.bool)
    reward_BD = torch.zeros(rows, tables.depth)
    for d in range(tables.depth):
        alive_B = node_B >= 0
        node = node_B.clamp(min=0)
        yes = drawn_BD2[:, d, 0] < yes_LN[learner_B, node]
        answer = yes.long()
        way = (until[node, answer] <= drawn_BD2[:, d, 1, None]).sum(dim=1).clamp(max=until.shape[2] - 1)
        node_BD[:, d], yes_BD[:, d] = node_B, yes & alive_B
        reward_BD[:, d] = (tables.reward[node, answer, way] * alive_B).float()
        node_B = tables.next[node, answer, way].where(alive_B, -1)
    turn_BD = tables.turn_N[node_BD.clamp(min=0)].where(node_BD >= 0, -1)
    return Walks(node_BD, yes_BD, reward_BD, torch.arange(rows) // size, turn_BD)
