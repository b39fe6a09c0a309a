"""Work out the advantages of one group number by number, for estimators without a critic.

This repeats the arithmetic in plain Python, independent of the tensors that train: a report shows it next to the
advantage that was trained on, and says so if the two differ.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Rewards = Sequence[Sequence[float]]
"""R_{i,k} of the rollouts of one group, one number per turn; a rollout that was dropped has none."""


@dataclass(frozen=True)
class Term:
    """One summand of an advantage: ``weight · (value - mean) / (std + ε)``.

    Attributes:
        kind: What ``value`` is. ``turn``: what turn ``turn`` was paid. ``ended``: 0, because the rollout ended with
            ``turn``, where others were paid for going on. ``outcome``: what the last turn was paid. ``turns``: the sum
            of what the turns before the last were paid. ``return``: what was paid from ``turn`` on, discounted.
            ``total``: all that the rollout was paid.
        turn: From 1; 0 if the value belongs to the whole rollout.
        value: The number of this rollout.
        mean: The baseline that is subtracted from ``value``.
        std: What the difference is divided by, without ε; None if it is not divided.
        count: The number of values that ``mean`` is taken over.
        normalized: ``(value - mean) / (std + ε)``.
        weight: The factor of ``normalized``.
        baseline: What ``mean`` is taken over: ``alive`` (rollouts with this turn), ``group`` (all rollouts), ``others``
            (rollouts with this turn, except this one), ``others_outcome`` (the last turns of the other rollouts, none
            of which has this turn), ``turns_of_group`` (every turn of every rollout), ``nobody`` (there is no other).
        ended: How many of them ended with this turn and count as 0, because what they were paid there is the outcome.
    """

    kind: str
    turn: int
    value: float
    mean: float
    std: float | None
    count: int
    normalized: float
    weight: float = 1.0
    baseline: str = "group"
    ended: int = 0

    @property
    def adds(self) -> float:
        """Return what the term adds to the advantage."""
        return self.weight * self.normalized


Working = Sequence[Sequence[Sequence[Term]]]
"""The terms of each turn of each rollout of a group; they sum to the advantage."""


def explain(estimator: str, rewards: Rewards, settings: Mapping[str, Any]) -> Working | None:
    """Return the terms of every advantage of one group.

    Args:
        estimator: Its name in verl, one of :data:`EXPLAINED`.
        rewards: The group, as the estimator saw it.
        settings: The knobs that differ from the estimator's defaults.

    Returns:
        None if the advantages depend on more than the group (a critic, the batch), or the estimator is unknown.
    """
    from verl_mtgrpo.credit import ESTIMATORS  # late: torch takes seconds to import, and reading dumps does not need it

    explained = EXPLAINED.get(estimator)
    if explained is None:
        return None
    defaults = ESTIMATORS[estimator].knobs if estimator in ESTIMATORS else {}
    # Rewards are float32 where they are trained on: what is equal there has to be equal here.
    return explained([[_float32(reward) for reward in one] for one in rewards], {**defaults, **settings})


def _mt_grpo(rewards: Rewards, settings: Mapping[str, Any]) -> Working:
    """Work out A_k = c Σ_{l≥k} α^{l-k} Â^I_l + α^{K-k} Â^O (:func:`verl_mtgrpo.credit.mt_grpo`)."""
    coef, discount = float(settings["turn_coef"]), float(settings["discount"])
    norm = _Norm(settings)
    excludes = settings["missing_turn"] == "exclude"
    outcomes = [one[-1] for one in rewards if one]

    def at_turn(one: Sequence[float], turn: int) -> Term | None:
        ended = turn == len(one) - 1
        if ended and excludes:
            return None
        going_on = [other[turn] for other in rewards if len(other) > turn + 1]
        stopped = 0 if excludes else sum(len(other) == turn + 1 for other in rewards)
        mine, kind = (0.0, "ended") if ended else (one[turn], "turn")
        term = norm.term(kind, turn + 1, mine, [*going_on, *[0.0] * stopped], baseline="alive")
        return replace(term, ended=stopped)

    def of_rollout(one: Sequence[float]) -> list[list[Term]]:
        outcome = norm.term("outcome", len(one), one[-1], outcomes)
        terms = [at_turn(one, turn) for turn in range(len(one))]
        return [
            [
                *(_weighted(term, coef * discount**later) for later, term in enumerate(terms[turn:]) if term),
                _weighted(outcome, discount ** (len(one) - 1 - turn)),
            ]
            for turn in range(len(one))
        ]

    return [of_rollout(one) if one else [] for one in rewards]


def _mt_grpo_v1(rewards: Rewards, settings: Mapping[str, Any]) -> Working:
    """Work out c · norm(R^T) + norm(R^O) for turn 1, norm(R^O) for later ones, norm(R^T + R^O) for a single turn."""
    coef = float(settings["turn_coef"])
    norm = _Norm(settings)
    kept = [one for one in rewards if one]
    turns, outcomes = [_sum(one[:-1]) for one in kept], [one[-1] for one in kept]
    totals = [turn + outcome for turn, outcome in zip(turns, outcomes, strict=True)]

    def of_rollout(one: Sequence[float]) -> list[list[Term]]:
        if len(one) == 1:
            return [[norm.term("total", 0, one[0], totals)]]
        outcome = norm.term("outcome", len(one), one[-1], outcomes)
        first = _weighted(norm.term("turns", 0, _sum(one[:-1]), turns), coef)
        return [[first, outcome], *([outcome] for _ in one[1:])]

    return [of_rollout(one) if one else [] for one in rewards]


def _turn_rloo(rewards: Rewards, settings: Mapping[str, Any]) -> Working:
    """Work out A_k = G_k minus the mean G_k of the others alive at k (:func:`verl_mtgrpo.credit.turn_rloo`)."""
    discount, epsilon = float(settings["discount"]), float(settings["epsilon"])
    scaled = settings["scale"] == "std"
    returns = [_returns(one, discount) for one in rewards]

    def at_turn(row: int, turn: int) -> Term:
        value = returns[row][turn]
        others = [other[turn] for j, other in enumerate(returns) if j != row and len(other) > turn]
        baseline = "others"
        if not others:
            others = [other[-1] for j, other in enumerate(rewards) if j != row and other]
            baseline = "others_outcome" if others else "nobody"
        mean = _mean(others) if others else 0.0
        std = _std([one[turn] for one in returns if len(one) > turn]) if scaled else None
        normalized = value - mean if std is None else _divided(value - mean, std + epsilon)
        return Term("return", turn + 1, value, mean, std, len(others), normalized, baseline=baseline)

    return [[[at_turn(row, turn)] for turn in range(len(one))] for row, one in enumerate(rewards)]


def _gtpo(rewards: Rewards, settings: Mapping[str, Any]) -> Working:
    """Work out A_k = norm(G_k) over every turn of the group (:func:`verl_mtgrpo.credit.gtpo`)."""
    discount = float(settings["discount"])
    norm = _Norm(settings)
    returns = [_returns(one, discount) for one in rewards]
    every = [value for one in returns for value in one]
    return [
        [
            [norm.term("return", turn, value, every, baseline="turns_of_group")]
            for turn, value in enumerate(one, start=1)
        ]
        for one in returns
    ]


def _grpo(rewards: Rewards, settings: Mapping[str, Any]) -> Working:
    """Work out verl's ``grpo``: norm(total) over the rollouts of the group; dropped ones have left the batch."""
    scale = "std" if settings.get("norm_adv_by_std_in_grpo", True) else "none"
    norm = _Norm({"scale": scale, "epsilon": settings.get("epsilon", 1e-6)})
    totals = [_sum(one) for one in rewards if one]
    return [[[norm.term("total", 0, _sum(one), totals)] for _ in one] for one in rewards]


EXPLAINED: Mapping[str, Callable[[Rewards, Mapping[str, Any]], Working]] = {
    "mt_grpo": _mt_grpo,
    "mt_grpo_v1": _mt_grpo_v1,
    "turn_rloo": _turn_rloo,
    "gtpo": _gtpo,
    "grpo": _grpo,
}
"""How to work out the advantages of a group. An estimator that is not here is explained by its words only."""


class _Norm:
    """norm(x) = (x - mean) / (std_{N-1} + ε). A single number has mean 0 and std 1; equal numbers give exactly 0."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._divides = settings.get("scale", "std") == "std"  # estimators without this knob divide
        self._epsilon = float(settings["epsilon"])

    def term(self, kind: str, turn: int, value: float, values: Sequence[float], *, baseline: str = "group") -> Term:
        alone = len(values) == 1
        mean = 0.0 if alone else _mean(values)
        std = _std(values) if self._divides else None
        normalized = value - mean if std is None else _divided(value - mean, std + self._epsilon)
        if alone:
            baseline = "nobody"
        return Term(kind, turn, value, mean, std, len(values), normalized, baseline=baseline)


def _divided(centred: float, by: float) -> float:
    """Divide; 0 / 0 is 0, which equal rewards without an ε lead to."""
    return centred / by if centred else 0.0


def _weighted(term: Term, weight: float) -> Term:
    return replace(term, weight=weight)


def _returns(rewards: Sequence[float], discount: float) -> list[float]:
    """Return G_k = Σ_{l≥k} γ^{l-k} R_l of every turn k."""
    return [_sum([discount**later * reward for later, reward in enumerate(rewards[k:])]) for k in range(len(rewards))]


def _mean(values: Sequence[float]) -> float:
    # Rounding must not move the mean of equal numbers away from that number.
    return values[0] if min(values) == max(values) else math.fsum(values) / len(values)


def _std(values: Sequence[float]) -> float:
    if len(values) == 1:
        return 1.0
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _sum(values: Sequence[float]) -> float:
    return _float32(math.fsum(values))


def _float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]
