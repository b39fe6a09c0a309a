"""Name the terms that an advantage is the sum of, and do the arithmetic that they share.

This is plain Python, independent of the tensors that train.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Rewards = Sequence[Sequence[float]]
"""R_{i,k} of the rollouts of one group, one number per turn; a rollout that was dropped has none."""


@dataclass(frozen=True)
class Part:
    """One summand of a term's value, of an output of a role: ``weight · value``; of a pair, one of its margin.

    Attributes:
        kind: ``outcome``: what the last turn was paid, nobody having read the output. ``back``: what came back from
            those that read it. ``own``: what it was paid itself. ``expert_ratio`` and ``own_ratio``: the log ratios of
            the two actions of a pair.
        value: The number.
        weight: Its factor.
        readers: The outputs that read it, by their numbers in the group, and what each is worth.
        reduce: How ``value`` is made of that: ``mean``, ``max`` or ``min``.
    """

    kind: str
    value: float
    weight: float = 1.0
    readers: tuple[tuple[int, float], ...] = ()
    reduce: str = "mean"


@dataclass(frozen=True)
class Term:
    """One summand of an advantage: ``weight · (value - mean) / (std + ε)``.

    Attributes:
        kind: What ``value`` is. ``turn``: what turn ``turn`` was paid. ``ended``: 0, because the rollout ended with
            ``turn``, where others were paid for going on. ``outcome``: what the last turn was paid. ``turns``: the sum
            of what the turns before the last were paid. ``return``: what was paid from ``turn`` on, discounted.
            ``total``: all that the rollout was paid. On trees, where several rollouts may have the turn:
            ``intermediate``: what turns before the last ones were paid from ``turn`` on; ``outcomes``: what the last
            turns were paid; ``totals``: all that these rollouts were paid; ``lambda_return``: the λ-return from
            ``turn`` on. Of outputs of roles: ``worth``: what the output is worth, which ``parts`` sum to; ``own``: what
            it was paid itself, apart from the outcome. Of a critic of states and turns: ``after``: Q, its value behind
            ``turn``. Of pairs: ``pair``: σ(-D), where ``parts`` sum to D.
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
            On trees: ``siblings`` (the turns that were sampled in the same state), ``place`` (the distinct turns with
            this number, because there is no sibling), ``other_siblings`` and ``other_places`` (the same, except this
            turn), ``tree`` (rollouts with the same first turn), ``parent`` (the value of the state in which the turn
            was sampled), ``prompt`` (the prompt's value), ``critic`` (the critic's value of the state). Of outputs of
            roles: ``outputs_of_role`` (the outputs of its role), ``turn_of_role`` (those that have this turn),
            ``other_outputs_of_role`` and ``other_turn_of_role`` (the same, except this one), ``no_output`` (there is no
            other, and the term is 0). Of a critic of states and turns: ``before`` (V, its value where the turn began).
            Of pairs: ``pair``, ``equal`` (both actions are the same), ``no_pair`` (the other
            one was lost).
        ended: How many of them ended with this turn and count as 0, because what they were paid there is the outcome.
        leaves: The number of rollouts that ``value`` is an average over.
        parts: What ``value`` is the sum of, or of a pair the margin; empty if it is not told.
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
    leaves: int = 1
    parts: tuple[Part, ...] = ()

    @property
    def adds(self) -> float:
        """Return what the term adds to the advantage."""
        return self.weight * self.normalized


Working = Sequence[Sequence[Sequence[Term]]]
"""The terms of each turn of each rollout of a group; they sum to the advantage."""


class Norm:
    """norm(x) = (x - mean) / (std_{N-1} + ε). A single number has mean 0 and std 1; equal numbers give exactly 0."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._divides = settings.get("scale", "std") == "std"  # estimators without this knob divide
        self._epsilon = float(settings["epsilon"])

    def term(self, kind: str, turn: int, value: float, values: Sequence[float], *, baseline: str = "group") -> Term:
        """Return the term of a value among ``values``: it is one of them, or a mean of some of them."""
        alone = len(values) == 1
        mean = 0.0 if alone else mean_of(values)
        std = std_of(values) if self._divides else None
        normalized = value - mean if std is None else divided(value - mean, std + self._epsilon)
        if alone:
            baseline = "nobody"
        return Term(kind, turn, value, mean, std, len(values), normalized, baseline=baseline)


def divided(centred: float, by: float) -> float:
    """Divide; 0 / 0 is 0, which equal rewards without an ε lead to."""
    return centred / by if centred else 0.0


def weighted(term: Term, weight: float) -> Term:
    """Return the term with another weight."""
    return replace(term, weight=weight)


def returns_of(rewards: Sequence[float], discount: float) -> list[float]:
    """Return G_k = Σ_{l≥k} γ^{l-k} R_l of every turn k."""
    return [sum_of([discount**later * reward for later, reward in enumerate(rewards[k:])]) for k in range(len(rewards))]


def mean_of(values: Sequence[float]) -> float:
    """Return the mean; that of equal numbers is exactly that number."""
    return values[0] if min(values) == max(values) else math.fsum(values) / len(values)


def std_of(values: Sequence[float]) -> float:
    """Return std_{N-1}; 1 for a single number."""
    if len(values) == 1:
        return 1.0
    mean = mean_of(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def sum_of(values: Sequence[float]) -> float:
    """Return the sum as a float32, so that equal sums are equal whatever was added first."""
    return float32(math.fsum(values))


def float32(value: float) -> float:
    """Return the float32 next to a number."""
    return struct.unpack("f", struct.pack("f", value))[0]
