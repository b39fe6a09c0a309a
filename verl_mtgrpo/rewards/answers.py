"""Answers: taking them out of text and comparing them with the accepted ones.

Two ways of comparing. The paper's v1 code compares lower-cased, stripped text and nothing more
(SiliangZeng/Multi-Turn-RL-Agent @7dbdd08, verifiers/rubrics/triviaqa_rubric.py): :func:`is_exact` and
:func:`mentions`. Evaluation of question answering normalises first, as SQuAD does (Rajpurkar et al.,
arXiv 1606.05250; the same rules in Search-R1): :func:`exact_match`, :func:`contains` and :func:`f1`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from verl_mtgrpo.errors import DataError

OPEN, CLOSE = "<answer>", "</answer>"

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


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


def normalize(text: str) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation, no English articles, single spaces.

    Numbers and other scripts stay as they are; accents are kept ("Malmö" is not "Malmo").
    """
    without_punctuation = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", without_punctuation).split())


def exact_match(answer: str | None, accepted: Sequence[str]) -> bool:
    """True if the normalised answer equals a normalised accepted one; an answer that normalises to nothing does not."""
    normal = normalize(answer or "")
    return bool(normal) and any(normal == normalize(one) for one in accepted)


def contains(text: str | None, accepted: Sequence[str]) -> bool:
    """True if a normalised accepted answer occurs in the normalised text as a substring (Search-R1's ``subem``).

    Substring and not words: scripts without spaces have none. So "7" occurs in "1978".
    """
    normal_text = normalize(text or "")
    return any(normal in normal_text for normal in map(normalize, accepted) if normal)


def f1(answer: str | None, accepted: Sequence[str]) -> float:
    """Best word-overlap F1 with an accepted answer, from 0 to 1, over normalised words with their counts."""
    words = normalize(answer or "").split()
    return max((_f1(words, normalize(one).split()) for one in accepted), default=0.0)


def _f1(words: Sequence[str], gold: Sequence[str]) -> float:
    common = sum((Counter(words) & Counter(gold)).values())
    return 2 * common / (len(words) + len(gold)) if common else 0.0


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
