"""Decoded rollouts with the reward and the advantage of each turn, for a terminal."""

from __future__ import annotations

import json
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_mtgrpo.errors import DataError
from verl_mtgrpo.rewards.transcript import TRANSCRIPT, TURN_REWARDS, Transcript, Turn

_WIDTH = 100
_RESULT_CHARS = 240


@dataclass(frozen=True)
class DumpedRollout:
    """One validation rollout as verl dumped it (``trainer.validation_data_dir``).

    Attributes:
        group: Which rollouts share this one's prompt.
        transcript: What was said and called.
        turn_rewards: The reward on each turn's last token; the last one includes the outcome.
        answers: The accepted answers.
        components: Named parts of the reward and measurements, as logged.
    """

    group: str
    transcript: Transcript
    turn_rewards: tuple[float, ...]
    answers: tuple[str, ...]
    components: Mapping[str, float]


@dataclass(frozen=True)
class CreditedRollout:
    """A rollout and the advantage of each of its turns within its group."""

    rollout: DumpedRollout
    advantages: tuple[float, ...]

    @property
    def spread(self) -> float:
        """How far the advantages are from 0 at most."""
        return max((abs(value) for value in self.advantages), default=0.0)


def read_dump(path: Path) -> list[DumpedRollout]:
    """Read a validation dump.

    Raises:
        DataError: A row lacks the transcript or the turn rewards that our reward manager adds.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [_rollout_from_row(row, path) for row in rows]


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
            mask_BT[row, 2 * turn] = 1
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


def _rollout_from_row(row: Mapping[str, Any], path: Path) -> DumpedRollout:
    try:
        transcript = Transcript.from_dict(json.loads(row[TRANSCRIPT]))
        rewards = tuple(float(value) for value in json.loads(row[TURN_REWARDS]))
        if len(rewards) != len(transcript.turns):
            raise ValueError(f"{len(rewards)} turn rewards for {len(transcript.turns)} turns")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: a row has no usable transcript ({type(error).__name__}: {error}); expected a validation "
            "dump of a run with the agent loop mtgrpo_tool_agent and the reward manager mtgrpo"
        ) from error
    components = {
        name: float(value)
        for name, value in row.items()
        if name.startswith(("turn/", "tool/", "outcome/")) and isinstance(value, (int, float))
    }
    return DumpedRollout(
        # verl numbers the rollouts of a prompt: <prompt>_<rollout>_<output>.
        group=str(row["uid"]).rsplit("_", 2)[0],
        transcript=transcript,
        turn_rewards=rewards,
        answers=_answers(row.get("gts")),
        components=components,
    )


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
