"""Read rows already made for verl, as its ``examples/data_preprocess`` and ``mtgrpo data`` write them.

    {data_source, prompt: [{role, content}], reward_model: {ground_truth}, extra_info}

The question is ``extra_info.question`` if there is one (GSM8K's rows, and ours), otherwise the prompt's only
user message. The system message is not kept: the new rows get a new one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

from verl_mtgrpo.errors import DataError
from verl_mtgrpo.rewards.answers import accepted_answers

_ANSWER = "give every row a string or a list of them as reward_model.ground_truth"


class VerlRow(NamedTuple):
    """The content of a row without its prompt."""

    question: str
    answers: tuple[str, ...]
    source: str | None
    id: str | None
    article: str | None


def is_verl_row(fields: dict[str, Any]) -> bool:
    """Return True if a record has verl's columns."""
    return isinstance(fields.get("prompt"), list) and isinstance(fields.get("reward_model"), dict)


def has_number_as_truth(record: Any) -> bool:
    """Return True for a verl row whose ground truth is a number: reading it makes text of it."""
    return isinstance(record, dict) and _is_number(_truth_of(cast("dict[str, Any]", record)))


def _truth_of(fields: dict[str, Any]) -> Any:
    return fields["reward_model"].get("ground_truth") if is_verl_row(fields) else None


def _is_number(truth: Any) -> bool:
    return isinstance(truth, (int, float)) and not isinstance(truth, bool) and math.isfinite(truth)


def read_verl_row(where: str, fields: dict[str, Any]) -> VerlRow:
    """Read one row; raise ``DataError`` if it does not ask exactly one question or has no answer."""
    found = fields.get("extra_info")
    info = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    truth = _truth_of(fields)
    if _is_number(truth):
        truth = str(truth)
    try:
        answers = accepted_answers(truth)
    except DataError as error:
        raise DataError(f"{where}: {error.found}", fix=_ANSWER) from error
    source, id, article = fields.get("data_source"), info.get("id"), info.get("article")
    return VerlRow(
        question=_question(where, fields["prompt"], info),
        answers=answers,
        source=str(source) if source else None,
        id=None if id is None else str(id),
        article=str(article) if article else None,
    )


def _question(where: str, prompt: list[Any], info: dict[str, Any]) -> str:
    if isinstance(info.get("question"), str) and info["question"].strip():
        return info["question"].strip()
    said = [message for message in prompt if message.get("role") != "system"]
    if len(said) == 1 and said[0].get("role") == "user" and isinstance(said[0].get("content"), str):
        return said[0]["content"].strip()
    roles = ", ".join(str(message.get("role")) for message in prompt) or "no message"
    raise DataError(
        f"{where} has the prompt {roles}",
        expected="exactly one user message, which is the question",
        fix="write it this way, or write the question as extra_info.question",
    )
