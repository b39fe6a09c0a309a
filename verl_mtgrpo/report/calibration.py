"""Compare turn rewards with the outcome within groups: do they agree, which of them wins, and how much each weighs.

Dense rewards that were chosen by intuition can cost more than they bring (IRC, arXiv 2604.02869): they may pay for what
the outcome punishes, or weigh so much or so little that the sign of a turn's advantage is not the sign of its reward.
Everything here is about what was paid; a KL penalty in the reward is left out. Dropped rollouts are in no number.

The **outcome** of a rollout is the logged ``outcome/reward``; in a dump without it, what the last turn was paid. The
**turn rewards** of a rollout are all that it was paid beyond that, wherever it was paid (``reward.turn.pay=merged``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from verl_mtgrpo.report.catalog import Entry, Group
from verl_mtgrpo.report.explain import explain
from verl_mtgrpo.rewards.measures import BY_KIND

OUTCOME = "outcome/reward"
NORMALISE_EACH_TERM = ("mt_grpo", "mt_grpo_v1")
"""Estimators that normalise turn rewards and the outcome one by one; others add them up first."""
_LEFT_OUT = re.compile(r"turn/\d+/reward|judge/(?!turn_score).*")  # what judging a rollout took says nothing of it
_NAME_CHARS = 60
# Sums of the same rewards in another order are equal to this many decimals.
_DECIMALS = 9

_ADDING = "methods that add rewards up"
_NO_PAIRS = "no group has two rollouts with it"
_SAME = "no group differs in it"
_OUTCOME_SAME = "no group differs in the outcome"
_NEVER_BOTH = "no group differs both in it and in the outcome"
_NO_TURN_TERM = "no group differs in turn rewards, so no weight makes them count"
_NO_OUTCOME_TERM = "no group differs in the outcome, so nothing but turn rewards counts"


@dataclass(frozen=True)
class Correlation:
    """How a number of a rollout goes with its outcome among the rollouts of a group.

    Pearson's r of the two, each minus its mean over the group, over all groups in which both differ: in other groups
    one of them says nothing about the other.

    Attributes:
        name: ``turn rewards``, ``reward of turn 1`` or the name of a logged component.
        turn: k for what turn k was paid, 0 for turn rewards in total, None for a component.
        r: From -1 to 1; None if it is undefined.
        error: About how far r is from 0 by chance: 1 / √(rollouts - groups).
        groups: The number of groups in which both differ.
        rollouts: The number of rollouts in these.
        undefined: Why r is None; empty if it is not.
    """

    name: str
    turn: int | None
    r: float | None
    error: float | None
    groups: int
    rollouts: int
    undefined: str = ""


@dataclass(frozen=True)
class Conflict:
    """How often a turn's own term and its advantage have opposite signs, as the metric ``turn/<k>/sign_conflict``.

    Attributes:
        turn: k, from 1.
        rollouts: Those that have a turn k before their last one, and a term there that is not zero.
        share: The share of them whose advantage has the opposite sign; None if there are none.
    """

    turn: int
    rollouts: int
    share: float | None


@dataclass(frozen=True)
class Balance:
    """How much turn rewards and the outcome weigh in the advantage of a first turn.

    Attributes:
        estimator: The estimator that it is about.
        weight: What changes it: ``turn_coef`` for an estimator that normalises each term, ``turn rewards`` (a factor of
            all of them) for one that adds rewards up.
        now: The weight's present value.
        groups: Groups of two or more rollouts.
        rollouts: Those in them.
        turn_std: The standard deviation within groups of the summed turn terms at a weight of 1.
        outcome_std: The same of the outcome's term.
        alike: The weight at which both are equal; None if one of them is 0.
        undefined: Why ``alike`` is None; empty if it is not.
    """

    estimator: str
    weight: str
    now: float
    groups: int
    rollouts: int
    turn_std: float
    outcome_std: float
    alike: float | None
    undefined: str = ""


@dataclass(frozen=True)
class Calibration:
    """The comparison for the training or for the validation rollouts of a dump.

    Attributes:
        training: True for training rollouts, with the advantages that they were trained on; False for those of a
            validation, whose advantages are recomputed as ``mt_grpo``.
        steps: The first and the last training step.
        comparable: True if a group has two or more rollouts; there is nothing to compare otherwise.
        correlations: By turn, in total, then the logged components by their names.
        conflicts: By turn.
        balances: One per estimator and its settings; of a validation one for ``mt_grpo`` and one for estimators that
            add rewards up.
    """

    training: bool
    steps: tuple[int, int]
    comparable: bool
    correlations: tuple[Correlation, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    balances: tuple[Balance, ...] = ()


def calibrate(groups: Iterable[Group]) -> list[Calibration]:
    """Return the comparison for the training rollouts and for those of validations, where there are any."""
    known = list(groups)
    kinds = ([group for group in known if group.training is training] for training in (True, False))
    return [_calibrate(some) for some in kinds if some]


def _calibrate(groups: Sequence[Group]) -> Calibration:
    kept = [(group, [_Rollout(entry) for entry in group.entries if _counts(entry)]) for group in groups]
    kept = [(group, rollouts) for group, rollouts in kept if len(rollouts) > 1]
    training, numbers = groups[0].training, [group.step for group in groups]
    steps = min(numbers), max(numbers)
    if not kept:
        return Calibration(training, steps, comparable=False)
    rollouts = [some for _, some in kept]
    return Calibration(
        training,
        steps,
        comparable=True,
        correlations=tuple(_correlations(rollouts)),
        conflicts=tuple(_conflicts(rollouts)),
        balances=tuple(_balances(kept, training)),
    )


def _counts(entry: Entry) -> bool:
    return not entry.dropped and bool(entry.rewards)


class _Rollout:
    """What is compared of one rollout."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.before = [_exact(reward) for reward in entry.rewards[:-1]]
        self.outcome = _exact(entry.components.get(OUTCOME, entry.rewards[-1]))
        # What the last turn earned for itself, or all turns if that is where they are paid.
        self.with_outcome = _exact(entry.rewards[-1] - self.outcome)

    def at(self, turn: int) -> float | None:
        """Return what a turn (from 0) was paid, 0 if it is the last one, None if there is no such turn."""
        return None if turn > len(self.before) else self.before[turn] if turn < len(self.before) else 0.0

    def turn_rewards(self, discount: float = 1.0) -> float:
        """Return Σ γ^(k-1) R_k over the turn rewards."""
        return _exact(math.fsum(discount**k * reward for k, reward in enumerate([*self.before, self.with_outcome])))


# ---- how rewards and measurements go with the outcome


def _correlations(groups: Sequence[Sequence[_Rollout]]) -> Iterator[Correlation]:
    for turn in range(_turns(groups)):
        yield _correlation(f"reward of turn {turn + 1}", turn + 1, [[(one.at(turn), one) for one in g] for g in groups])
    yield _correlation("turn rewards", 0, [[(one.turn_rewards(), one) for one in some] for some in groups])
    logged = {name for some in groups for one in some for name in one.entry.components}
    for name in sorted(name for name in logged if name != OUTCOME and not _LEFT_OUT.fullmatch(name)):
        absent = 0.0 if name.startswith(BY_KIND) else None
        pairs = [[(one.entry.components.get(name, absent), one) for one in some] for some in groups]
        yield _correlation(shown(name), None, pairs)


def _correlation(name: str, turn: int | None, groups: Sequence[Sequence[tuple[float | None, _Rollout]]]) -> Correlation:
    pairs = [[(value, one.outcome) for value, one in some if value is not None] for some in groups]
    columns = [tuple(zip(*some, strict=True)) for some in pairs if len(some) > 1]
    both = [(x, y) for x, y in columns if _differ(x) and _differ(y)]
    if not both:
        return Correlation(name, turn, None, None, 0, 0, _why_undefined(columns))
    xs, ys = ([value for some in both for value in _centred(some[side])] for side in (0, 1))
    r = _dot(xs, ys) / math.sqrt(_dot(xs, xs) * _dot(ys, ys))
    error = 1 / math.sqrt(len(xs) - len(both))
    return Correlation(name, turn, max(-1.0, min(1.0, r)), error, len(both), len(xs))


def _why_undefined(columns: Sequence[Sequence[Sequence[float]]]) -> str:
    if not columns:
        return _NO_PAIRS
    if not any(_differ(x) for x, _ in columns):
        return _SAME
    return _NEVER_BOTH if any(_differ(y) for _, y in columns) else _OUTCOME_SAME


# ---- which of them wins


def _conflicts(groups: Sequence[Sequence[_Rollout]]) -> Iterator[Conflict]:
    from verl_mtgrpo.credit.groups import ROUNDING  # late: torch takes seconds to import

    for turn in range(_turns(groups)):
        signs: list[float] = []
        for some in groups:
            alive = [(value, one) for one in some if (value := one.at(turn)) is not None]
            values = [value for value, _ in alive]
            nothing = ROUNDING * (max(values) - min(values)) if values else 0.0
            for term, (_, one) in zip(_centred(values), alive, strict=True):
                if turn < len(one.before) and abs(term) > nothing:
                    signs.append(math.copysign(1.0, term) * one.entry.advantages[turn])
        opposite = sum(sign < -ROUNDING for sign in signs)
        yield Conflict(turn + 1, len(signs), opposite / len(signs) if signs else None)


# ---- how much each weighs


def _balances(groups: Sequence[tuple[Group, Sequence[_Rollout]]], training: bool) -> Iterator[Balance]:
    by_method: dict[str, list[tuple[Group, Sequence[_Rollout]]]] = {}
    for group, rollouts in groups:
        by_method.setdefault(f"{group.estimator} {sorted(group.settings.items())}", []).append((group, rollouts))
    for some in by_method.values():
        estimator, settings = some[0][0].estimator, some[0][0].settings
        yield _balance(estimator, settings, [rollouts for _, rollouts in some])
    if not training:
        yield replace(_balance("", {}, [rollouts for _, rollouts in groups]), estimator=_ADDING)


def _balance(estimator: str, settings: Mapping[str, Any], groups: Sequence[Sequence[_Rollout]]) -> Balance:
    known = _knobs(estimator, settings)
    normalises = estimator in NORMALISE_EACH_TERM
    if normalises:
        terms = [list(_normalised_terms(estimator, known, some)) for some in groups]
    else:
        discount = known.get("discount", 1.0)  # of an estimator of your own it may be anything
        gamma = float(discount) if isinstance(discount, (int, float)) else 1.0
        terms = [list(_added_terms(some, gamma)) for some in groups]
    terms = [some for some in terms if len(some) > 1]
    turn_std, outcome_std = (_std_within([[pair[side] for pair in some] for some in terms]) for side in (0, 1))
    undefined = _NO_TURN_TERM if not turn_std else _NO_OUTCOME_TERM if not outcome_std else ""
    return Balance(
        estimator=shown(estimator),
        weight="turn_coef" if normalises else "turn rewards",
        now=float(known["turn_coef"]) if normalises else 1.0,
        groups=len(terms),
        rollouts=sum(map(len, terms)),
        turn_std=turn_std,
        outcome_std=outcome_std,
        alike=None if undefined else outcome_std / turn_std,
        undefined=undefined,
    )


def _knobs(estimator: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    from verl_mtgrpo.credit import ESTIMATORS  # late: torch takes seconds to import

    return {**(ESTIMATORS[estimator].knobs if estimator in ESTIMATORS else {}), **settings}


def _normalised_terms(
    estimator: str, settings: Mapping[str, Any], rollouts: Sequence[_Rollout]
) -> Iterator[tuple[float, float]]:
    """Yield the summed turn terms, for a coefficient of 1, and the outcome's term in each first turn's advantage.

    ``mt_grpo_v1`` normalises the total of a rollout of one turn; such rollouts do not have the two terms.
    """
    working = explain(estimator, [one.entry.rewards for one in rollouts], {**settings, "turn_coef": 1.0}) or []
    for turns in working:
        if not any(term.kind == "total" for term in turns[0]):
            outcome = sum(term.adds for term in turns[0] if term.kind == "outcome")
            yield sum(term.adds for term in turns[0]) - outcome, outcome


def _added_terms(rollouts: Sequence[_Rollout], discount: float) -> Iterator[tuple[float, float]]:
    """Yield the two parts of each first turn's return: the turn rewards, and the outcome."""
    for one in rollouts:
        yield one.turn_rewards(discount), _exact(discount ** len(one.before) * one.outcome)


# ---- arithmetic


def shown(name: str) -> str:
    """Return a name from a dump, which may hold anything, as a short word that is not markup anywhere."""
    return re.sub(r"[^\w/.:+-]", "\N{REPLACEMENT CHARACTER}", name)[:_NAME_CHARS]


def _turns(groups: Sequence[Sequence[_Rollout]]) -> int:
    """Return the largest number of turns before a last one."""
    return max(len(one.before) for some in groups for one in some)


def _exact(value: float) -> float:
    return round(value, _DECIMALS) + 0.0


def _differ(values: Sequence[float]) -> bool:
    return min(values) != max(values)


def _centred(values: Sequence[float]) -> list[float]:
    """Return values minus their mean, exactly 0 for equal ones."""
    if not values or not _differ(values):
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def _std_within(groups: Sequence[Sequence[float]]) -> float:
    """Return √(Σ (x - mean of its group)² / Σ (n - 1)) over groups of two or more; 0 without any."""
    if not groups:
        return 0.0
    centred = [value for some in groups for value in _centred(some)]
    return math.sqrt(_dot(centred, centred) / (len(centred) - len(groups)))


def _dot(xs: Sequence[float], ys: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(xs, ys, strict=True))
