"""Read question sets as questions with their accepted answers, and split them into training and validation."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from verl_mtgrpo.data.answer_values import answers_in
from verl_mtgrpo.data.corpus import article_title
from verl_mtgrpo.data.files import describe, read_records, short_name
from verl_mtgrpo.data.verl_rows import is_verl_row, read_verl_row
from verl_mtgrpo.errors import ConfigError, DataError, NoAnswersError
from verl_mtgrpo.retrieval.types import content_id
from verl_mtgrpo.rewards.answers import answer_texts

QUESTION_COLUMNS = ("question", "Question", "question_text")
ANSWER_COLUMNS = ("answers", "golden_answers", "answer", "possible_answers", "Answer", "original_nq_answers")
SEVERAL = ("answers", "golden_answers", "possible_answers", "original_nq_answers")
"""The columns that hold lists of answers, even if they hold them as text."""
ALIAS_COLUMNS = ("answer_aliases", "aliases")
ID_COLUMNS = ("id", "_id", "qid", "question_id", "example_id")
_UNKNOWN = "<unk>"  # TriviaQA's answer where it keeps the answer secret
_EXPECTED = (
    "a column question and one of answers, golden_answers, answer, possible_answers; or SQuAD's layout "
    "{data: [{title, paragraphs: [{context, qas}]}]}; or rows of verl (prompt, reward_model)"
)


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers.

    Attributes:
        id: The id in the source, or one made from the content.
        question: The text of the question.
        answers: Accepted answers, at least one, without repetitions.
        source: Name of the question set.
        article: The article it is about, None if unknown. Questions about one article are never split.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    source: str
    article: str | None = None


def read_questions(path: Path | str, *, source: str | None = None) -> Iterator[Question]:
    """Stream the answerable questions of one file; see :func:`questions_of`.

    ``source`` names the set; default: the file name without its suffixes, or what verl rows say.
    """
    named = source is not None
    return questions_of(read_records(path), source=source or short_name(path), name=str(path), named=named)


def questions_of(
    records: Iterable[tuple[str, Any]], *, source: str, name: str, named: bool = True
) -> Iterator[Question]:
    """Stream the answerable questions of ``(where, record)`` pairs of one set, whichever layout it has.

    Accepts SQuAD's JSON, verl rows (``verl_rows``) and records with a question and its answers in the columns
    above: SQuAD's, NQ-open's, FlashRAG's, HotpotQA's, 2WikiMultihopQA's and MuSiQue's, TriviaQA's, PopQA's, Bamboogle's
    capitals, QED's ``question_text`` and ``original_nq_answers``; answers in any of the forms of ``answer_values``. An
    answer that is a boolean is yes or no in words (StrategyQA's; :func:`~verl_mtgrpo.rewards.answers.answer_texts`).
    Questions marked as unanswerable (SQuAD 2.0's ``is_impossible``, MuSiQue's ``answerable``) or without a public
    answer are left out.

    Every span of a QED answer counts as an answer, as in NQ-open, which has the same questions.

    Args:
        records: The records to read; ``where`` names a record in error messages.
        source: Name of the set, the questions' ``source``.
        name: What to call the set in error messages.
        named: True if ``source`` also replaces the ``data_source`` of verl rows.

    Raises:
        DataError: A record lacks the required columns. Its subclass ``NoAnswersError``: no question is answerable.
    """
    found, read = False, 0
    for where, record in records:
        read += 1
        for question in _questions_of(where, record, source, named):
            found = True
            yield question
    if not found:
        secret = " (a test set whose answers are secret cannot be used)" if read else ""
        raise NoAnswersError(f"{name} holds no answerable question{secret}", expected=_EXPECTED)


def in_validation(questions: Sequence[Question], *, val_fraction: float, seed: int) -> list[bool]:
    """Decide for each question whether it goes to validation: about ``val_fraction`` of every source.

    Questions about one article stay together, even across sources; a source about a single article
    is split by question. Which question goes where depends on the seed and on ids and article names, not on the
    order.
    """
    if not 0.0 <= val_fraction <= 1.0:
        raise ConfigError(f"the validation fraction is {val_fraction}", expected="a number from 0 to 1")
    in_val: dict[str, bool] = {}
    for source in dict.fromkeys(question.source for question in questions):
        _assign([question for question in questions if question.source == source], in_val, val_fraction, seed)
    return [_find(question, in_val) for question in questions]


class QuestionSample:
    """Samples at most ``limit`` questions of a stream, chosen by hash; never holds more than that.

    A larger sample with the same seed contains the smaller one. Without a limit it takes all questions.
    """

    def __init__(self, limit: int | None, seed: int) -> None:
        check_limit(limit)
        self._limit, self._seed = limit, seed
        self._seen = 0
        # A heap whose first item is removed next: the highest draw, and among equal ones the last.
        self._kept: list[tuple[int, int, Question]] = []

    def add(self, question: Question) -> None:
        """Offer one question."""
        draw = int.from_bytes(_draw(self._seed, _own_key(question)), "big")
        item = (-draw, -self._seen, question)
        self._seen += 1
        if self._limit is None or len(self._kept) < self._limit:
            heapq.heappush(self._kept, item)
        else:
            heapq.heappushpop(self._kept, item)

    def in_order(self) -> list[Question]:
        """Return the sample, in the order in which it was added."""
        return [item[2] for item in sorted(self._kept, key=lambda item: -item[1])]

    def ranked(self) -> list[tuple[int, Question]]:
        """Return ``(position, question)`` pairs of the sample; those that a smaller sample would hold come first."""
        return [(-negative, question) for _, negative, question in sorted(self._kept, reverse=True)]


def check_limit(limit: int | None) -> None:
    """Raise ``ConfigError`` for a limit below 1."""
    if limit is not None and limit < 1:
        raise ConfigError(f"the number of questions is {limit}", expected="at least 1")


def _assign(questions: list[Question], in_val: dict[str, bool], fraction: float, seed: int) -> None:
    """Assign each article (or single question) of one source; earlier decisions stand."""
    articles = {question.article for question in questions}
    by_question = len(articles) == 1
    sizes: dict[str, int] = {}
    for question in questions:
        key = _own_key(question) if by_question else _group_key(question)
        sizes[key] = sizes.get(key, 0) + 1
    if by_question and any(_group_key(question) in in_val for question in questions):
        return  # an earlier source has assigned this article
    target = round(fraction * len(questions))
    placed = sum(size for key, size in sizes.items() if in_val.get(key))
    for key in sorted(sizes, key=lambda key: _draw(seed, key)):
        if key not in in_val:
            # Take an article only if that brings the number closer to the target, but take at least one.
            nearer = placed + sizes[key] / 2 <= target or (placed == 0 and target > 0)
            in_val[key] = placed < target and nearer
            placed += sizes[key] if in_val[key] else 0


def _find(question: Question, in_val: dict[str, bool]) -> bool:
    key = _group_key(question)
    return in_val[key] if key in in_val else in_val[_own_key(question)]


def _own_key(question: Question) -> str:
    return f"question\n{question.source}\n{question.id}"


def _group_key(question: Question) -> str:
    return _own_key(question) if question.article is None else f"article\n{question.article.casefold()}"


def _draw(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed}\n{key}".encode("utf-8", "replace"), digest_size=16).digest()


def _questions_of(where: str, record: Any, source: str, named: bool) -> Iterable[Question]:
    if not isinstance(record, dict):
        raise DataError(f"{where} is {describe(record)}", expected=_EXPECTED)
    fields = cast("dict[str, Any]", record)
    try:
        if isinstance(fields.get("data"), list):
            return list(_from_squad(fields["data"], source))
        if is_verl_row(fields) and not any(isinstance(fields.get(name), str) for name in QUESTION_COLUMNS):
            return [_from_verl(where, fields, source, named)]
        return _from_record(where, fields, source)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{where} looks like a known layout but is broken ({type(error).__name__}: {error})",
            expected=_EXPECTED,
        ) from error


def _from_squad(articles: list[Any], source: str) -> Iterator[Question]:
    for article in articles:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                answers = _distinct([answer["text"] for answer in qa.get("answers", [])])
                if qa.get("is_impossible") or not answers:
                    continue
                text = str(qa["question"]).strip()
                id = str(qa.get("id") or content_id(text, *answers))
                yield Question(id, text, answers, source, article_title(article) or None)


def _from_record(where: str, fields: dict[str, Any], source: str) -> list[Question]:
    column = next((name for name in ANSWER_COLUMNS if fields.get(name) is not None), None)
    asked = next((fields[name] for name in QUESTION_COLUMNS if isinstance(fields.get(name), str)), None)
    empty = [name for name in (*QUESTION_COLUMNS, *ANSWER_COLUMNS) if name in fields and fields[name] is None]
    if (column is None or asked is None) and empty:
        raise DataError(f"{where} has no value (null) in {', '.join(empty)}", expected=_EXPECTED)
    if column is None or asked is None:
        raise DataError(f"{where} has {describe(fields)}", expected=_EXPECTED)
    if str(fields.get("answerable", True)).lower() == "false":
        return []
    values = answers_in(fields[column], several=column in SEVERAL)
    if column == "possible_answers" and values == [fields[column]]:
        raise ValueError(f"possible_answers is {fields[column]!r}, not a list")
    for name in ALIAS_COLUMNS:
        values += answers_in(fields.get(name), several=True)
    answers = _distinct(value for value in values if value != _UNKNOWN)
    if not answers:
        return []
    text = asked.strip()
    own = next((fields[name] for name in ID_COLUMNS if fields.get(name) is not None), None)
    id = str(own) if own is not None else content_id(text, *answers)
    title = fields.get("title_text") if "question_text" in fields else None  # QED's article
    return [Question(id, text, answers, source, str(title) if title else None)]


def _from_verl(where: str, fields: dict[str, Any], source: str, named: bool) -> Question:
    row = read_verl_row(where, fields)
    id = row.id or content_id(row.question, *row.answers)
    return Question(id, row.question, _distinct(row.answers), source if named else row.source or source, row.article)


def _distinct(values: Iterable[Any]) -> tuple[str, ...]:
    texts = (text.strip() for value in values for text in answer_texts(value))
    return tuple(dict.fromkeys(text for text in texts if text))
