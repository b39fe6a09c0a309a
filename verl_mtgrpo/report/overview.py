"""Compute numbers over all rollouts of a dump: by turn index, by step, and their distributions."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from verl_mtgrpo.report.catalog import Entry, Group

TURNS_DRAWN = 6
"""Turn indices in curves and histograms; a table has all of them."""
BINS = 31


@dataclass(frozen=True)
class TurnRow:
    """One turn index, over the rollouts that have such a turn and were not dropped.

    Attributes:
        turn: From 1.
        rollouts: The number of these rollouts.
        reward: Mean reward paid at this turn.
        advantage: Mean advantage.
        absolute: Mean absolute advantage: how strongly this turn is trained.
        std: Standard deviation (N - 1) of the advantage, 0 for one rollout.
        no_difference: Share of the groups with two or more such rollouts in which all were paid the same; None if
            there is no such group.
    """

    turn: int
    rollouts: int
    reward: float
    advantage: float
    absolute: float
    std: float
    no_difference: float | None


@dataclass(frozen=True)
class Curve:
    """A series by step: ``(step, value)``."""

    label: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Histogram:
    """Counts in equal bins from ``low`` to ``high``, one list for each turn index."""

    title: str
    low: float
    high: float
    counts: tuple[tuple[int, ...], ...]


def turn_rows(groups: Sequence[Group]) -> list[TurnRow]:
    """Return the table of turn indices."""
    by_turn: dict[int, list[Entry]] = defaultdict(list)
    for entry in _kept(groups):
        for turn in range(len(entry.rewards)):
            by_turn[turn].append(entry)
    return [_turn_row(turn, by_turn[turn], groups) for turn in sorted(by_turn)]


def _turn_row(turn: int, alive: Sequence[Entry], groups: Sequence[Group]) -> TurnRow:
    advantages = [entry.advantages[turn] for entry in alive]
    return TurnRow(
        turn=turn + 1,
        rollouts=len(alive),
        reward=statistics.fmean(entry.rewards[turn] for entry in alive),
        advantage=statistics.fmean(advantages),
        absolute=statistics.fmean(map(abs, advantages)),
        std=statistics.stdev(advantages) if len(advantages) > 1 else 0.0,
        no_difference=_no_difference(groups, turn),
    )


def curves(groups: Sequence[Group]) -> dict[str, list[Curve]]:
    """Return title -> series over the steps, without empty series."""
    by_step: dict[int, list[Group]] = defaultdict(list)
    for group in groups:
        by_step[group.step].append(group)
    steps = {step: by_step[step] for step in sorted(by_step)}
    most = max((len(entry.rewards) for entry in _kept(groups)), default=0)
    turns = range(min(most, TURNS_DRAWN))

    def of_turns(value: Callable[[Entry, int], float]) -> list[Curve]:
        return [_curve(f"turn {k + 1}", steps, lambda some, k=k: _mean_at(some, k, value)) for k in turns]

    def share(label: str, holds: Callable[[Entry], float | None], *, dropped: bool = False) -> Curve:
        return _curve(label, steps, lambda some: _mean(holds(one) for one in (_all if dropped else _kept)(some)))

    found = {
        "Mean reward by turn": of_turns(lambda entry, k: entry.rewards[k]),
        "Mean advantage by turn": of_turns(lambda entry, k: entry.advantages[k]),
        "Mean |advantage| by turn": of_turns(lambda entry, k: abs(entry.advantages[k])),
        "Share of rollouts": [
            share("tool used", lambda entry: entry.used),
            share("answer in a tool's result", lambda entry: entry.hit),
            share("right answer", lambda entry: entry.right),
            share("dropped", lambda entry: entry.dropped, dropped=True),
        ],
        "Groups in which all were paid the same": [
            *(_curve(f"turn {k + 1}", steps, lambda some, k=k: _no_difference(some, k)) for k in turns),
            _curve("last turn", steps, lambda some: _no_difference(some, -1)),
        ],
        "Turns per rollout": [share("mean", lambda entry: len(entry.rewards))],
    }
    return {title: [curve for curve in some if curve.points] for title, some in found.items()}


def histograms(groups: Sequence[Group]) -> list[Histogram]:
    """Return histograms of rewards and advantages by turn index; 0 is in the middle bin of advantages."""
    kept = list(_kept(groups))
    most = min(max((len(entry.rewards) for entry in kept), default=0), TURNS_DRAWN)
    rewards = [[entry.rewards[k] for entry in kept if len(entry.rewards) > k] for k in range(most)]
    advantages = [[entry.advantages[k] for entry in kept if len(entry.advantages) > k] for k in range(most)]
    if not most:
        return []
    every = [value for some in rewards for value in some]
    far = max(abs(value) for some in advantages for value in some) or 1.0
    return [
        _histogram("Rewards", rewards, min(every), max(every)),
        _histogram("Advantages", advantages, -far, far),
    ]


def _histogram(title: str, values: Sequence[Sequence[float]], low: float, high: float) -> Histogram:
    if low == high:
        low, high = low - 0.5, high + 0.5
    rows: list[tuple[int, ...]] = []
    for some in values:
        counts = [0] * BINS
        for value in some:
            counts[min(int((value - low) / (high - low) * BINS), BINS - 1)] += 1
        rows.append(tuple(counts))
    return Histogram(title, low, high, tuple(rows))


def _curve(label: str, steps: Mapping[int, Sequence[Group]], value: Callable[[Sequence[Group]], float | None]) -> Curve:
    points = ((step, value(groups)) for step, groups in steps.items())
    return Curve(label, tuple((step, found) for step, found in points if found is not None))


def _mean_at(groups: Sequence[Group], turn: int, value: Callable[[Entry, int], float]) -> float | None:
    return _mean(value(entry, turn) for entry in _kept(groups) if len(entry.rewards) > turn)


def _no_difference(groups: Sequence[Group], turn: int) -> float | None:
    """Return the share of the groups with two or more rollouts at a turn (-1: the last) with all rewards equal."""
    paid = [[one.rewards[turn] for one in _kept([group]) if len(one.rewards) > max(turn, 0)] for group in groups]
    return _mean(min(some) == max(some) for some in paid if len(some) > 1)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _all(groups: Iterable[Group]) -> Iterable[Entry]:
    return (entry for group in groups for entry in group.entries)


def _kept(groups: Iterable[Group]) -> Iterable[Entry]:
    return (entry for entry in _all(groups) if not entry.dropped)
