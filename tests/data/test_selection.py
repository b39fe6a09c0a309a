"""Check where questions end up: test sets, repeated questions, limits, and whether an index can answer them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from verl_mtgrpo.data.answerable import AnswerCheck
from verl_mtgrpo.data.dataset import write_dataset
from verl_mtgrpo.errors import ConfigError, DataError
from verl_mtgrpo.retrieval import BM25Index, Passage


def write_questions(path: Path, pairs: Iterable[tuple[str, list[str]]]) -> Path:
    path.write_text("".join(json.dumps({"question": text, "answers": answers}) + "\n" for text, answers in pairs))
    return path


def numbered(path: Path, numbers: Iterable[int]) -> Path:
    return write_questions(path, [(f"Who is number {n}?", ["x"]) for n in numbers])


def asked(path: Path) -> list[str]:
    return [row["extra_info"]["question"] for row in pq.read_table(path).to_pylist()]


def squad(path: Path, titles: Iterable[str], text: str) -> Path:
    qas = [{"id": "1", "question": text, "answers": [{"text": "x", "answer_start": 0}]}]
    data = [{"title": title, "paragraphs": [{"context": "c", "qas": qas}]} for title in titles]
    path.write_text(json.dumps({"data": data}))
    return path


# ---- test sets and questions asked twice


def test_files_given_as_tests_go_to_validation_whole(tmp_path: Path):
    train, test = numbered(tmp_path / "a.jsonl", range(20)), numbered(tmp_path / "b.jsonl", range(20, 30))
    manifest = write_dataset([train], tmp_path / "out", tests=[test])
    assert asked(tmp_path / "out" / "train.parquet") == [f"Who is number {n}?" for n in range(20)]
    assert asked(tmp_path / "out" / "val.parquet") == [f"Who is number {n}?" for n in range(20, 30)]
    assert manifest["val_fraction"] == 0.0
    # If a fraction is given, it counts in addition to the test set.
    write_dataset([train], tmp_path / "out", tests=[test], val_fraction=0.5)
    assert [len(asked(tmp_path / "out" / f"{name}.parquet")) for name in ("train", "val")] == [10, 20]


def test_training_questions_that_validation_asks_too_are_left_out_and_counted(tmp_path: Path):
    texts = ["Who wrote the Book?", "who wrote  book", "WHO WROTE A BOOK!", "Who wrote books?", "?", "Who else?"]
    train = write_questions(tmp_path / "a.jsonl", [(text, ["x"]) for text in texts])
    test = write_questions(tmp_path / "b.jsonl", [("Who wrote the book?", ["x"]), ("!", ["x"]), ("More?", ["x"])])
    manifest = write_dataset([train], tmp_path / "out", tests=[test])
    assert manifest["left_out_as_asked_in_validation"] == {"a": 3}
    assert asked(tmp_path / "out" / "train.parquet") == ["Who wrote books?", "?", "Who else?"]
    # A validation question that the limit leaves out is no training question either.
    limited = write_dataset([train], tmp_path / "out", tests=[test], max_val=1)
    assert limited["left_out_as_asked_in_validation"] == {"a": 3}
    assert limited["splits"]["val"]["rows"] == 1


def test_no_question_is_on_both_sides_of_a_divided_file(tmp_path: Path):
    texts = [f"Who is number {n % 30}?" for n in range(60)]  # each twice, with another answer
    path = write_questions(tmp_path / "a.jsonl", [(text, [str(n)]) for n, text in enumerate(texts)])
    manifest = write_dataset([path], tmp_path / "out", val_fraction=0.3)
    train, val = (asked(tmp_path / "out" / f"{name}.parquet") for name in ("train", "val"))
    assert len(val) == 18 and set(train).isdisjoint(val)
    assert 60 - len(val) - len(train) == manifest["left_out_as_asked_in_validation"]["a"] > 0


def test_the_same_words_about_another_article_are_another_question(tmp_path: Path):
    path = squad(tmp_path / "a.json", [f"Article {n}" for n in range(10)], "When was it built?")
    manifest = write_dataset([path], tmp_path / "out", val_fraction=0.5)
    assert {name: part["rows"] for name, part in manifest["splits"].items()} == {"train": 5, "val": 5}
    # But not in a set that is given as a test, because we do not know what it is about.
    other = numbered(tmp_path / "c.jsonl", range(2))
    test = squad(tmp_path / "b.json", ["Elsewhere"], "When was it built?")
    manifest = write_dataset([path, other], tmp_path / "out", tests=[test])
    assert manifest["left_out_as_asked_in_validation"] == {"a": 10}


def test_nothing_left_because_validation_asks_it_all(tmp_path: Path):
    path = numbered(tmp_path / "a.jsonl", range(3))
    with pytest.raises(ConfigError, match=r"left for training: 6 read .* 3 left out because validation asks them too"):
        write_dataset([path], tmp_path / "out", tests=[path])
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_nothing(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"'nqq' is neither a known set \(nq, triviaqa, .*\) nor an existing file or folder"
    ):
        write_dataset(["nqq"], tmp_path / "out")


# ---- answerability

PASSAGES = [
    Passage("1", "Velm", "Velm is a harbour town on the coast; its mayor is Orsa Kint."),
    Passage("2", "Dravik", "Dravik is a mountain town. The mayor lives elsewhere."),
    Passage("3", "Towns", "A town may have a mayor, yes or no."),
]
QUESTIONS = [
    ("Who is the mayor of Velm?", ["orsa   kint!", "O. Kint"]),  # found, after normalisation
    ("What is the harbour town called?", ["The Velm"]),  # found; also in the title
    ("Who is the mayor of Dravik?", ["Tamrin"]),  # in no passage
    ("Is Dravik a town?", ["yes"]),  # in passage 3, but says nothing
    ("Who rules the mountains?", ["Orsa Kint"]),  # in a passage that this search does not find
]


@pytest.fixture
def index(tmp_path: Path) -> BM25Index:
    return BM25Index.build(PASSAGES, tmp_path / "index", source="test")


def test_the_share_of_questions_with_a_gold_answer(tmp_path: Path, index: BM25Index):
    path = write_questions(tmp_path / "a.jsonl", QUESTIONS)
    test = write_questions(tmp_path / "b.jsonl", [("Where is the harbour?", ["coast"])])
    check = AnswerCheck(index, top=1, name="towns")
    manifest = write_dataset([path], tmp_path / "out", tests=[test], check=check)
    assert manifest["answerability"] == {
        "index": "towns",
        "fingerprint": index.fingerprint,
        "top": 1,
        "splits": {
            "val": {"b": {"searched": 1, "answerable": 1, "share": 1.0, "yes_no": 0}},
            "train": {"a": {"searched": 4, "answerable": 2, "share": 0.5, "yes_no": 1}},
        },
    }
    assert asked(tmp_path / "out" / "train.parquet") == [text for text, _ in QUESTIONS]


def test_only_answerable_questions_are_trained_on(tmp_path: Path, index: BM25Index):
    path = write_questions(tmp_path / "a.jsonl", QUESTIONS)
    check = AnswerCheck(index, top=1, name="towns")
    manifest = write_dataset([path], tmp_path / "out", val_fraction=0, check=check, only_answerable=True)
    assert asked(tmp_path / "out" / "train.parquet") == [QUESTIONS[n][0] for n in (0, 1, 3)]
    assert manifest["answerability"]["splits"]["train"]["a"]["answerable"] == 2


def test_a_limit_counts_answerable_questions_and_stops_the_search(tmp_path: Path, index: BM25Index):
    texts = [(f"Who is mayor number {n} of Velm?", ["Orsa Kint" if n % 3 else "nobody"]) for n in range(300)]
    path = write_questions(tmp_path / "a.jsonl", texts)

    def make(limit: int | None, out: str) -> dict[str, Any]:
        check = AnswerCheck(index, top=1, name="towns")
        return write_dataset(
            [path], tmp_path / out, val_fraction=0, max_train=limit, check=check, only_answerable=True
        )["answerability"]["splits"]["train"]["a"]

    assert make(None, "all") == {"searched": 300, "answerable": 200, "share": 0.6667, "yes_no": 0}
    few = make(40, "few")
    assert few["answerable"] == 40 < few["searched"] < 100
    everything, some = asked(tmp_path / "all" / "train.parquet"), asked(tmp_path / "few" / "train.parquet")
    assert len(some) == 40 and some == [text for text in everything if text in some]
    assert make(40, "again") == few
    for name in ("train.parquet", "manifest.json"):
        assert (tmp_path / "few" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_settings_that_do_not_fit(tmp_path: Path, index: BM25Index):
    path = write_questions(tmp_path / "a.jsonl", [("Who?", ["nowhere"])])
    with pytest.raises(ConfigError, match="no index to look them up in"):
        write_dataset([path], tmp_path / "out", only_answerable=True)
    with pytest.raises(ConfigError, match="passages to look into is 0, expected at least 1"):
        AnswerCheck(index, top=0, name="towns")
    with pytest.raises(ConfigError, match="edition is 'flash', expected one of flashrag, original"):
        write_dataset(["nq"], tmp_path / "out", edition="flash")
    with pytest.raises(ConfigError, match=r"known sets \(nq, .*, but none of them is requested"):
        write_dataset([path], tmp_path / "out", local=tmp_path)
    check = AnswerCheck(index, top=1, name="towns")
    with pytest.raises(ConfigError, match="number of questions is 0"):
        write_dataset([path], tmp_path / "out", max_train=0, check=check, only_answerable=True)
    with pytest.raises(ConfigError, match=r"1 read .*no gold answer of the others was found in the index"):
        write_dataset([path], tmp_path / "out", val_fraction=0, check=check, only_answerable=True)
    assert not (tmp_path / "out").exists()
