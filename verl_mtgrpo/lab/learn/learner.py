"""Let tiny policies learn: sample groups, ask an estimator for advantages, take a step, many seeds side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.lab.learn.methods import Method
from verl_mtgrpo.lab.learn.rollouts import Walks, sample
from verl_mtgrpo.lab.learn.task import Task

OPTIMIZERS = ("normalised", "adam", "plain")
"""How a gradient becomes a step. Only with ``plain`` does the scale of a method's advantages set its length."""


@dataclass(frozen=True)
class Budget:
    """How a policy is trained; the same for every method.

    Attributes:
        steps: The number of steps.
        groups: Questions per step.
        size: Rollouts per question.
        optimizer: ``normalised``: the gradient divided by its length, so that a step goes equally far for every
            method and skills keep the share that the gradient gives them; ``adam``: Adam with verl's β (0.9, 0.999),
            which here also makes steps of every single logit equally long, as it cannot in a network whose weights
            serve all skills; ``plain``: the gradient itself, so that the scale of advantages sets the length.
        length: The learning rate. With ``normalised`` it is the distance that the logits move in a step.
    """

    steps: int = 300
    groups: int = 16
    size: int = 8
    optimizer: str = "normalised"
    length: float = 0.1

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"--optimizer is {self.optimizer!r}", expected=f"one of {', '.join(OPTIMIZERS)}")
        for name in ("steps", "groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}", expected="1 or more")
        if self.size < 2:
            raise ConfigError(f"--size is {self.size}", expected="2 or more: a group of one has no baseline")
        if not 0 < self.length < float("inf"):
            raise ConfigError(f"--length is {self.length}", expected="more than 0")


@dataclass(frozen=True)
class Curves:
    """What one method learned: expected values of the policy at every step, worked out exactly.

    Attributes:
        method: The method.
        seeds: The seeds.
        marks: Mark -> ``(seeds, steps + 1)``, how often it happens per rollout; the first column is before training.
        goal: ``(seeds, steps + 1)``.
        logits: ``(seeds, steps + 1, P)``.
    """

    method: Method
    seeds: Sequence[int]
    marks: dict[str, Tensor]
    goal: Tensor
    logits: Tensor


def learn(
    task: Task,
    method: Method,
    budget: Budget,
    *,
    seeds: Sequence[int],
    on_step: Callable[[int], object] = lambda _: None,
) -> Curves:
    """Train one policy per seed from the same start and return their curves.

    A seed fixes its policy's random numbers, whatever the method and the other seeds are: methods meet the same
    questions and the same luck as long as their policies agree. ``on_step`` is called with 1 after each step.
    """
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    policies = _Policies(budget, task.start_logits.repeat(len(seeds), 1))
    logits = policies.logits  # changed in place by each step
    history = [logits.clone()]
    together: bool | None = None  # decided with the first rollouts
    for _ in range(budget.steps):
        walks = sample(task, logits, draws, groups=budget.groups, size=budget.size)
        if together is None:
            together = may_see_all(task, method, logits, walks)
        advantages = advantages_of(task, method, logits, walks, together=together)
        policies.step(gradient(task, logits, walks, advantages))
        history.append(logits.clone())
        on_step(1)
    return _curves(task, method, seeds, torch.stack(history, dim=1))


def gradient(task: Task, logits_LP: Tensor, walks: Walks, advantages_BD: Tensor) -> Tensor:
    """Return each learner's policy gradient, ``(L, P)``: the mean over its rollouts of Σ_t A_t ∇ log π(token t).

    ∇ log π of a yes-or-no decision with respect to its logit is 1[yes] - π(yes).
    """
    learners, logits = logits_LP.shape
    rows = len(walks.node_BD) // learners
    node_BD = walks.node_BD.clamp(min=0)
    logit_BD = task.tables.logit_N[node_BD]
    decided_BD = (walks.node_BD >= 0) & (logit_BD >= 0)
    learner_BD = (torch.arange(len(node_BD)) // rows)[:, None].expand_as(node_BD)
    cell = (learner_BD * logits + logit_BD)[decided_BD]
    score = walks.yes_BD[decided_BD].double() - logits_LP.sigmoid().flatten()[cell]
    out = torch.zeros(learners * logits, dtype=torch.float64)
    return out.index_add_(0, cell, advantages_BD[decided_BD].double() * score / rows).view(learners, logits)


class _Policies:
    """The logits of all policies, and how a gradient becomes a step uphill."""

    def __init__(self, budget: Budget, logits: Tensor) -> None:
        self.logits = logits
        self._normalises = budget.optimizer == "normalised"
        kind = torch.optim.Adam if budget.optimizer == "adam" else torch.optim.SGD
        self._optimizer = kind([self.logits], lr=budget.length, maximize=True)

    def step(self, gradient_LP: Tensor) -> None:
        if self._normalises:
            gradient_LP = gradient_LP / gradient_LP.norm(dim=1, keepdim=True).clamp(min=1e-12)
        self.logits.grad = gradient_LP
        self._optimizer.step()


def advantages_of(task: Task, method: Method, logits: Tensor, walks: Walks, *, together: bool) -> Tensor:
    """Ask the estimator once for all learners, or once for each if it looks beyond the group."""
    if together:
        return method.advantages(task, logits, walks, walks.mask, walks.group_B)
    rows = len(walks.node_BD) // len(logits)
    parts = []
    for n, own in enumerate(logits):
        at = slice(n * rows, (n + 1) * rows)
        part = walks.at(at)
        parts.append(method.advantages(task, own[None], part, part.mask, part.group_B))
    return torch.cat(parts)


def may_see_all(task: Task, method: Method, logits: Tensor, walks: Walks) -> bool:
    """Return True if the estimator gives the same for all learners at once as for each: it looks at groups only."""
    one, each = (advantages_of(task, method, logits, walks, together=together) for together in (True, False))
    return torch.allclose(one, each, atol=1e-5)


def _curves(task: Task, method: Method, seeds: Sequence[int], logits: Tensor) -> Curves:
    flat, shape = logits.flatten(0, 1), logits.shape[:2]
    marks = {mark: task.expected(flat, mark).view(shape) for mark in task.marks}
    goal = marks[task.goal] if task.goal else task.expected(flat, None).view(shape)
    return Curves(method, seeds, marks, goal, logits)
