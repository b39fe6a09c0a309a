"""Check that the rows of a question file have the layout that verl expects, or report that they are not rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from verl_mtgrpo.data.questions import read_questions
from verl_mtgrpo.doctor.findings import Finding
from verl_mtgrpo.errors import DataError, NoAnswersError


def as_table(rows: Sequence[Any]) -> list[Any]:
    """Return rows with the same columns each, None where one has no value, as the datasets library does."""
    if not all(isinstance(row, dict) for row in rows):
        return list(rows)
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in columns} for row in rows]


def shape_problem(rows: Sequence[Mapping[str, Any]], prompt: str, mappings: Sequence[str]) -> str | None:
    """Describe the first problem that verl or the rewards would have with one of the rows; return None without one.

    verl 0.9.1 reads ``extra_info`` and ``reward_model`` as mappings and ``tool_selection`` name by name
    (``utils/dataset/rl_dataset.py``, ``experimental/agent_loop/tool_agent_loop.py``).

    Args:
        rows: The first rows.
        prompt: Name of the column of messages.
        mappings: Columns that are read as mappings, if a row has them.
    """
    for number, row in enumerate(rows, start=1):
        if not is_chat(row.get(prompt)):
            held = _shown(row.get(prompt))
            return (
                f"row {number}: the column {prompt} holds {held}, which is not a list of messages with role and content"
            )
        for name in mappings:
            if row.get(name) is not None and not isinstance(row[name], Mapping):
                return f"row {number}: {name} is {_shown(row[name])}, expected a mapping"
        chosen = (row.get("extra_info") or {}).get("tool_selection")
        if chosen is not None and (isinstance(chosen, str) or not isinstance(chosen, Iterable)):
            return f"row {number}: extra_info.tool_selection is {_shown(chosen)}, expected a list of tool names"
    return None


def is_chat(prompt: Any) -> bool:
    """Return True if the prompt is a list of messages, which may lack content if they call a tool."""
    return isinstance(prompt, list) and bool(prompt) and all(map(_is_message, prompt))


def _is_message(message: Any) -> bool:
    if not isinstance(message, Mapping) or "role" not in message:
        return False
    return message.get("content") is None or isinstance(message["content"], str | list)


def question_set(check: str, key: str, file: str) -> Finding | None:
    """Return a finding if the file is a question set that was not turned into rows for verl; otherwise None."""
    train = key == "data.train_files"
    command = f"mtgrpo data {file}" if train else f"mtgrpo data QUESTIONS --test {file}"
    fix = f"turn it into rows: {command} --out DIR, then set {key}=DIR/{'train' if train else 'val'}.parquet"
    try:
        next(read_questions(file))
    except NoAnswersError:
        message = f"{file} is a question set without a public answer, not a file of rows for verl"
        return Finding(
            check, "fail", message, "use a split of the set that has answers, and turn it into rows: mtgrpo data"
        )
    except DataError:
        return None
    return Finding(check, "fail", f"{file} is a question set, not a file of rows for verl", fix)


def _shown(value: Any) -> str:
    return repr(value)[:80]
