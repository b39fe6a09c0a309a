"""Draw up the map: which method learns, stalls or collapses over two properties of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from verl_mtgrpo.lab.learn.exact import differing, expected
from verl_mtgrpo.lab.learn.learner import Budget, learn
from verl_mtgrpo.lab.learn.methods import Method
from verl_mtgrpo.lab.learn.task import Task
from verl_mtgrpo.lab.learn.tasks import make
from verl_mtgrpo.lab.learn.verdicts import LAST, first_step, most, verdicts


@dataclass(frozen=True)
class Axis:
    """One axis of a map: a setting of the task, or ``size``, the rollouts of a group.

    Attributes:
        name: The setting.
        label: The name for people.
        values: Its values.
    """

    name: str
    label: str
    values: Sequence[float]


@dataclass(frozen=True)
class Map:
    """A task and what varies in it.

    Attributes:
        task: A name in :data:`~.tasks.TASKS`.
        across: What varies from left to right.
        up: What varies from bottom to top.
        settings: The task's other settings.
        reason: What is worked out exactly in each cell: ``gain``, how much larger the first token's advantage is on
            average after yes (search) than after no; ``differing``, the share of groups that can teach anything.
    """

    task: str
    across: Axis
    up: Axis
    settings: Mapping[str, object]
    reason: str


MAPS: Mapping[str, Map] = {
    "search": Map(
        "search",
        across=Axis(
            "read", "r: how often a found passage is read rightly at the start", (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
        ),
        up=Axis("heart", "P: share of questions known by heart", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
        settings={"broken": 0.2, "good": 0.35, "use": 0.15},
        reason="gain",
    ),
    "chain": Map(
        "chain",
        across=Axis("size", "G: rollouts per question, 128 per step", (2, 4, 8, 16, 32)),
        up=Axis("hops", "K: searches that the answer needs", (1, 2, 3, 4, 6, 8)),
        settings={"good": 0.3},
        reason="differing",
    ),
}
"""The maps by the name of their task."""

QUICK = 2  # every so manieth value of an axis with --quick


@dataclass(frozen=True)
class Cell:
    """One method at one point of a map.

    Attributes:
        method: The method's name.
        across: The value of the map's axis across.
        up: The value of the other axis.
        verdict: The verdict of most seeds.
        agree: How many seeds have it.
        seeds: The number of seeds.
        goal: Mean of the goal at the end.
        watch: Mean frequency of the watched behaviour at the end, None without one.
        first: Median first step at which half of the way was made, None if fewer than half of the seeds make it.
        reason: The map's :attr:`Map.reason`.
    """

    method: str
    across: float
    up: float
    verdict: str
    agree: int
    seeds: int
    goal: float
    watch: float | None
    first: int | None
    reason: float


def draw_up(
    plan: Map,
    methods: Sequence[Method],
    budget: Budget,
    *,
    seeds: Sequence[int],
    settings: Mapping[str, object],
    on_cell: Callable[[str], object] = lambda _: None,
) -> list[Cell]:
    """Train every method at every point of the map; ``on_cell`` is called with a description before each.

    All points have as many rollouts per step: a larger group means fewer questions.
    """
    cells: list[Cell] = []
    for up in plan.up.values:
        for across in plan.across.values:
            task, at = _point(plan, budget, across, up, settings)
            for method in methods:
                on_cell(f"{method.name}, {plan.up.name} {up:g}, {plan.across.name} {across:g}")
                cells.append(_cell(plan, task, method, at, seeds, across, up))
    return cells


def thinned(plan: Map) -> Map:
    """Return the map with every other value of its axes."""
    across, up = (replace(axis, values=axis.values[::QUICK]) for axis in (plan.across, plan.up))
    return replace(plan, across=across, up=up)


def _point(plan: Map, budget: Budget, across: float, up: float, settings: Mapping[str, object]) -> tuple[Task, Budget]:
    given = {**plan.settings, **settings, plan.across.name: across, plan.up.name: up}
    size = given.pop("size", budget.size)
    assert isinstance(size, int)
    at = replace(budget, size=size, groups=max(1, budget.groups * budget.size // size))
    return make(plan.task, **given), at


def _cell(
    plan: Map, task: Task, method: Method, budget: Budget, seeds: Sequence[int], across: float, up: float
) -> Cell:
    curves = learn(task, method, budget, seeds=seeds)
    verdict, agree = most(verdicts(task, curves))
    steps = sorted(step for step in first_step(task, curves) if step is not None)
    reason = (
        expected(task, method, size=budget.size).gain
        if plan.reason == "gain"
        else differing(task, method, size=budget.size)
    )
    return Cell(
        method=method.name,
        across=across,
        up=up,
        verdict=verdict,
        agree=agree,
        seeds=len(seeds),
        goal=float(curves.goal[:, -LAST:].mean()),
        watch=float(curves.marks[task.watch][:, -LAST:].mean()) if task.watch else None,
        first=steps[(len(seeds) - 1) // 2] if len(steps) > (len(seeds) - 1) // 2 else None,
        reason=reason,
    )
