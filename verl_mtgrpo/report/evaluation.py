"""Evaluate dumped rollouts: shares and means by data set, with bootstrap intervals.

Everything is computed from the transcripts, not from logged numbers, so that dumps of runs with different reward
functions are measured alike. A question's value is the mean over its rollouts; a data set's is the mean over its
questions; the average is that over data sets. Intervals resample questions, because the rollouts of one question are
not independent. Rollouts that were dropped (the search was down) are counted and have no score; a question for which
a metric is not defined is left out of that metric's mean.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from verl_mtgrpo.errors import ConfigError, DataError
from verl_mtgrpo.report.published import ORDER, PAPER_AVERAGE, PAPER_SETS, natural_name
from verl_mtgrpo.report.rollouts import DumpedRollout, iter_dump
from verl_mtgrpo.rewards.answers import contains, exact_match, f1, last_answer, searchable_answers
from verl_mtgrpo.rewards.formats import FORMATS

if TYPE_CHECKING:
    import numpy as np

METRICS: Mapping[str, str] = {
    "em": "exact match of the last `<answer>` with an accepted one, both normalised as in SQuAD",
    "f1": "their word overlap (SQuAD's F1), the best over the accepted answers",
    "format": "share of rollouts in which every turn is one well-formed call or answer of the rollout's text format",
    "tool execution": "share of rollouts in which at least one tool call was carried out",
    "hit rate": "share of rollouts in which an accepted answer, normalised, is in a result that the model saw, one "
    "of fewer than 3 characters as a separate word; questions whose accepted answers are yes or no are left out",
    "searches": "tool calls per rollout, including those that failed or were not carried out",
}
"""Each metric and how it is measured."""
_HIT_RATE = list(METRICS).index("hit rate")

CONFIDENCE = 0.95
# Numbers drawn at once: 32 MB, whatever the number of questions.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval; the interval is None with fewer than two questions."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        data_set: Its usual name.
        estimates: Metric -> estimate; None if it is undefined.
        questions: Questions with at least one scored rollout.
        rollouts: Scored rollouts.
        dropped: Dropped rollouts, which have no score.
        missing: Rollouts that this dump lacks but other questions of the set have: they failed with an error.
        hits_undefined: Questions without a hit rate: their accepted answers are yes or no.
    """

    data_set: str
    estimates: Mapping[str, Estimate | None]
    questions: int
    rollouts: int
    dropped: int = 0
    missing: int = 0
    hits_undefined: int = 0


@dataclass(frozen=True)
class DataSet:
    """The scored questions of one data set.

    Attributes:
        name: Its usual name.
        ids: The questions' ids, in the order of ``values``; empty if unknown.
        values: ``(questions, metrics)``: the mean over each question's rollouts, NaN if it is undefined.
    """

    name: str
    ids: tuple[str, ...]
    values: np.ndarray
    rollouts: int
    dropped: int
    missing: int


@dataclass(frozen=True)
class Evaluation:
    """The results of one dump.

    Attributes:
        label: The dump's name in tables.
        rows: By data set.
        average: Over data sets, with equal weights; None if there is only one.
        paper_average: Over the six sets of the paper's average; None unless all six are there.
        data_sets: The questions that the rows were computed from.
        reasons: Why rollouts were dropped, with counts.
        training: True if these are training rollouts.
    """

    label: str
    rows: tuple[Row, ...]
    average: Row | None
    paper_average: Row | None
    data_sets: Mapping[str, DataSet] = field(repr=False)
    reasons: Mapping[str, int] = field(default_factory=dict[str, int])
    training: bool = False


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are computed: percentiles of means over questions drawn with replacement."""

    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 100:
            raise ConfigError(
                f"resamples is {self.resamples}", expected="100 or more: fewer cannot estimate a 2.5 % quantile"
            )

    def means(self, values: np.ndarray, name: str) -> np.ndarray:
        """Return ``(resamples, metrics)`` means of ``(questions, metrics)`` values; the name picks the random numbers.

        NaN marks a question for which a metric is undefined; the mean of no questions is NaN. The random numbers go by
        name and not by position, so that a set's interval does not depend on the other sets in the dump, while two sets
        are drawn independently.
        """
        import numpy as np

        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        questions = len(values)
        # Questions with equal values are interchangeable: how often each kind is drawn is multinomial. There are few
        # kinds of many questions, and their order in the dump, which is random, does not matter then.
        known = ~np.isnan(values)
        columns = np.hstack([np.where(known, values, 0.0), known])
        kinds, counts = np.unique(columns, axis=0, return_counts=True)
        means = np.empty((self.resamples, values.shape[1]))
        at_a_time = max(1, _BLOCK // len(kinds))
        for start in range(0, self.resamples, at_a_time):
            rows = min(at_a_time, self.resamples - start)
            drawn = rng.multinomial(questions, counts / questions, size=rows)
            total, counted = np.split(drawn.astype(float) @ kinds, 2, axis=1)
            means[start : start + rows] = np.divide(total, counted, out=np.full_like(total, np.nan), where=counted > 0)
        return means


def evaluate_dump(path: Path, *, label: str, bootstrap: Bootstrap) -> Evaluation:
    """Measure one dump.

    Raises:
        DataError: The dump cannot be read (:func:`~verl_mtgrpo.report.rollouts.iter_dump`), a question has no accepted
            answer, or every rollout was dropped.
    """
    data_sets, reasons, training = _collect(path)
    if not any(one.rollouts for one in data_sets.values()):
        raise DataError(f"{path}: all {sum(reasons.values())} rollouts were dropped: {_listed(reasons)}")
    means = {name: bootstrap.means(one.values, name) for name, one in data_sets.items() if one.rollouts}
    rows = tuple(_row(data_sets[name], means.get(name)) for name in sorted(data_sets, key=_position))
    six = [name for name in PAPER_SETS if name in data_sets]
    return Evaluation(
        label=label,
        rows=rows,
        average=_average("average", list(data_sets), data_sets, means) if len(rows) > 1 else None,
        paper_average=_average(PAPER_AVERAGE, six, data_sets, means) if len(six) == len(PAPER_SETS) else None,
        data_sets=data_sets,
        reasons=reasons,
        training=training,
    )


def differences(first: Evaluation, other: Evaluation, bootstrap: Bootstrap) -> tuple[Row, ...]:
    """Return ``other - first`` by data set, on the questions that both have; the pairs are resampled.

    Sets whose questions have no ids or duplicate ids are left out: their questions cannot be paired.
    """
    rows: list[Row] = []
    for name in sorted(first.data_sets.keys() & other.data_sets.keys(), key=_position):
        a, b = _by_id(first.data_sets[name]), _by_id(other.data_sets[name])
        common = sorted(a.keys() & b.keys())
        if not common:
            continue
        values = other.data_sets[name].values[[b[one] for one in common]]
        values = values - first.data_sets[name].values[[a[one] for one in common]]
        estimates = _estimates(_mean(values), bootstrap.means(values, name), len(common))
        rows.append(Row(name, estimates, len(common), 0))
    return tuple(rows)


def score_rollout(rollout: DumpedRollout) -> tuple[float, ...]:
    """Return one rollout's values, in the order of :data:`METRICS`; NaN if one is undefined."""
    texts = [turn.text for turn in rollout.transcript.turns]
    calls = [call for turn in rollout.transcript.turns for call in turn.tool_calls]
    results = [result for turn in rollout.transcript.turns for result in turn.results]
    answer, rules = last_answer(texts), FORMATS.get(rollout.transcript.format)
    searchable, limit = searchable_answers(rollout.answers), rollout.transcript.max_parallel_calls
    return (
        float(exact_match(answer, rollout.answers)),
        f1(answer, rollout.answers),
        math.nan if rules is None else float(bool(texts) and all(rules.well_formed(text, limit) for text in texts)),
        float(any(call.ok for call in calls)),
        float(any(contains(result, searchable) for result in results)) if searchable else math.nan,
        float(len(calls)),
    )


@dataclass
class _Tally:
    """Collects one data set while its dump is read; questions by verl's label."""

    scores: dict[str, list[tuple[float, ...]]] = field(default_factory=dict[str, "list[tuple[float, ...]]"])
    ids: dict[str, str] = field(default_factory=dict[str, str])
    dropped: Counter[str] = field(default_factory=Counter[str])

    def data_set(self, name: str) -> DataSet:
        """Return the collected questions as a data set."""
        import numpy as np

        scored = {question: scores for question, scores in self.scores.items() if scores}
        counts = [len(scores) + self.dropped[question] for question, scores in self.scores.items()]
        return DataSet(
            name=name,
            ids=tuple(self.ids[question] for question in scored),
            values=np.array([np.mean(scores, axis=0) for scores in scored.values()]).reshape(-1, len(METRICS)),
            rollouts=sum(map(len, scored.values())),
            dropped=self.dropped.total(),
            missing=max(counts) * len(counts) - sum(counts),
        )


def _collect(path: Path) -> tuple[dict[str, DataSet], dict[str, int], bool]:
    training = False
    tallies: dict[str, _Tally] = defaultdict(_Tally)
    reasons: Counter[str] = Counter()
    for rollout in iter_dump(path):
        training = training or rollout.advantages is not None
        if not rollout.answering:  # what led to an answer is no answer
            continue
        tally = tallies[natural_name(rollout.data_source)]
        tally.ids[rollout.group] = rollout.question_id
        scores = tally.scores.setdefault(rollout.group, [])
        if rollout.dropped is not None:
            tally.dropped[rollout.group] += 1
            reasons[rollout.dropped] += 1
        elif not any(answer.strip() for answer in rollout.answers):
            raise DataError(f"{path}: question {rollout.group} has no accepted answer in gts, so nothing can be right")
        else:
            scores.append(score_rollout(rollout))
    return {name: tally.data_set(name) for name, tally in tallies.items()}, dict(reasons.most_common()), training


def _row(data_set: DataSet, means: np.ndarray | None) -> Row:
    questions = len(data_set.values)
    nothing = dict.fromkeys(METRICS)
    estimates = nothing if means is None else _estimates(_mean(data_set.values), means, questions)
    undefined = _hits_undefined(data_set)
    return Row(data_set.name, estimates, questions, data_set.rollouts, data_set.dropped, data_set.missing, undefined)


def _average(
    label: str, names: Sequence[str], data_sets: Mapping[str, DataSet], means: Mapping[str, np.ndarray]
) -> Row:
    """Return the mean over data sets; undefined if one of them has nothing to count."""
    import numpy as np

    parts = [data_sets[name] for name in names]
    estimates: Mapping[str, Estimate | None] = dict.fromkeys(METRICS)
    if all(name in means for name in names):
        mean = np.mean([_mean(one.values) for one in parts], axis=0)
        resampled = np.mean([means[name] for name in names], axis=0)
        estimates = _estimates(mean, resampled, min(len(one.values) for one in parts))
    return Row(
        label,
        estimates,
        questions=sum(len(one.values) for one in parts),
        rollouts=sum(one.rollouts for one in parts),
        dropped=sum(one.dropped for one in parts),
        missing=sum(one.missing for one in parts),
        hits_undefined=sum(map(_hits_undefined, parts)),
    )


def _hits_undefined(data_set: DataSet) -> int:
    return sum(map(math.isnan, data_set.values[:, _HIT_RATE]))


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the means over the questions for which a metric is defined; NaN without any."""
    import numpy as np

    known = ~np.isnan(values)
    counted = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.divide(total, counted, out=np.full(total.shape, np.nan), where=counted > 0)


def _estimates(mean: np.ndarray, means: np.ndarray, questions: int) -> dict[str, Estimate | None]:
    import numpy as np

    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(np.where(np.isnan(mean), 0.0, means), [tail, 1 - tail], axis=0)
    found: dict[str, Estimate | None] = {}
    for column, name in enumerate(METRICS):
        if math.isnan(mean[column]):
            found[name] = None
        elif questions < 2:
            found[name] = Estimate(float(mean[column]))
        else:
            found[name] = Estimate(float(mean[column]), float(low[column]), float(high[column]))
    return found


def _by_id(data_set: DataSet) -> dict[str, int]:
    """Return question id -> position; empty if the ids are not unique."""
    places = {one: place for place, one in enumerate(data_set.ids) if one}
    return places if len(places) == len(data_set.ids) else {}


def _position(name: str) -> tuple[int, str]:
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def _listed(reasons: Mapping[str, int]) -> str:
    return "; ".join(f"{reason} ({count})" for reason, count in list(reasons.items())[:3])
