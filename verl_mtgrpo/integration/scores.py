"""Scores of a session's rows, and how those of several roles depend on each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from verl_mtgrpo.rewards import Transcript, TurnRewards, pay
from verl_mtgrpo.roles import Cast
from verl_mtgrpo.roles.rewards import OutputOf, lost_with, outcome_of, penalties


@dataclass(frozen=True)
class Score:
    """Rewards of an output, what each turn is paid, and why it is dropped; without rewards if it is.

    Attributes:
        rewards: The rewards.
        paid: What each turn is paid.
        reason: Why it is dropped; empty if it is not.
        measured: Further numbers of the row.
        scored: True if the outcome is its own.
    """

    rewards: TurnRewards | None
    paid: list[float]
    reason: str
    measured: Mapping[str, float | None] = field(default_factory=dict[str, "float | None"])
    scored: bool = True


async def score_roles(
    fields: Sequence[Mapping[str, Any]],
    transcripts: Sequence[Transcript],
    cast: Cast,
    score: Callable[[int, str, bool], Awaitable[Score]],
    how: str,
) -> list[Score]:
    """Return the scores of a session's outputs of roles.

    Args:
        fields: The ``extra_fields`` of each row.
        transcripts: What was written.
        cast: The roles.
        score: Scores a row by itself, given its number, the name of the function of its role's turn rewards, and
            whether its outcome counts.
        how: ``reward.turn.pay``.
    """
    outputs = [OutputOf.of(one) for one in fields]
    scored = [one.role in cast.scored for one in outputs]
    scores = await asyncio.gather(
        *(score(row, cast.roles[one.role].reward, scored[row]) for row, one in enumerate(outputs))
    )
    reasons = lost_with(outputs, [one.reason for one in scores], cast)
    outcomes = [
        one.rewards.outcome if own and one.rewards is not None else None
        for one, own in zip(scores, scored, strict=True)
    ]
    found = list[Score]()
    for row, (output, one, transcript) in enumerate(zip(outputs, scores, transcripts, strict=True)):
        name = f"role/{output.role}"
        if reasons[row] or one.rewards is None:
            nothing = [0.0] * len(transcript.turns)
            found.append(Score(None, nothing, reasons[row], {f"{name}/dropped": 1.0}, scored[row]))
            continue
        rewards = replace(one.rewards, outcome=outcome_of(outputs, outcomes, row, cast))
        taken, form = penalties(output, transcript, cast)
        paid = [a - b for a, b in zip(pay(rewards, len(transcript.turns), how), taken, strict=True)]
        measured: dict[str, float | None] = {
            f"{name}/reward": sum(paid),
            f"{name}/turns": float(len(transcript.turns)),
            f"{name}/format": form,
            f"{name}/penalty": None if form is None else sum(taken),
            f"{name}/finished": float(output.finished) if cast.talks else None,
            f"{name}/dropped": 0.0,
        }
        if not cast.roles[output.role].tools:
            measured["tool/used"] = None  # it has none to use
        found.append(Score(rewards, paid, "", measured, scored[row] or cast.talks))
    return found
