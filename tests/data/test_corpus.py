from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_mtgrpo.data.corpus import read_corpora, read_corpus
from verl_mtgrpo.errors import DataError
from verl_mtgrpo.retrieval import Passage


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def titles_and_texts(path: Path) -> list[tuple[str, str]]:
    return [(passage.title, passage.text) for passage in read_corpus(path)]


def test_search_r1_lines(tmp_path: Path):
    records = [
        {"id": "0", "contents": '"Velm "Old" Town"\nA town.\nBy the sea.'},
        {"id": 1, "contents": "Dravik\nHills."},
        {"id": "2", "contents": "no title here"},
    ]
    assert list(read_corpus(write_lines(tmp_path / "c.jsonl", records))) == [
        Passage("0", 'Velm "Old" Town', "A town.\nBy the sea."),
        Passage("1", "Dravik", "Hills."),
        Passage("2", "", "no title here"),
    ]


def test_title_and_text_with_and_without_id(tmp_path: Path):
    records = [{"id": "x", "title": "Velm", "text": "A town."}, {"title": "Velm", "text": "A town."}, {"text": "bare"}]
    passages = list(read_corpus(write_lines(tmp_path / "c.jsonl", records)))
    assert passages[0] == Passage("x", "Velm", "A town.")
    assert titles_and_texts(tmp_path / "c.jsonl") == [("Velm", "A town."), ("Velm", "A town."), ("", "bare")]
    assert len({passage.id for passage in passages}) == 3


@pytest.mark.parametrize("name", ["c.jsonl", "c.json", "c.jsonl.gz", "c.parquet", "list.json"])
def test_the_same_records_from_every_kind_of_file(tmp_path: Path, name: str):
    records = [{"id": "a", "title": "Velm", "text": "Früher."}, {"id": "b", "title": "Dravik", "text": "Später."}]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path = tmp_path / name
    if name == "list.json":
        write(path, records)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_text("\ufeff" + lines + "\n", encoding="utf-8")
    assert list(read_corpus(path)) == [Passage("a", "Velm", "Früher."), Passage("b", "Dravik", "Später.")]


def test_squad_paragraphs(tmp_path: Path):
    squad = {"data": [{"title": "Old_Velm", "paragraphs": [{"context": "One.", "qas": []}, {"context": "Two."}]}]}
    assert titles_and_texts(write(tmp_path / "s.json", squad)) == [("Old Velm", "One."), ("Old Velm", "Two.")]


def test_title_to_sentences(tmp_path: Path):
    corpus = {"Velm": ["A town.", " By the sea."], "Dravik": ["Hills.", "Snow."], "data": ["A title like a column."]}
    assert titles_and_texts(write(tmp_path / "h.json", corpus)) == [
        ("Velm", "A town. By the sea."),
        ("Dravik", "Hills. Snow."),
        ("data", "A title like a column."),
    ]


@pytest.mark.parametrize(
    "record",
    [
        {"question": "q", "ctxs": [{"title": "Velm", "text": "A town."}, {"title": "Dravik", "text": "Hills."}]},
        {"question": "q", "context": [["Velm", ["A ", "town."]], ["Dravik", ["Hills."]]]},
        {"question": "q", "context": {"title": ["Velm", "Dravik"], "sentences": [["A town."], ["Hills."]]}},
        {
            "question": "q",
            "paragraphs": [
                {"title": "Velm", "paragraph_text": "A town."},
                {"title": "Dravik", "paragraph_text": "Hills."},
            ],
        },
    ],
)
def test_passages_of_question_sets_are_given_once(tmp_path: Path, record: dict[str, Any]):
    path = write_lines(tmp_path / "q.jsonl", [record, {**record, "question": "another"}])
    assert titles_and_texts(path) == [("Velm", "A town."), ("Dravik", "Hills.")]


def test_several_files_share_ids_by_content(tmp_path: Path):
    one = write(tmp_path / "a.json", [{"title": "Velm", "text": "A town."}])
    two = write(tmp_path / "b.json", {"Velm": ["A town."], "Dravik": ["Hills."]})
    assert [passage.title for passage in read_corpora([one, two])] == ["Velm", "Dravik"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"id": 1, "body": "x"}\n', r"c.jsonl, line 1 has the columns id, body, expected \{id, contents\}"),
        (b'{"text": "x"}\n\n[1]\n', r"line 3 is a list, expected"),
        (b'{"text": "x"}\n{"text": \n', r"line 2 is not valid JSON: .*one record in every line"),
        (b'{"text": "\xff\xfe"}\n', r"not UTF-8 text .*iconv"),
        (b'{"id": 1, "contents": 5}\n', r"line 1 looks like a known layout but is broken .*contents is a int"),
        (b'{"data": [{"title": "x"}]}\n', r"broken \(KeyError: 'paragraphs'\)"),
        (b"{}\n", r"line 1 has no columns"),
    ],
)
def test_broken_corpora(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "c.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_corpus(path))


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(DataError, match=r"missing.json is not a file"):
        list(read_corpus(tmp_path / "missing.json"))
    (tmp_path / "c.doc").write_text("text")
    with pytest.raises(DataError, match=r"c.doc is of an unknown kind, expected a .json, .jsonl, .*or .parquet"):
        list(read_corpus(tmp_path / "c.doc"))
    whole = gzip.compress(b'{"text": "x"}\n' * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut.jsonl.gz is a damaged gzip file"):
        list(read_corpus(tmp_path / "cut.jsonl.gz"))
    (tmp_path / "c.parquet").write_text("text")
    with pytest.raises(DataError, match=r"c.parquet is not a parquet file"):
        list(read_corpus(tmp_path / "c.parquet"))
    (tmp_path / "c.json").write_text('{"data": [')
    with pytest.raises(DataError, match=r"c.json is not valid JSON"):
        list(read_corpus(tmp_path / "c.json"))


def test_a_long_corpus_is_streamed(tmp_path: Path):
    path = write_lines(tmp_path / "c.jsonl", [{"id": "0", "text": "first"}, "not a record"])
    assert next(read_corpus(path)).text == "first"
