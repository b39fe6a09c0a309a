"""Extract answers from text and compare them with the accepted ones.

There are two ways of comparing. The paper's v1 code only lower-cases and strips the text
(SiliangZeng/Multi-Turn-RL-Agent @7dbdd08, verifiers/rubrics/triviaqa_rubric.py): :func:`is_exact` and
:func:`mentions`. Evaluation of question answering normalises first, as SQuAD does (Rajpurkar et al.,
arXiv 1606.05250; the same rules in Search-R1): :func:`exact_match`, :func:`contains` and :func:`f1`.

Both codes look for an accepted answer as a substring, so "no" is in "Norway" and "7" in "1978". Here an answer that is
yes or no, or that has fewer than 3 characters in SQuAD's normal form, has to occur as a whole word. In a search result,
a yes or no means nothing at all, so :func:`searchable_answers` leaves it out. Every reward, metric and report that
counts hits follows these two rules.

All functions that take accepted answers also take a string, as a single answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from verl_mtgrpo.errors import DataError

OPEN, CLOSE = "<answer>", "</answer>"

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_YES_NO = {True: ("yes", "true"), False: ("no", "false")}
_YES_OR_NO = {word for words in _YES_NO.values() for word in words}
_SHORT = 3  # characters
# Characters that continue a word, in scripts that put spaces between words. Others (Chinese, Japanese, Thai) do not, so
# "7" is a whole word in "7月".
_LETTER = r"0-9a-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u058f\u1e00-\u1fff"
# The search tool begins each passage with this, here also in normal form; its number is not part of the passage.
_RANK = re.compile(r"\bdoc \d+(?= ?\(?title:? )")


def last_answer(texts: str | Sequence[str]) -> str | None:
    """Return the content of the last closed ``<answer>`` in the model's text, stripped; None without one.

    This follows Search-R1 (PeterGriffinJin/Search-R1 @a14dc3a, verl/utils/reward_score/qa_em.py, ``extract_solution``):
    read from the left, a pair begins at the first opening tag after the previous pair and ends at the next closing one.
    Two differences are on purpose. Search-R1 reads prompt, turns and results as one text and so needs two pairs, the
    first of which is in its prompt; here one is enough. And a pair has to be within one turn, so that a tool result
    between two turns never becomes part of an answer.

    Args:
        texts: The model's turns, in order; a string is one turn. Tool results must not be among them.
    """
    for text in reversed([texts] if isinstance(texts, str) else texts):
        found, end = None, 0
        # A regular expression would take quadratic time on a text with many opening tags and no closing one.
        while (start := text.find(OPEN, end)) >= 0 and (close := text.find(CLOSE, start)) >= 0:
            found, end = text[start + len(OPEN) : close], close + len(CLOSE)
        if found is not None:
            return found.strip()
    return None


def is_exact(answer: str | None, accepted: str | Sequence[str]) -> bool:
    """Return True if the answer equals an accepted one, ignoring case and outer white space."""
    return answer is not None and _fold(answer) in {_fold(one) for one in _listed(accepted) if _fold(one)}


def mentions(text: str | None, accepted: str | Sequence[str]) -> bool:
    """Return True if an accepted answer occurs in the text, ignoring case; a short one only as a whole word."""
    folded = _fold(text or "")
    return any(_occurs(one, _fold(one), folded) for one in _listed(accepted) if _fold(one))


def normalize(text: str) -> str:
    """Return SQuAD's normal form: lower case, no ASCII punctuation, no English articles, single spaces.

    Numbers and other scripts are not changed, and accents are kept ("Malmö" is not "Malmo").
    """
    without_punctuation = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", without_punctuation).split())


def exact_match(answer: str | None, accepted: str | Sequence[str]) -> bool:
    """Return True if the normalised answer equals a normalised accepted one; an empty one never does."""
    normal = normalize(answer or "")
    return bool(normal) and any(normal == normalize(one) for one in _listed(accepted))


def contains(text: str | None, accepted: str | Sequence[str]) -> bool:
    """Return True if a normalised accepted answer occurs in the normalised text; a short one only as a whole word.

    It looks for substrings (Search-R1's ``subem``) and not for words, because scripts without spaces have none; so
    "art" occurs in "party". A short answer has to be a separate word if its script puts spaces between words: "7"
    occurs in "Apollo 7" and in "a 7-year-old", but not in "1978" or "7.5"; "Ås" does not occur in "Fåsen". For hits in
    search results, pass the result of :func:`searchable_answers`.
    """
    # Removing punctuation joins the words of "7-year-old", while only without it "U.S." is a word: look in both forms.
    readings = normalize(text or ""), _fold(text or "")
    return any(_occurs(one, normalize(one), *readings) for one in _listed(accepted) if normalize(one))


def searchable_answers(accepted: str | Sequence[str]) -> tuple[str, ...]:
    """Return the accepted answers that a search result can contain; empty if hits are undefined.

    Most passages contain a yes or no, whatever the question, and so they do with an answer of which SQuAD's normal form
    leaves nothing ("the"). If a question has no other answer, rewards pay no hits for it, and metrics have None.
    """
    return tuple(one for one in _listed(accepted) if normalize(one) and normalize(one) not in _YES_OR_NO)


def hit_components(hit: bool, searchable: Sequence[str]) -> dict[str, float | None]:
    """Return ``tool/hit``, None if no result can contain an answer, and ``tool/hit_undefined``, 1.0 then.

    Args:
        hit: True if a result that the model saw contains one of these answers.
        searchable: The result of :func:`searchable_answers`.
    """
    return {"tool/hit": float(hit) if searchable else None, "tool/hit_undefined": float(not searchable)}


def f1(answer: str | None, accepted: str | Sequence[str]) -> float:
    """Return the best word-overlap F1 with an accepted answer, from 0 to 1, over normalised words with their counts."""
    words = normalize(answer or "").split()
    return max((_f1(words, normalize(one).split()) for one in _listed(accepted)), default=0.0)


def _f1(words: Sequence[str], gold: Sequence[str]) -> float:
    common = sum((Counter(words) & Counter(gold)).values())
    return 2 * common / (len(words) + len(gold)) if common else 0.0


def accepted_answers(ground_truth: Any) -> tuple[str, ...]:
    """Return the accepted answers in a verl row's ``reward_model.ground_truth``.

    Takes ``{"target": [...]}`` (Search-R1's layout), a list of answers, nested or not, or one answer; see
    :func:`answer_texts`.

    Raises:
        DataError: The ground truth is none of these, or contains no answer.
    """
    found = ground_truth.get("target") if isinstance(ground_truth, Mapping) else ground_truth
    if isinstance(found, str) or _is_boolean(found):
        found = [found]
    try:
        answers = tuple(text for one in _flat(found) for text in answer_texts(one))
    except TypeError:
        answers = ()
    if not any(_fold(one) for one in answers):
        raise DataError(
            f"reward_model.ground_truth is {ground_truth!r}",
            expected="{'target': [accepted answers]}, a list of strings or a string",
            fix="`mtgrpo data` writes rows of this layout",
        )
    return answers


def _flat(found: Any) -> Iterator[Any]:
    """Yield the single values in a list of answers; raise ``TypeError`` if it is not a list of answers."""
    if isinstance(found, Mapping | bytes):
        raise TypeError
    for one in found:
        if isinstance(one, str) or not hasattr(one, "__iter__"):
            yield one
        else:
            yield from _flat(one)


def answer_texts(value: Any) -> tuple[str, ...]:
    """Return an answer of a question set as texts: none for None and NaN, two for a boolean, otherwise one.

    True accepts "yes" and "true", False "no" and "false" (StrategyQA's and BoolQ's answers). A set that means the words
    themselves, such as the title "True", has to contain strings, which are not changed.
    """
    if value is None or value != value:  # NaN, as pandas has it for a missing value
        return ()
    return _YES_NO[bool(value)] if _is_boolean(value) else (str(value),)


def _is_boolean(value: Any) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # numpy has both names


def _listed(accepted: str | Sequence[str]) -> Sequence[str]:
    return [accepted] if isinstance(accepted, str) else accepted


def _fold(text: str) -> str:
    return text.strip().lower()


def _occurs(answer: str, form: str, text: str, *more: str) -> bool:
    """Return True if an accepted answer is in a text.

    Args:
        answer: The accepted answer as it is written.
        form: The answer in the form that is compared, not empty.
        text: The text in that form.
        more: The text in other forms, in which a short answer may be a word.
    """
    normal = normalize(answer)
    short = len(normal) < _SHORT and any(map(str.isalnum, form))
    if form not in text or not (short or normal in _YES_OR_NO):
        return form in text
    before = "" if is_spaceless(form[0]) else rf"(?<![{_LETTER}])(?<!\d[.,])"
    behind = "" if is_spaceless(form[-1]) else rf"(?![{_LETTER}])(?![.,]\d)"
    word = re.compile(f"{before}{re.escape(form)}{behind}")
    return any(word.search(_RANK.sub("", reading)) for reading in (text, *more))


def is_spaceless(character: str) -> bool:
    """Return True for a letter of a script that puts no spaces between words."""
    return character.isalnum() and not re.match(f"[{_LETTER}]", character)
