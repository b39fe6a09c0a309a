"""Turn questions into the parquet rows that verl trains on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from verl_mtgrpo.atomic import atomic_write
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
"""What the prompt explains, for each text format that the model may use (verl's ``multi_turn.format``)."""
DEFAULT_SYSTEM_PROMPT = SYSTEM_PROMPTS["hermes"]
SEARCH_TOOL = "search"
"""The search tool's name in ``config/tools/search_tool.yaml``."""
_BATCH = 10_000


def make_row(
    question: str,
    answers: Sequence[str],
    *,
    index: int,
    split: str,
    id: str,
    data_source: str,
    system_prompt: str | None = DEFAULT_SYSTEM_PROMPT,
    tool_kwargs_for: Sequence[str] = (),
    tool_selection: Sequence[str] = (),
    **extra: Any,
) -> dict[str, Any]:
    """Return one row for verl: prompt, ground truth and origin.

    Args:
        question: The user message of the prompt.
        answers: All accepted answers, at least one.
        index: Position of the row in its file.
        split: ``train`` or ``val``.
        id: The question's id in its source.
        data_source: Name under which verl reports validation metrics.
        system_prompt: System message; None or empty for a prompt without one.
        tool_kwargs_for: Tools whose ``create`` gets the question, its source and its ground truth
            (``extra_info.tools_kwargs``, as in verl's own search example). Other tools are not affected.
        tool_selection: The only tools that this row may call (``extra_info.tool_selection``): verl silently drops the
            others and names that it does not know. Empty for all tools of the run.
        **extra: More keys for ``extra_info``; the same keys and types in every row of a file.
    """
    if isinstance(answers, str) or not answers:
        raise DataError(f"question {id!r} has the answers {answers!r}", expected="a list with at least one")
    prompt = [{"role": "system", "content": system_prompt}] if system_prompt else []
    prompt.append({"role": "user", "content": question})
    truth = {"target": list(answers)}
    info: dict[str, Any] = {"index": index, "split": split, "id": id, "question": question, **extra}
    if tool_kwargs_for:
        given = {"create_kwargs": {"ground_truth": truth, "question": question, "data_source": data_source}}
        info["tools_kwargs"] = dict.fromkeys(tool_kwargs_for, given)
    if tool_selection:
        info["tool_selection"] = list(tool_selection)
    return {
        "data_source": data_source,
        "prompt": prompt,
        "ability": "qa",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": info,
    }


def write_parquet(rows: Iterable[dict[str, Any]], path: Path | str) -> int:
    """Write rows to a parquet file and return how many; never hold more than a few thousand in memory.

    Equal rows give byte-identical files. The file appears under its final name only when it is complete.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    batches = _batches(rows)
    first = next(batches, None)
    if first is None:
        raise DataError(f"there are no rows to write to {path}")
    table = pa.Table.from_pylist(first)
    count = len(first)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataError(f"{path.parent} is a file, or inside one", fix="name a folder for the results") from error
    with atomic_write(path) as draft, pq.ParquetWriter(draft, table.schema) as writer:
        writer.write_table(table)
        for batch in batches:
            writer.write_table(pa.Table.from_pylist(batch, schema=table.schema))
            count += len(batch)
    return count


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    stream = iter(rows)
    while batch := list(islice(stream, _BATCH)):
        yield batch
