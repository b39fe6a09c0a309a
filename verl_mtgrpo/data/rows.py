"""Questions -> the parquet rows that verl trains on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from verl_mtgrpo.errors import DataError

_SEARCH = (
    "a few words that a passage with the answer would contain; the passages found come back. Search again with other "
    "words if they do not help. When you know the answer, write only the answer, as short as possible"
)
SYSTEM_PROMPTS = {
    "hermes": (
        f"Answer the question with the help of the tool search. Call it with {_SEARCH}, between <answer> and "
        "</answer>, for example <answer>Paris</answer>."
    ),
    "search_r1": (
        "Answer the question with the help of a search engine. Begin every turn with your thoughts between <think> and "
        f"</think>. Then either search by writing <search>query</search>, where query is {_SEARCH}, between <answer> "
        "and </answer>. Passages come back between <information> and </information>. For example: <think>I have to "
        "find the capital of France.</think><search>capital of France</search>, and after the passages <think>They "
        "name it.</think><answer>Paris</answer>."
    ),
    "mtgrpo_xml": (
        "Answer the question with the help of the tool search. Begin every turn with your thoughts between <reasoning> "
        "and </reasoning>. Then either call the tool by writing "
        '<tool>{"name": "search", "args": {"query": "…"}}</tool>, '
        f"where query is {_SEARCH}, between <answer> and </answer>. Passages come back between <result> and </result>. "
        'For example: <reasoning>I have to find the capital of France.</reasoning><tool>{"name": "search", "args": '
        '{"query": "capital of France"}}</tool>, and after the passages <reasoning>They name it.</reasoning>'
        "<answer>Paris</answer>."
    ),
}
"""What the prompt explains, for each text format the model may speak (verl's ``multi_turn.format``)."""
DEFAULT_SYSTEM_PROMPT = SYSTEM_PROMPTS["hermes"]


def make_row(
    question: str,
    answers: Sequence[str],
    *,
    index: int,
    split: str,
    id: str,
    data_source: str,
    system_prompt: str | None = DEFAULT_SYSTEM_PROMPT,
    **extra: Any,
) -> dict[str, Any]:
    """Return one row for verl: prompt, ground truth and where it comes from.

    Args:
        question: The user message of the prompt.
        answers: All accepted answers, at least one.
        index: Position of the row in its file.
        split: ``train`` or ``val``.
        id: The question's id in its source.
        data_source: Name under which verl reports validation metrics.
        system_prompt: System message; None or empty for a prompt without one.
        **extra: More keys for ``extra_info``; the same keys and types in every row of a file.
    """
    if isinstance(answers, str) or not answers:
        raise DataError(f"question {id!r} has the answers {answers!r}, expected a list with at least one")
    prompt = [{"role": "system", "content": system_prompt}] if system_prompt else []
    prompt.append({"role": "user", "content": question})
    return {
        "data_source": data_source,
        "prompt": prompt,
        "ability": "qa",
        "reward_model": {"style": "rule", "ground_truth": {"target": list(answers)}},
        "extra_info": {"index": index, "split": split, "id": id, "question": question, **extra},
    }


def write_parquet(rows: Iterable[dict[str, Any]], path: Path | str) -> int:
    """Write rows to a parquet file and return how many.

    Equal rows give byte-identical files. The file appears under its name only when it is complete.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    listed = list(rows)
    if not listed:
        raise DataError(f"there are no rows to write to {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(pa.Table.from_pylist(listed), draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return len(listed)
