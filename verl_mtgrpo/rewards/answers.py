"""Answers: taking them out of text and comparing them with the accepted ones.

The paper's v1 code compares lower-cased, stripped text and nothing more (SiliangZeng/Multi-Turn-RL-Agent
@7dbdd08, verifiers/rubrics/triviaqa_rubric.py); so do these functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verl_mtgrpo.errors import DataError

OPEN, CLOSE = "<answer>", "</answer>"


def last_answer(texts: Sequence[str]) -> str | None:
    """The content of the last closed ``<answer>`` in what the model wrote, stripped; None without one.

    Args:
        texts: The model's turns, in order. Tool results must not be among them.
    """
    for text in reversed(texts):
        end = text.rfind(CLOSE)
        start = text.rfind(OPEN, 0, end) if end >= 0 else -1
        if start >= 0:
            return text[start + len(OPEN) : end].strip()
    return None


def is_exact(answer: str | None, accepted: Sequence[str]) -> bool:
    """True if the answer equals an accepted one, case and outer white space aside."""
    return answer is not None and _fold(answer) in {_fold(one) for one in accepted if _fold(one)}


def mentions(text: str | None, accepted: Sequence[str]) -> bool:
    """True if an accepted answer occurs in the text as a substring, case aside."""
    if text is None:
        return False
    folded = _fold(text)
    return any(_fold(one) in folded for one in accepted if _fold(one))


def accepted_answers(ground_truth: Any) -> tuple[str, ...]:
    """The accepted answers in a verl row's ``reward_model.ground_truth``.

    Takes ``{"target": [...]}`` (Search-R1's layout), a list of strings, or one string.

    Raises:
        DataError: it is none of these, or holds no answer.
    """
    found = ground_truth.get("target") if isinstance(ground_truth, Mapping) else ground_truth
    if isinstance(found, str):
        found = [found]
    try:
        answers = tuple(str(one) for one in found)  # type: ignore[union-attr]
    except TypeError:
        answers = ()
    if not any(_fold(one) for one in answers):
        raise DataError(
            f"reward_model.ground_truth is {ground_truth!r}, expected {{'target': [accepted answers]}}, a list "
            "of strings or a string; `mtgrpo data` writes rows of this layout"
        )
    return answers


def _fold(text: str) -> str:
    return text.strip().lower()
