"""Dumps as a table with one row per turn: for pandas, for spreadsheets, for the tables of wandb and trackio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_mtgrpo.report.catalog import Catalog, Entry, Group, read_catalog
from verl_mtgrpo.report.rollouts import DumpedRollout, question_of
from verl_mtgrpo.report.why import Why, explain_group
from verl_mtgrpo.text import encodable

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "step": "The training step; 0 before training.",
    "training": "True for training rollouts, False for a validation, whose advantages are recomputed as `mt_grpo`.",
    "data_source": "The data source of the question.",
    "group": "The number of the group: the rollouts of one prompt at one step.",
    "question_id": "The question's id in its set; empty if unknown.",
    "question": "The question.",
    "answers": "The accepted answers, separated by ` | `.",
    "rollout": "The rollout's number within its group.",
    "turn": "The turn, counted from 1.",
    "turns": "The number of turns of the rollout.",
    "text": "What the model wrote in this turn.",
    "tools": "The tools that it called in this turn, separated by `, `.",
    "arguments": "Their arguments, one line each.",
    "results": "What they answered, one after the other.",
    "tool_ok": "True if all calls of the turn were carried out; empty without a call.",
    "reward": "What the turn was paid; of the last turn with the outcome.",
    "credited": "The same as the estimator saw it, with a KL penalty in the reward and dense rewards; empty in a "
    "validation.",
    "dense": "What dense rewards added to it in all; empty without any.",
    "value": "The critic's value at the turn's first token; empty without a critic.",
    "advantage": "The turn's advantage.",
    "why": "How it comes about, in words.",
    "total": "What the whole rollout was paid.",
    "right": "True if the rollout's answer is an accepted one; empty if there is none.",
    "dropped": "True if the rollout was left out of the update.",
    "end": "Why the rollout ended.",
    "estimator": "The estimator that computed the advantage.",
}
"""Column -> what it holds."""


def read_turns(files: Sequence[Path]) -> pd.DataFrame:
    """Return the turns of dumps as a data frame with the columns of :data:`COLUMNS`.

    Args:
        files: As :func:`~verl_mtgrpo.report.dump_files.dump_files` finds them. Their text has to fit in memory.

    Raises:
        DataError: A file cannot be read as a dump.
    """
    import pandas as pd

    return pd.DataFrame(iter_turns(read_catalog(files)), columns=list(COLUMNS))


def iter_turns(catalog: Catalog) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table, group by group."""
    for number, (group, rollouts) in enumerate(catalog.read_groups(catalog.groups)):
        why = explain_group(rollouts, [entry.advantages for entry in group.entries], group.estimator)
        for entry, rollout, reasons in zip(group.entries, rollouts, why, strict=True):
            for turn in range(len(rollout.transcript.turns)):
                row = {"group": number, **_row(group, entry, rollout, turn, reasons[turn])}
                yield {name: encodable(value) if isinstance(value, str) else value for name, value in row.items()}


def _row(group: Group, entry: Entry, rollout: DumpedRollout, turn: int, why: Why) -> dict[str, Any]:
    said = rollout.transcript.turns[turn]
    calls = said.tool_calls
    return {
        "step": group.step,
        "training": group.training,
        "data_source": group.data_source,
        "question_id": group.question_id,
        "question": question_of(rollout.transcript),
        "answers": " | ".join(group.answers),
        "rollout": entry.number,
        "turn": turn + 1,
        "turns": len(rollout.transcript.turns),
        "text": said.text,
        "tools": ", ".join(call.name for call in calls),
        "arguments": "\n".join(call.arguments for call in calls),
        "results": "\n".join(call.result for call in calls),
        "tool_ok": all(call.ok for call in calls) if calls else None,
        "reward": rollout.turn_rewards[turn],
        "credited": rollout.credited[turn] if rollout.credited else None,
        "dense": sum(values[turn] for values in rollout.dense.values()) if rollout.dense else None,
        "value": rollout.values[turn] if rollout.values else None,
        "advantage": entry.advantages[turn],
        "why": why.words,
        "total": entry.total,
        "right": entry.right,
        "dropped": entry.dropped,
        "end": rollout.transcript.end_reason,
        "estimator": group.estimator,
    }
