"""Dumped rollouts: reading them, and showing the reward and the advantage of each turn on a terminal."""

from __future__ import annotations

import json
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_mtgrpo.errors import DataError
from verl_mtgrpo.rewards.transcript import DROPPED, DROPPED_REASON, OUTAGE, TRANSCRIPT, TURN_REWARDS, Transcript, Turn

_WIDTH = 100
_RESULT_CHARS = 240
# verl numbers the rollouts of a prompt: <prompt>_<rollout>_<output>.
_UID = re.compile(r"(?P<prompt>.+)_(?P<rollout>\d+)_\d+")


@dataclass(frozen=True)
class DumpedRollout:
    """One validation rollout as verl dumped it (``trainer.validation_data_dir``).

    Attributes:
        group: Which rollouts share this one's prompt.
        transcript: What was said and called.
        turn_rewards: The reward on each turn's last token; the last one includes the outcome.
        answers: The accepted answers.
        components: Named parts of the reward and measurements, as logged.
        data_source: The row's ``data_source``; empty in dumps of versions that did not write it.
        question_id: The question's id in its set, the same in every dump; empty if unknown.
        dropped: Why the rollout was taken out (its search was down, a reward that failed); None if it was not.
    """

    group: str
    transcript: Transcript
    turn_rewards: tuple[float, ...]
    answers: tuple[str, ...]
    components: Mapping[str, float]
    data_source: str = ""
    question_id: str = ""
    dropped: str | None = None


@dataclass(frozen=True)
class CreditedRollout:
    """A rollout and the advantage of each of its turns within its group."""

    rollout: DumpedRollout
    advantages: tuple[float, ...]

    @property
    def spread(self) -> float:
        """How far the advantages are from 0 at most."""
        return max((abs(value) for value in self.advantages), default=0.0)


def iter_dump(path: Path) -> Iterator[DumpedRollout]:
    """The rollouts of a validation dump, one at a time: with their passages they fill the memory of a machine.

    Raises:
        DataError: The file is empty, a line is no JSON, or a row lacks the transcript or the turn rewards that our
            reward manager adds.
    """
    seen: set[str] = set()
    lines = 0
    # Bytes: a line of text may also end at a character inside a string that verl leaves unescaped (U+2028).
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            lines += 1
            where = f"{path}, line {number}"
            row = _parse(line, where)
            group = uid = str(row.get("uid", ""))
            if session := _UID.fullmatch(uid):
                # An agent loop with several outputs has a row for each, all with the transcript of the last one.
                key = f"{session['prompt']}_{session['rollout']}"
                if key in seen:
                    continue
                seen.add(key)
                group = session["prompt"]
            yield _rollout_from_row(row, group, where)
    if not lines:
        raise DataError(f"{path} is empty: the validation that should have written it did not end")


def read_dump(path: Path) -> list[DumpedRollout]:
    """All rollouts of a validation dump; errors as :func:`iter_dump`."""
    return list(iter_dump(path))


def credit_rollouts(rollouts: Sequence[DumpedRollout], **settings: Any) -> list[CreditedRollout]:
    """The MT-GRPO advantage of each turn of each rollout, within the rollouts of the same prompt.

    Args:
        rollouts: All rollouts of one validation; those of a prompt form a group.
        settings: Knobs of :func:`verl_mtgrpo.credit.mt_grpo` that differ from its defaults.
    """
    # torch takes seconds to import, and only this function of the report needs it.
    import torch

    from verl_mtgrpo.credit import mt_grpo

    if not rollouts:
        return []
    # One generated token for a turn and one observation token after it say all that the estimator uses.
    width = 2 * max(1, *(len(rollout.turn_rewards) for rollout in rollouts))
    rewards_BT = torch.zeros(len(rollouts), width)
    mask_BT = torch.zeros(len(rollouts), width)
    for row, rollout in enumerate(rollouts):
        for turn, reward in enumerate(rollout.turn_rewards):
            rewards_BT[row, 2 * turn] = reward
            # A dropped rollout is in no statistic, as in training.
            mask_BT[row, 2 * turn] = float(rollout.dropped is None)
    advantages_BT, _ = mt_grpo(rewards_BT, mask_BT, [rollout.group for rollout in rollouts], **settings)
    by_turn = advantages_BT[:, ::2].tolist()
    return [
        CreditedRollout(rollout, tuple(values[: len(rollout.turn_rewards)]))
        for rollout, values in zip(rollouts, by_turn, strict=True)
    ]


def pick_rollouts(credited: Sequence[CreditedRollout], count: int) -> list[CreditedRollout]:
    """Rollouts that show what credit does: the two ends of the groups whose rollouts differ most.

    Groups in which every rollout was paid the same teach nothing and come last.
    """
    groups: dict[str, list[CreditedRollout]] = defaultdict(list)
    for item in credited:
        groups[item.rollout.group].append(item)
    ordered = sorted(groups.values(), key=lambda group: -max(item.spread for item in group))
    picked: list[CreditedRollout] = []
    for group in ordered:
        ranked = sorted(group, key=lambda item: -sum(item.rollout.turn_rewards))
        # Both ends of a group that differs; one rollout stands for a group of equals.
        picked += [ranked[0], ranked[-1]] if ranked[0].spread > 0 and len(ranked) > 1 else ranked[:1]
    return picked[:count]


def render_rollout(credited: CreditedRollout) -> str:
    """One rollout as text: question, then each turn with its reward, its advantage and what tools said."""
    rollout = credited.rollout
    lines = [f"question: {_question(rollout.transcript)}", f"accepted: {' | '.join(rollout.answers)}"]
    triples = zip(rollout.transcript.turns, rollout.turn_rewards, credited.advantages, strict=True)
    for number, (turn, reward, advantage) in enumerate(triples, start=1):
        lines.append(f"  turn {number}   reward {reward:+.2f}   advantage {advantage:+.2f}")
        lines += _turn_lines(turn)
    parts = [f"{name} {value:g}" for name, value in sorted(rollout.components.items())]
    lines += _wrap("  measured: " + ", ".join(parts), indent="    ")
    return "\n".join(lines)


def _turn_lines(turn: Turn) -> list[str]:
    lines = _wrap("    model: " + _one_line(turn.text), indent="      ")
    for call in turn.tool_calls:
        said = call.result if call.ok else f"[{call.error_kind}] {call.result}"
        unseen = "" if call.seen else " (did not fit, the model never saw it)"
        result = textwrap.shorten(_one_line(said), _RESULT_CHARS, placeholder=" […]")
        lines += _wrap(f"    {call.name}{unseen}: {result}", indent="      ")
    return lines


def _question(transcript: Transcript) -> str:
    """The last thing the user side said: what stands before it is instruction."""
    asked = [message for message in transcript.prompt if message.get("role") == "user"]
    return _one_line(str(asked[-1].get("content", ""))) if asked else "(no user message)"


def _parse(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{where}: not JSON ({error}); the file is damaged, or the run that wrote it was killed there"
        ) from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON {type(row).__name__}, expected an object with the fields of one rollout")
    return row


def _rollout_from_row(row: Mapping[str, Any], group: str, where: str) -> DumpedRollout:
    if TRANSCRIPT not in row:
        raise DataError(
            f"{where}: a rollout without transcript; expected a validation dump (trainer.validation_data_dir) of a run "
            "with the agent loop mtgrpo_tool_agent and the reward manager mtgrpo. Dumps of training rollouts "
            "(trainer.rollout_data_dir) hold none: verl writes text and score only there"
        )
    try:
        transcript = Transcript.from_dict(json.loads(row[TRANSCRIPT]))
        rewards = tuple(float(value) for value in json.loads(row[TURN_REWARDS]))
        if len(rewards) != len(transcript.turns):
            raise ValueError(f"{len(rewards)} turn rewards for {len(transcript.turns)} turns")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: no usable transcript ({type(error).__name__}: {error}); expected what the reward manager "
            "mtgrpo of this package wrote"
        ) from error
    components = {
        name: float(value)
        for name, value in row.items()
        if name.startswith(("turn/", "tool/", "outcome/")) and isinstance(value, (int, float))
    }
    return DumpedRollout(
        group=group,
        transcript=transcript,
        turn_rewards=rewards,
        answers=_answers(row.get("gts")),
        components=components,
        data_source=str(row.get("data_source") or ""),
        question_id=str(row.get("question_id") or ""),
        dropped=_why_dropped(row, transcript),
    )


def _why_dropped(row: Mapping[str, Any], transcript: Transcript) -> str | None:
    if not row.get(DROPPED) and transcript.end_reason != OUTAGE:
        return None
    return str(row.get(DROPPED_REASON) or "the search was down")


def _answers(ground_truth: object) -> tuple[str, ...]:
    target = ground_truth.get("target", ()) if isinstance(ground_truth, Mapping) else ground_truth
    if isinstance(target, (list, tuple)):
        return tuple(str(answer) for answer in target)
    return () if target is None else (str(target),)


def _one_line(text: str) -> str:
    """On one line, and without characters that a terminal would obey."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in " ".join(text.split())
    )


def _wrap(text: str, *, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_long_words=True) or [text]
