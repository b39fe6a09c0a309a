"""Work out what an estimator says on average, exactly: over every group that can be sampled, not over samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.lab.learn.learner import gradient
from verl_mtgrpo.lab.learn.methods import Method
from verl_mtgrpo.lab.learn.rollouts import Walks
from verl_mtgrpo.lab.learn.task import Task

_MOST_GROUPS = 200_000
_ROWS = 1 << 18  # rollouts at a time


@dataclass(frozen=True)
class Expected:
    """Expectations over all groups of one size, for one policy.

    Attributes:
        gradient_P: The mean gradient of a group, ``(P,)`` float64.
        yes: The mean advantage of the first token where it says yes; NaN if it never does.
        no: The same where it says no.
    """

    gradient_P: Tensor
    yes: float
    no: float

    @property
    def gain(self) -> float:
        """Return how much larger the first token's advantage is on average after yes than after no."""
        return self.yes - self.no


@dataclass(frozen=True)
class Paths:
    """Every rollout that is possible, one row each.

    Attributes:
        walks: The rollouts.
        probability_B: How likely each is, given its first node.
        share_B: The share of questions that begin at its first node.
    """

    walks: Walks
    probability_B: Tensor
    share_B: Tensor


def paths(task: Task, logits_P: Tensor) -> Paths:
    """Enumerate the rollouts of a task and their probabilities."""
    tables = task.tables
    yes_N = task.yes(logits_P[None])[0].tolist()
    rows: list[tuple[list[int], list[bool], list[float], float, float]] = []

    def go_on(node: int, nodes: list[int], answers: list[bool], paid: list[float], likely: float, share: float) -> None:
        if node < 0:
            rows.append((nodes, answers, paid, likely, share))
            return
        for answer in (1, 0):
            decided = yes_N[node] if answer else 1 - yes_N[node]
            for w, chance in enumerate(tables.probability[node, answer].tolist()):
                if decided * chance > 0:
                    go_on(
                        int(tables.next[node, answer, w]),
                        [*nodes, node],
                        [*answers, bool(answer)],
                        [*paid, float(tables.reward[node, answer, w])],
                        likely * decided * chance,
                        share,
                    )

    for start, share in enumerate(tables.start_N.tolist()):
        if share > 0:
            go_on(start, [], [], [], 1.0, share)
    node_BD = torch.full((len(rows), tables.depth), -1)
    yes_BD = torch.zeros(len(rows), tables.depth, dtype=torch.bool)
    reward_BD = torch.zeros(len(rows), tables.depth)
    for n, (nodes, answers, paid, _, _) in enumerate(rows):
        node_BD[n, : len(nodes)] = torch.tensor(nodes)
        yes_BD[n, : len(nodes)] = torch.tensor(answers)
        reward_BD[n, : len(nodes)] = torch.tensor(paid)
    turn_BD = tables.turn_N[node_BD.clamp(min=0)].where(node_BD >= 0, -1)
    walks = Walks(node_BD, yes_BD, reward_BD, torch.arange(len(rows)), turn_BD)
    probability, share = (torch.tensor([row[c] for row in rows], dtype=torch.float64) for c in (3, 4))
    return Paths(walks, probability, share)


def expected(task: Task, method: Method, *, size: int, logits_P: Tensor | None = None) -> Expected:
    """Return what the method says on average about groups of ``size`` rollouts, without sampling.

    Every multiset of rollouts that a group may consist of is handed to the estimator and weighted with its multinomial
    probability. For an estimator with statistics of the batch, each group is a batch of its own.

    Raises:
        ConfigError: there are more than 200,000 such groups.
    """
    logits = task.start_logits if logits_P is None else logits_P
    all_paths = paths(task, logits)
    first = all_paths.walks.node_BD[:, 0]
    total = torch.zeros_like(logits)
    sums = torch.zeros(2, 2, dtype=torch.float64)  # [no, yes] x [Σ weight · advantage, Σ weight]
    for start in first.unique():
        kinds = (first == start).nonzero().flatten()
        members, weight = _groups(task, kinds, all_paths.probability_B, size)
        weight = weight * all_paths.share_B[kinds[0]]
        for at in range(0, len(members), max(1, _ROWS // size)):
            rows, likely = members[at : at + _ROWS // size].flatten(), weight[at : at + _ROWS // size]
            walks = _taken(all_paths.walks, rows, size)
            advantage_BD = _advantages(task, method, logits, walks, size)
            likely_B = likely.repeat_interleave(size)
            # gradient() takes a mean over rows; the weight of a group stands in the advantages.
            weighted = advantage_BD.double() * likely_B[:, None] * (len(rows) / size)
            total += gradient(task, logits[None], walks, weighted)[0]
            for answer in (0, 1):
                said = walks.yes_BD[:, 0] == bool(answer)
                sums[answer, 0] += (likely_B * advantage_BD[:, 0].double())[said].sum()
                sums[answer, 1] += likely_B[said].sum()
    no, yes = (float(paid / count) if count > 0 else math.nan for paid, count in sums)
    return Expected(total, yes, no)


def differing(task: Task, method: Method, *, size: int, logits_P: Tensor | None = None) -> float:
    """Return the share of groups in which the rollouts' total pay differs: only these can teach anything.

    Exact, for every size. (An estimator that is paid by turns may also learn from a group with equal totals.)
    """
    all_paths = paths(task, task.start_logits if logits_P is None else logits_P)
    total_B = all_paths.walks.paid_BD(method.pay).sum(dim=1)
    first = all_paths.walks.node_BD[:, 0]
    same = 0.0
    for start in first.unique():
        here = first == start
        kind = total_B[here].mul(1e6).round().unique(return_inverse=True)[1]
        chance = torch.zeros(int(kind.max()) + 1, dtype=torch.float64).index_add_(
            0, kind, all_paths.probability_B[here]
        )
        same += float(all_paths.share_B[here][0] * chance.pow(size).sum())
    return 1 - same


def _groups(task: Task, kinds: Tensor, probability_B: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return every multiset of ``size`` of the rollouts ``kinds``, ``(groups, size)``, and its probability."""
    count = math.comb(len(kinds) + size - 1, size)
    if count > _MOST_GROUPS:
        raise ConfigError(
            f"task {task.name!r} has {count:,} different groups of {size}",
            expected=f"at most {_MOST_GROUPS:,}",
            fix="choose a smaller group or task",
        )
    chosen = torch.tensor(list(combinations_with_replacement(range(len(kinds)), size)))
    times = torch.nn.functional.one_hot(chosen, len(kinds)).sum(dim=1).double()
    orders = torch.lgamma(torch.tensor(size + 1.0, dtype=torch.float64)) - torch.lgamma(times + 1).sum(dim=1)
    return kinds[chosen], (orders + times @ probability_B[kinds].log()).exp()


def _advantages(task: Task, method: Method, logits: Tensor, walks: Walks, size: int) -> Tensor:
    """Ask for all groups at once, unless the estimator looks beyond the group."""
    if method.compares_rollouts:
        return method.advantages(task, logits[None], walks, walks.mask, walks.group_B)
    parts = []
    for at in range(0, len(walks.node_BD), size):
        one = _taken(walks, torch.arange(at, at + size), size)
        parts.append(method.advantages(task, logits[None], one, one.mask, one.group_B))
    return torch.cat(parts)


def _taken(walks: Walks, rows: Tensor, size: int) -> Walks:
    """Return these rows as groups of ``size``."""
    return replace(walks.at(rows), group_B=torch.arange(len(rows)) // size)
