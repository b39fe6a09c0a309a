"""Questions -> the parquet rows that verl trains on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from verl_mtgrpo.errors import DataError

DEFAULT_SYSTEM_PROMPT = (
    "Answer the question with the help of the tool search. Call it with a few words that a passage with "
    "the answer would contain; it returns passages. Search again with other words if they do not help. "
    "When you know the answer, write only the answer, as short as possible, between <answer> and "
    "</answer>, for example <answer>Paris</answer>."
)


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
