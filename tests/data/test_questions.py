from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from verl_mtgrpo.data.questions import Question, QuestionSample, in_validation, read_questions
from verl_mtgrpo.errors import ConfigError, DataError


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def squad_qa(id: str, *answers: str, **more: Any) -> dict[str, Any]:
    return {
        "id": id,
        "question": f"question {id}?",
        "answers": [{"text": a, "answer_start": 0} for a in answers],
        **more,
    }


def test_squad_two_without_unanswerable_questions(tmp_path: Path):
    qas = [
        squad_qa("1", "Velm", "Velm", "the town", is_impossible=False),
        squad_qa("2", is_impossible=True, plausible_answers=[{"text": "no", "answer_start": 0}]),
        squad_qa("3"),
    ]
    document = {"version": "v2.0", "data": [{"title": "Old_Velm", "paragraphs": [{"context": "c", "qas": qas}]}]}
    assert list(read_questions(write(tmp_path / "dev.json", document))) == [
        Question("1", "question 1?", ("Velm", "the town"), "dev", "Old Velm")
    ]


def test_squad_one_has_no_mark(tmp_path: Path):
    document = {"data": [{"paragraphs": [{"context": "c", "qas": [squad_qa("1", "Velm")]}]}]}
    (question,) = read_questions(write(tmp_path / "a.json", document), source="mine")
    assert (question.answers, question.article, question.source) == (("Velm",), None, "mine")


@pytest.mark.parametrize(
    "record, answers",
    [
        ({"answers": ["a", "b", "a", " "]}, ("a", "b")),
        ({"golden_answers": ["a"]}, ("a",)),
        ({"answer": "a"}, ("a",)),
        ({"answer": 1912}, ("1912",)),
        ({"answer": "a", "answer_aliases": ["b"], "answerable": True}, ("a", "b")),
        ({"answer": "a", "aliases": "b"}, ("a", "b")),
        ({"answers": {"text": ["a"], "answer_start": [3]}}, ("a",)),
        ({"answers": ["a"], "ctxs": [{"title": "t", "text": "x"}]}, ("a",)),
        ({"answer": {"value": "a", "aliases": ["b", "a"], "normalized_aliases": ["x"], "type": "t"}}, ("a", "b")),
        ({"possible_answers": '["a", "b"]', "obj": "a"}, ("a", "b")),
        ({"answer": ["a", "b"]}, ("a", "b")),
        ({"Answer": "a"}, ("a",)),
    ],
)
def test_answer_columns(tmp_path: Path, record: dict[str, Any], answers: tuple[str, ...]):
    (question,) = read_questions(write(tmp_path / "q.json", [{"question": " q? ", **record}]))
    assert (question.question, question.answers) == ("q?", answers)


def test_ids_are_kept_or_made_from_the_content(tmp_path: Path):
    records = [
        {"_id": 7, "question": "q", "answer": "a"},
        {"question": "q", "answer": "a"},
        {"question": "r", "answer": "a"},
    ]
    first, second, third = read_questions(write(tmp_path / "q.json", records))
    assert first.id == "7" and len(second.id) == 16 and second.id != third.id


def test_unanswerable_records_are_left_out(tmp_path: Path):
    records = [
        {"question": "q", "answer": "a", "answerable": False},
        {"question": "q", "answers": []},
        {"question": "r", "answer": "b"},
    ]
    assert [question.question for question in read_questions(write(tmp_path / "q.json", records))] == ["r"]


@pytest.mark.parametrize(
    "document, message",
    [
        ([{"query": "q", "label": "a"}], r"q.json, element 1 has the columns query, label, expected a column question"),
        ([{"question": "q", "response": "a"}], r"columns question, response, .*answers, golden_answers, answer"),
        ([{"question": None, "answer": "a"}], "expected a column question"),
        ([["q", "a"]], "element 1 is a list"),
        ([], "holds no answerable question"),
        ({"data": [{"title": "t", "paragraphs": [{"context": "c"}]}]}, r"broken \(KeyError: 'qas'\)"),
        ({"data": []}, "holds no answerable question"),
        (
            [{"question": "q", "possible_answers": "a, b"}],
            r"broken \(ValueError: possible_answers is 'a, b', not a list",
        ),
        ([{"question": "q", "answer": {"text_of": "a"}}], r"broken \(KeyError: 'text'"),
        ([{"question": "q", "answer": {"value": "<unk>", "aliases": []}}], "holds no answerable question"),
    ],
)
def test_question_sets_without_the_needed_columns(tmp_path: Path, document: Any, message: str):
    with pytest.raises(DataError, match=message):
        list(read_questions(write(tmp_path / "q.json", document)))


def test_bamboogle_begins_its_columns_with_capitals(tmp_path: Path):
    (question,) = read_questions(write(tmp_path / "q.json", [{"Question": "q?", "Answer": "a"}]))
    assert (question.question, question.answers) == ("q?", ("a",))


# ---- splitting


def split_questions(
    questions: list[Question], *, val_fraction: float, seed: int
) -> tuple[list[Question], list[Question]]:
    chosen = in_validation(questions, val_fraction=val_fraction, seed=seed)
    pairs = list(zip(questions, chosen, strict=True))
    return [question for question, val in pairs if not val], [question for question, val in pairs if val]


def sample_questions(questions: list[Question], *, limit: int | None, seed: int) -> list[Question]:
    sample = QuestionSample(limit, seed)
    for question in questions:
        sample.add(question)
    return sample.in_order()


def questions_about(source: str, sizes: dict[str | None, int]) -> list[Question]:
    return [
        Question(f"{article}-{number}", "q", ("a",), source, article)
        for article, size in sizes.items()
        for number in range(size)
    ]


def test_articles_are_never_split():
    questions = questions_about("s", {f"article {n}": 5 + n for n in range(20)})
    train, val = split_questions(questions, val_fraction=0.2, seed=0)
    assert {q.article for q in train}.isdisjoint({q.article for q in val})
    assert sorted([*train, *val], key=questions.index) == questions
    assert abs(len(val) - 0.2 * len(questions)) <= 24 / 2


def test_articles_are_never_split_across_sources():
    one = questions_about("one", {f"Article {n}": 10 for n in range(10)})
    two = questions_about("two", {f"article {n}": 3 for n in range(5, 20)})
    train, val = split_questions([*one, *two], val_fraction=0.3, seed=3)
    names = [{str(q.article).lower() for q in part} for part in (train, val)]
    assert names[0].isdisjoint(names[1])
    assert {q.source for q in val} == {q.source for q in train} == {"one", "two"}


def test_questions_without_article_give_the_exact_share_of_every_source():
    questions = [*questions_about("one", {None: 100}), *questions_about("two", {None: 50})]
    _, val = split_questions(questions, val_fraction=0.1, seed=0)
    assert [sum(q.source == name for q in val) for name in ("one", "two")] == [10, 5]


def test_a_source_about_one_article_is_split_by_question():
    train, val = split_questions(questions_about("s", {"only": 40}), val_fraction=0.25, seed=0)
    assert (len(train), len(val)) == (30, 10)


def test_one_huge_article_does_not_empty_the_validation_set():
    questions = questions_about("s", {"huge": 1000, "small": 10, "other": 10})
    for seed in range(10):
        train, val = split_questions(questions, val_fraction=0.01, seed=seed)
        assert train and val


def test_the_split_depends_on_seed_and_names_not_on_the_order():
    questions = questions_about("s", {f"article {n}": 4 for n in range(30)})
    _, val = split_questions(questions, val_fraction=0.3, seed=0)
    _, turned = split_questions(questions[::-1], val_fraction=0.3, seed=0)
    _, other = split_questions(questions, val_fraction=0.3, seed=1)
    assert set(turned) == set(val) != set(other)
    assert val == [question for question in questions if question in val]


@pytest.mark.parametrize("fraction, sizes", [(0.0, (20, 0)), (1.0, (0, 20))])
def test_everything_on_one_side(fraction: float, sizes: tuple[int, int]):
    questions = questions_about("s", {"a": 10, "b": 10})
    train, val = split_questions(questions, val_fraction=fraction, seed=0)
    assert (len(train), len(val)) == sizes


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_fraction_out_of_range(fraction: float):
    with pytest.raises(ConfigError, match=r"validation fraction is .*expected a number from 0 to 1"):
        split_questions([], val_fraction=fraction, seed=0)


def test_sampling():
    questions = questions_about("s", {None: 50})
    sample = sample_questions(questions, limit=10, seed=0)
    assert len(sample) == 10 and sample == [q for q in questions if q in sample] != questions[:10]
    # A larger sample of the same seed contains the smaller one.
    assert set(sample) < set(sample_questions(questions, limit=20, seed=0))
    assert sample_questions(questions, limit=99, seed=0) == sample_questions(questions, limit=None, seed=0) == questions
    assert set(sample) != set(sample_questions(questions, limit=10, seed=1))
    # Which ones are taken does not depend on the order in which they come.
    assert set(sample_questions(questions[::-1], limit=10, seed=0)) == set(sample)
    with pytest.raises(ConfigError, match="number of questions is 0"):
        sample_questions(questions, limit=0, seed=0)


def test_the_rank_of_a_sample_is_the_order_of_growing_samples():
    questions = questions_about("s", {None: 30})
    whole = QuestionSample(None, 0)
    for question in questions:
        whole.add(question)
    ranked = whole.ranked()
    assert [questions[position] for position, _ in ranked] == [question for _, question in ranked]
    for limit in (1, 7, 29):
        assert {question for _, question in ranked[:limit]} == set(sample_questions(questions, limit=limit, seed=0))
