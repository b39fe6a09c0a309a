"""What outputs of roles earn: the outcome where nobody reads on, and what leaves a session with a lost output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_mtgrpo.rewards.transcript import Transcript
from verl_mtgrpo.roles.cast import Cast
from verl_mtgrpo.roles.prompts import passed_on

UNREAD = "no output that read it could be scored, so its outcome is unknown"
"""Why an output is dropped although it was written."""
UNFINISHED = "its conversation was not finished"
"""Why a conversation that a limit ended is dropped (``unfinished=mask``)."""


@dataclass(frozen=True)
class OutputOf:
    """What a row says of itself.

    Attributes:
        role: Who wrote it.
        output_id: Its name within its prompt.
        fed_by: The outputs that its prompt contains.
        conversation: The conversation that it is one side of; empty outside of one.
        finished: True if that conversation has ended as it should.
    """

    role: str
    output_id: str
    fed_by: tuple[str, ...] = ()
    conversation: str = ""
    finished: bool = True

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> OutputOf:
        """Read the ``extra_fields`` of a row."""
        feeding = str(fields.get("fed_by") or "")
        return cls(
            role=str(fields.get("role") or ""),
            output_id=str(fields.get("output_id") or ""),
            fed_by=tuple(feeding.split("/")) if feeding else (),
            conversation=str(fields.get("conversation") or ""),
            finished=fields.get("finished", "1") == "1",
        )


def lost_with(outputs: Sequence[OutputOf], reasons: Sequence[str], cast: Cast) -> list[str]:
    """Return why each row of a session is dropped; empty for one that is not.

    An output whose readers are all lost has no outcome, and 0 would be a lie. A conversation is lost as a whole: an
    answer to a plan that was never written is worth nothing that could be compared.

    Args:
        outputs: The rows; outputs come after those that they read.
        reasons: Why each is dropped by itself; empty if it is not.
        cast: The roles.
    """
    found = list(reasons)
    if cast.talks:
        for conversation in {one.conversation for one in outputs}:
            rows = [row for row, one in enumerate(outputs) if one.conversation == conversation]
            why = next((reasons[row] for row in rows if reasons[row]), "")
            if not any(outputs[row].role == cast.answers for row in rows):
                why = why or f"its conversation ended before {cast.answers} spoke"
            if cast.settings.unfinished == "mask" and not outputs[rows[0]].finished:
                why = why or UNFINISHED
            for row in rows:
                found[row] = reasons[row] or why
        return found
    for row in reversed(range(len(outputs))):
        if found[row] or outputs[row].role in cast.scored:
            continue
        name = outputs[row].output_id
        read_by = [other for other, one in enumerate(outputs) if name in one.fed_by]
        if all(found[other] for other in read_by):
            found[row] = UNREAD
    return found


def outcome_of(outputs: Sequence[OutputOf], outcomes: Sequence[float | None], row: int, cast: Cast) -> float:
    """Return the outcome that a row is paid.

    In a chain or graph that is its own, if its role is scored, and otherwise 0: the estimator carries it back through
    ``fed_by``. In a conversation every side earns that of the role that answers, and 0 if the conversation is not
    finished and ``unfinished=zero``.

    Args:
        outputs: The rows of the session.
        outcomes: The outcome of each row of a role that is scored; None for others.
        row: Which row.
        cast: The roles.
    """
    if not cast.talks:
        return outcomes[row] or 0.0
    if cast.settings.unfinished == "zero" and not outputs[row].finished:
        return 0.0
    same = (other for other, one in enumerate(outputs) if one.conversation == outputs[row].conversation)
    return next((found for other in same if (found := outcomes[other]) is not None), 0.0)


def penalties(output: OutputOf, transcript: Transcript, cast: Cast) -> tuple[list[float], float | None]:
    """Return what is taken from each turn's reward, and the share of the turns that have their form.

    The form is that of what the others read: each turn of a conversation, and else the last turn. The share is None
    without a ``pattern``.

    Args:
        output: The row.
        transcript: What was written.
        cast: The roles.
    """
    role, turns = cast.roles[output.role], transcript.turns
    taken = [0.0] * len(turns)
    if not role.pattern or not turns:
        return taken, None
    checked = range(len(turns)) if cast.talks else range(len(turns) - 1, len(turns))
    for turn in checked:
        if not passed_on(role.pattern, turns[turn].text)[1]:
            taken[turn] = role.penalty
    formed = sum(passed_on(role.pattern, turns[turn].text)[1] for turn in checked)
    return taken, formed / len(checked)
