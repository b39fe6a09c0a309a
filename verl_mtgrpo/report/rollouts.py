"""Read dumped rollouts, and compute the advantage of each of their turns.

One reader for verl's two kinds of dumps, validation (``trainer.validation_data_dir``) and training
(``trainer.rollout_data_dir``). Both contain transcripts and turn rewards. Only a training dump has the advantages
that were trained on; validation dumps have none, because nothing is trained on them.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from verl_mtgrpo.errors import DataError
from verl_mtgrpo.rewards.answers import answer_texts
from verl_mtgrpo.rewards.transcript import (
    DROPPED,
    DROPPED_REASON,
    NO_TOKENS,
    NODE_PATH,
    OUTAGE,
    TRANSCRIPT,
    TURN_DENSE,
    TURN_NOTES,
    TURN_REWARDS,
    Transcript,
)

# What a training dump has in addition to TURN_REWARDS; lists are JSON with one number per turn.
TURN_ADVANTAGES, TURN_CREDITED, TURN_VALUES = "turn_advantages", "turn_credited", "turn_values"
TURN_SURPRISAL, TURN_LOG_RATIO, TURN_AFTER = "turn_surprisal", "turn_log_ratio", "turn_values_after"
ESTIMATOR, ESTIMATOR_SETTINGS = "estimator", "estimator_settings"

_OF_TRAINING = {
    **{"advantages": TURN_ADVANTAGES, "credited": TURN_CREDITED, "values": TURN_VALUES},
    **{"surprisal": TURN_SURPRISAL, "log_ratio": TURN_LOG_RATIO, "values_after": TURN_AFTER},
}

# verl numbers the rollouts of a prompt: <prompt>_<rollout>_<output>.
_UID = re.compile(r"(?P<prompt>.*)_(?P<rollout>\d+)_(?P<output>\d+)", re.DOTALL)


@dataclass(frozen=True)
class DumpedRollout:
    """One rollout as verl dumped it.

    Attributes:
        group: The key that rollouts of one prompt share.
        transcript: Messages, tool calls and results.
        turn_rewards: The reward on each turn's last token; the last one includes the outcome.
        answers: The accepted answers.
        components: Named parts of the reward and measurements, as logged.
        data_source: The row's ``data_source``; empty in dumps of versions that did not store it.
        question_id: The question's id in its set, the same in every dump; empty if unknown.
        dropped: Why the rollout was dropped (its search was down, its reward failed); None if it was not.
        number: The rollout's number within its group, as verl counts them.
        step: The training step; 0 before training, None if the row does not say.
        advantages: The mean advantage over each turn's tokens, as trained on; None in a validation.
        credited: The rewards that the estimator saw, which differ from ``turn_rewards`` by a KL penalty in the reward
            and by dense rewards; None in a validation.
        dense: What each dense reward added to each turn, by its name; empty without any.
        values: The critic's value at each turn's first token; None without a critic. ``values_after``: behind its last
            one, from a critic of states and turns.
        surprisal: The mean of -log π over each turn's tokens; None if the estimator does not ask for log-probs.
        log_ratio: The sum of log π - log π_ref over each turn's tokens; None if the estimator does not ask for both.
        pair_id: What both actions of its pair have in common; empty if it is of none. ``pair_side``: whose it is.
        node_path: Which turns it shares with others of its group, as the dump has it; None if it is not of a tree.
        role: The role that wrote it; empty without roles.
        output_id: Its name within its group, by which outputs of roles refer to each other.
        fed_by: The outputs that its prompt contains.
        conversation: The conversation that it is one side of; empty outside of one.
        learnt: False for an output of a frozen role, or one that was written only to find out what another is worth.
        penalty: What was taken from what it was paid because it lacks the form of its role's outputs.
        answering: False for an output of a role that is not the one that answers.
        estimator: verl's name of the estimator; empty in a validation.
        settings: The estimator's knobs.
        notes: What the reward function says that each turn earned its reward for; empty if it says nothing.
        outcome_note: The same of the outcome.
    """

    group: str
    transcript: Transcript
    turn_rewards: tuple[float, ...]
    answers: tuple[str, ...]
    components: Mapping[str, float]
    data_source: str = ""
    question_id: str = ""
    dropped: str | None = None
    number: int = 0
    step: int | None = None
    advantages: tuple[float, ...] | None = None
    credited: tuple[float, ...] | None = None
    dense: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    values: tuple[float, ...] | None = None
    values_after: tuple[float, ...] | None = None
    surprisal: tuple[float, ...] | None = None
    log_ratio: tuple[float, ...] | None = None
    pair_id: str = ""
    pair_side: str = ""
    node_path: str | None = None
    role: str = ""
    output_id: str = ""
    fed_by: tuple[str, ...] = ()
    conversation: str = ""
    learnt: bool = True
    penalty: float = 0.0
    answering: bool = True
    estimator: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()
    outcome_note: str = ""


@dataclass(frozen=True)
class CreditedRollout:
    """A rollout and the advantage of each of its turns within its group."""

    rollout: DumpedRollout
    advantages: tuple[float, ...]

    @property
    def spread(self) -> float:
        """The largest distance of an advantage from 0."""
        return max((abs(value) for value in self.advantages), default=0.0)


def iter_dump(path: Path) -> Iterator[DumpedRollout]:
    """Yield the rollouts of a dump one at a time: with their passages they may not fit in memory.

    Raises:
        DataError: The file is empty, a line is not JSON, or a row lacks the transcript or the turn rewards that our
            reward manager adds.
    """
    for _, rollout in iter_located(path):
        yield rollout


def iter_located(path: Path) -> Iterator[tuple[int, DumpedRollout]]:
    """Yield rollouts as :func:`iter_dump` does, each with its byte offset for :func:`read_located`."""
    seen: set[tuple[str, str, int]] = set()
    at = lines = 0
    # Bytes: text lines also end at U+2028, which verl leaves unescaped inside strings.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            start, at = at, at + len(line)
            if not line.strip():
                continue
            lines += 1
            where = f"{path}, line {number}"
            row = _parse(line, where)
            if _with_others_info(row):
                continue
            # An agent loop with several outputs has one row for each, all with the transcript of the last one; not so
            # those of trees, roles and pairs.
            if not _of_several(row) and (session := _UID.fullmatch(str(row.get("uid", "")))):
                key = (session["prompt"], session["rollout"], hash(str(row.get(TRANSCRIPT))))
                if key in seen:
                    continue
                seen.add(key)
            yield start, _rollout_from_row(row, where)
    if not lines:
        raise DataError(f"{path} is empty: the validation or step that should have written it did not finish")


def read_located(file: BinaryIO, start: int) -> DumpedRollout:
    """Return the rollout whose line begins at byte ``start`` of an open dump."""
    file.seek(start)
    where = f"{file.name}, byte {start}"
    return _rollout_from_row(_parse(file.readline(), where), where)


def read_dump(path: Path) -> list[DumpedRollout]:
    """Return all rollouts of a dump; raise like :func:`iter_dump`."""
    return list(iter_dump(path))


def credit_rollouts(rollouts: Sequence[DumpedRollout], **settings: Any) -> list[CreditedRollout]:
    """Compute the MT-GRPO advantage of each turn of each rollout, within the rollouts of the same prompt.

    Args:
        rollouts: All rollouts of one validation; those of a prompt form a group.
        settings: Knobs of :func:`verl_mtgrpo.credit.mt_grpo` that differ from its defaults.
    """
    # A dropped rollout is in no statistic, as in training.
    advantages = turn_advantages(
        [rollout.turn_rewards for rollout in rollouts],
        [rollout.group for rollout in rollouts],
        dropped=[rollout.dropped is not None for rollout in rollouts],
        **settings,
    )
    return [CreditedRollout(rollout, values) for rollout, values in zip(rollouts, advantages, strict=True)]


def turn_advantages(
    rewards: Sequence[Sequence[float]], groups: Sequence[str], *, dropped: Sequence[bool], **settings: Any
) -> list[tuple[float, ...]]:
    """Compute the MT-GRPO advantages of rollouts from the rewards of their turns; 0 for dropped ones.

    Args:
        rewards: One number per turn, for each rollout.
        groups: The rollouts' prompts.
        dropped: True for rollouts to exclude from all statistics.
        settings: Knobs of :func:`verl_mtgrpo.credit.mt_grpo` that differ from its defaults.
    """
    if not rewards:
        return []
    # Late: torch takes seconds to import, and reading does not need it.
    import torch

    from verl_mtgrpo.credit import mt_grpo

    # One generated token per turn and one observation token after it are all that the estimator needs.
    width = 2 * max(1, *map(len, rewards))
    rewards_BT = torch.zeros(len(rewards), width)
    mask_BT = torch.zeros(len(rewards), width)
    for row, (paid, out) in enumerate(zip(rewards, dropped, strict=True)):
        rewards_BT[row, : 2 * len(paid) : 2] = torch.tensor(paid)
        mask_BT[row, : 2 * len(paid) : 2] = float(not out)
    advantages_BT, _ = mt_grpo(rewards_BT, mask_BT, groups, **settings)
    return [tuple(values[: len(paid)]) for paid, values in zip(rewards, advantages_BT[:, ::2].tolist(), strict=True)]


def pick_rollouts(credited: Sequence[CreditedRollout], count: int) -> list[CreditedRollout]:
    """Pick rollouts that show how credit works: the two extremes of the groups that differ most.

    Groups in which every rollout was paid the same teach nothing and come last.
    """
    groups: dict[str, list[CreditedRollout]] = defaultdict(list)
    for item in credited:
        groups[item.rollout.group].append(item)
    ordered = sorted(groups.values(), key=lambda group: -max(item.spread for item in group))
    picked: list[CreditedRollout] = []
    for group in ordered:
        ranked = sorted(group, key=lambda item: -sum(item.rollout.turn_rewards))
        # Both extremes of a group that differs; one rollout represents a group of equals.
        picked += [ranked[0], ranked[-1]] if ranked[0].spread > 0 and len(ranked) > 1 else ranked[:1]
    return picked[:count]


def question_of(transcript: Transcript) -> str:
    """Return the last user message, as earlier ones are instructions; empty if there is none."""
    asked = [message for message in transcript.prompt if message.get("role") == "user"]
    return _text(asked[-1].get("content")) if asked else ""


def _text(content: object) -> str:
    """Return a message's text; of a message with several parts, such as images, the parts that are text."""
    if isinstance(content, (list, tuple)):
        return " ".join(str(part["text"]) for part in content if isinstance(part, Mapping) and "text" in part)
    return "" if content is None else str(content)


def _parse(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{where}: not JSON ({error}): the file is damaged, or the run that wrote it was killed there",
            fix="remove that line",
        ) from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: is a JSON {type(row).__name__}", expected="an object with the fields of one rollout")
    return row


def _rollout_from_row(row: Mapping[str, Any], where: str) -> DumpedRollout:
    if TRANSCRIPT not in row:
        raise DataError(
            f"{where}: is a rollout without a transcript",
            expected=(
                "a dump of a run with the agent loop mtgrpo_tool_agent and the reward manager mtgrpo: of its "
                "validations (trainer.validation_data_dir), or of its training rollouts (trainer.rollout_data_dir), "
                "which contain transcripts and credit with trainer.v1.trainer_mode=mtgrpo_sync (or another of this "
                "package), but only text and score with verl's own trainers"
            ),
        )
    try:
        transcript = Transcript.from_dict(json.loads(row[TRANSCRIPT]))
        paid = _numbers(row[TURN_REWARDS], len(transcript.turns), "turn rewards")
        of_training = {
            name: _numbers(row[key], len(transcript.turns), name)
            for name, key in _OF_TRAINING.items()
            if row.get(key) is not None
        }
        dense = _dense(row.get(TURN_DENSE), len(transcript.turns))
        settings = dict(json.loads(row.get(ESTIMATOR_SETTINGS) or "{}"))
        notes, outcome_note = _notes(row.get(TURN_NOTES), len(transcript.turns))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: no usable transcript ({type(error).__name__}: {error})",
            expected="what the reward manager mtgrpo of this package wrote",
        ) from error
    uid, step, path = str(row.get("uid", "")), row.get("step"), row.get(NODE_PATH)
    feeding = str(row.get("fed_by") or "")
    session = _UID.fullmatch(uid)
    return DumpedRollout(
        group=session["prompt"] if session else uid,
        transcript=transcript,
        turn_rewards=paid,
        answers=_answers(row.get("gts")),
        components=_components(row),
        data_source=str(row.get("data_source") or ""),
        question_id=str(row.get("question_id") or ""),
        dropped=_why_dropped(row, transcript),
        number=int(session["output" if _of_several(row) else "rollout"]) if session else 0,
        step=step if isinstance(step, int) else None,
        pair_id=str(row.get("pair_id") or ""),
        pair_side=str(row.get("pair_side") or ""),
        node_path=None if path is None else str(path),
        role=str(row.get("role") or ""),
        output_id=str(row.get("output_id") or ""),
        fed_by=tuple(feeding.split("/")) if feeding else (),
        conversation=str(row.get("conversation") or ""),
        learnt=row.get("learnt") is not False,
        penalty=_number(row.get(f"role/{row.get('role')}/penalty")),
        answering=row.get("answering") != "",
        estimator=str(row.get(ESTIMATOR) or ""),
        settings=settings,
        notes=notes,
        outcome_note=outcome_note,
        dense=dense,
        **of_training,
    )


def _of_several(row: Mapping[str, Any]) -> bool:
    """Return True if each output of the row's session is a rollout of its own: of a tree, a role or a pair."""
    return row.get(NODE_PATH) is not None or bool(row.get("role") or row.get("pair_id"))


def _with_others_info(row: Mapping[str, Any]) -> bool:
    """Return True for an output of a role with the rewards of another one.

    In a validation verl dumps every output of a session, all with what was said of the last one, the answer.
    """
    session, number = _UID.fullmatch(str(row.get("uid", ""))), str(row.get("output_id") or "").rpartition(":")[2]
    return bool(row.get("role") and session and number.isdecimal() and number != session["output"])


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0


def _numbers(text: Any, turns: int, what: str) -> tuple[float, ...]:
    """Parse a JSON list with one finite number per turn."""
    return _one_per_turn(json.loads(text), turns, what)


def _dense(text: Any, turns: int) -> dict[str, tuple[float, ...]]:
    """Parse what dense rewards added to each turn."""
    said = {} if text is None else dict(json.loads(text))
    return {str(name): _one_per_turn(values, turns, f"dense rewards {name}") for name, values in said.items()}


def _one_per_turn(listed: Sequence[Any], turns: int, what: str) -> tuple[float, ...]:
    values = tuple(float(value) for value in listed)
    if len(values) != turns:
        raise ValueError(f"{len(values)} {what} for {turns} turns")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{what} {list(values)}, expected finite numbers")
    return values


def _notes(text: Any, turns: int) -> tuple[tuple[str, ...], str]:
    """Parse the notes of a rollout: one text per turn, and one of the outcome."""
    if text is None:
        return (), ""
    said = json.loads(text)
    notes = tuple(map(str, said["turns"]))
    if len(notes) != turns:
        raise ValueError(f"{len(notes)} notes for {turns} turns")
    return notes, str(said["outcome"])


def _components(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in row.items()
        if name.startswith(("turn/", "tool/", "outcome/", "judge/", "env/")) and isinstance(value, (int, float))
    }


def _why_dropped(row: Mapping[str, Any], transcript: Transcript) -> str | None:
    ended = {OUTAGE: "the search was down", NO_TOKENS: "the rollout server returned no token"}.get(
        transcript.end_reason
    )
    if not row.get(DROPPED) and ended is None:
        return None
    return str(row.get(DROPPED_REASON) or ended or "the search was down")


def _answers(ground_truth: object) -> tuple[str, ...]:
    target = ground_truth.get("target", ()) if isinstance(ground_truth, Mapping) else ground_truth
    listed = target if isinstance(target, (list, tuple)) else [target]
    return tuple(text for answer in listed for text in answer_texts(answer))
