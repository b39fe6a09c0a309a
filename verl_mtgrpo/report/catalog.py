"""Keep what a report needs about every rollout of a dump: numbers and a place in a file, but no text.

Dumps may be larger than memory, so they are read twice: once for this catalog, and again, group by group, for the text.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from verl_mtgrpo.report.rollouts import (
    DumpedRollout,
    iter_located,
    question_of,
    read_located,
    turn_advantages,
)
from verl_mtgrpo.rewards.answers import contains, exact_match, last_answer, searchable_answers
from verl_mtgrpo.rewards.transcript import Transcript

_QUESTION_CHARS = 300
RECOMPUTED = "mt_grpo"
"""The estimator that a validation, on which nothing is trained, is shown with."""


@dataclass(frozen=True)
class Entry:
    """What the catalog keeps of one rollout.

    Attributes:
        file: Index of its file in the catalog.
        start: Byte offset of its line.
        number: The rollout's number within its group.
        rewards: The reward paid at each turn.
        advantages: By turn.
        right: True if its answer is an accepted one; None if there is no accepted answer. Without an ``<answer>``,
            True if the run's own reward function gave 1 or more (``outcome/score``).
        used: True if a tool call was carried out.
        hit: True if an accepted answer is in a result that the model saw; None for yes/no questions.
        errors: The number of tool calls that failed or were not carried out.
        dropped: True if it was left out of the update.
        components: The finite numbers that were logged of it, by name.
    """

    file: int
    start: int
    number: int
    rewards: tuple[float, ...]
    advantages: tuple[float, ...]
    right: bool | None
    used: bool
    hit: bool | None
    errors: int
    dropped: bool
    components: Mapping[str, float]

    @property
    def total(self) -> float:
        """The sum of its rewards."""
        return sum(self.rewards)


@dataclass
class Group:
    """The rollouts of one prompt at one step.

    Attributes:
        step: The training step.
        training: True for training rollouts, False for a validation.
        data_source: The data source of the question.
        question: The beginning of the question.
        answers: The accepted answers.
        estimator: The estimator that computed the advantages.
        settings: Its knobs, as the dump names them.
        question_id: The question's id in its set; empty if unknown.
        entries: The rollouts, in the dump's order.
    """

    step: int
    training: bool
    data_source: str
    question: str
    answers: tuple[str, ...]
    estimator: str
    settings: Mapping[str, Any]
    question_id: str = ""
    entries: list[Entry] = field(default_factory=list[Entry])

    @property
    def spread(self) -> float:
        """The largest distance of an advantage from 0."""
        return max((abs(value) for entry in self.entries for value in entry.advantages), default=0.0)


@dataclass(frozen=True)
class Catalog:
    """All rollouts of the dumps, by group.

    Attributes:
        files: The files that were read.
        groups: Training first, then by step, in the dumps' order.
        estimators: Name -> the knobs that its training rollouts name.
    """

    files: tuple[Path, ...]
    groups: tuple[Group, ...]
    estimators: Mapping[str, Sequence[Mapping[str, Any]]]

    def entries(self) -> Iterator[Entry]:
        """Yield all rollouts."""
        """Every rollout."""
        for group in self.groups:
            yield from group.entries

    def read_groups(self, groups: Iterable[Group]) -> Iterator[tuple[Group, list[DumpedRollout]]]:
        """Yield groups with their rollouts, read from the files with all text and the advantages of the catalog."""
        with ExitStack() as stack:
            opened = [stack.enter_context(path.open("rb")) for path in self.files]
            for group in groups:
                read = [read_located(opened[entry.file], entry.start) for entry in group.entries]
                yield (
                    group,
                    [
                        replace(rollout, advantages=entry.advantages, number=entry.number)
                        for rollout, entry in zip(read, group.entries, strict=True)
                    ],
                )


def read_catalog(files: Sequence[Path], on_rollout: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> Catalog:
    """Read dumps into a catalog.

    Args:
        files: As :func:`~verl_mtgrpo.report.dump_files.dump_files` finds them.
        on_rollout: Wraps the stream of rollouts: a progress bar.

    Raises:
        DataError: A file cannot be read as a dump (:func:`~verl_mtgrpo.report.rollouts.iter_dump`).
    """
    groups: dict[tuple[int, str], Group] = {}
    estimators: dict[str, list[Mapping[str, Any]]] = {}
    located = ((file, *one) for file, path in enumerate(files) for one in iter_located(path))
    for file, start, rollout in on_rollout(located):
        key = (file, rollout.group)
        if key not in groups:
            groups[key] = _group_of(rollout, files[file])
        groups[key].entries.append(_entry_of(rollout, file, start))
        if rollout.estimator and rollout.settings not in estimators.setdefault(rollout.estimator, []):
            estimators[rollout.estimator].append(rollout.settings)
    ordered = sorted(groups.values(), key=lambda group: (not group.training, group.step))
    _number_anew(ordered)
    _recompute([group for group in ordered if not group.training])
    return Catalog(tuple(files), tuple(ordered), estimators)


def _number_anew(groups: Sequence[Group]) -> None:
    """Count the rollouts of a group from 0 if two of them have one number, as those of several trees may."""
    for group in groups:
        if len({entry.number for entry in group.entries}) < len(group.entries):
            group.entries = [replace(entry, number=number) for number, entry in enumerate(group.entries)]


def _recompute(groups: Sequence[Group]) -> None:
    """Give validation rollouts the advantages of MT-GRPO within their groups."""
    rows = [(str(number), entry) for number, group in enumerate(groups) for entry in group.entries]
    advantages = iter(
        turn_advantages(
            [entry.rewards for _, entry in rows],
            [label for label, _ in rows],
            dropped=[entry.dropped for _, entry in rows],
        )
    )
    for group in groups:
        group.entries = [replace(entry, advantages=next(advantages)) for entry in group.entries]


def _group_of(rollout: DumpedRollout, path: Path) -> Group:
    known = rollout.step if rollout.step is not None else int(path.stem) if path.stem.isdecimal() else 0
    question = " ".join(question_of(rollout.transcript).split())
    return Group(
        step=known,
        training=rollout.advantages is not None,
        data_source=rollout.data_source,
        question=question if len(question) <= _QUESTION_CHARS else question[: _QUESTION_CHARS - 1] + "…",
        answers=rollout.answers,
        estimator=rollout.estimator if rollout.advantages is not None else RECOMPUTED,
        settings=rollout.settings,
        question_id=rollout.question_id,
    )


def _entry_of(rollout: DumpedRollout, file: int, start: int) -> Entry:
    accepted = [answer for answer in rollout.answers if answer.strip()]
    turns = rollout.transcript.turns
    calls = [call for turn in turns for call in turn.tool_calls]
    return Entry(
        file=file,
        start=start,
        number=rollout.number,
        rewards=rollout.turn_rewards,
        advantages=rollout.advantages or (),
        right=_is_right(rollout, accepted),
        used=any(call.ok for call in calls),
        hit=_has_hit(rollout.transcript, accepted),
        errors=sum(not call.ok for call in calls),
        dropped=rollout.dropped is not None,
        # One string for the same name in all rollouts: there are many.
        components={sys.intern(name): value for name, value in rollout.components.items() if math.isfinite(value)},
    )


def _is_right(rollout: DumpedRollout, accepted: Sequence[str]) -> bool | None:
    answer = last_answer([turn.text for turn in rollout.transcript.turns])
    score = rollout.components.get("outcome/score")
    if answer is None and score is not None:  # a reward function of the user's may read answers in another form
        return score >= 1.0
    return exact_match(answer, accepted) if accepted else None


def _has_hit(transcript: Transcript, accepted: Sequence[str]) -> bool | None:
    searchable = searchable_answers(accepted)
    if accepted and not searchable:
        return None
    return any(contains(result, searchable) for turn in transcript.turns for result in turn.results)
