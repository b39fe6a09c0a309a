"""Read corpora with huge lines, broken text and odd characters: completely, or with an error that names the place."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from verl_mtgrpo.data.corpus import read_corpus
from verl_mtgrpo.errors import DataError
from verl_mtgrpo.retrieval import BM25Index, Passage


def index_of(path: Path) -> BM25Index:
    return BM25Index.build(read_corpus(path), path.parent / "index", source=path.name)


@pytest.mark.heavy
def test_a_line_of_fifty_megabytes(tmp_path: Path):
    path = tmp_path / "c.jsonl"
    text = "harbour " * 6_250_000
    path.write_text(json.dumps({"id": "long", "text": text}) + '\n{"id": "short", "text": "a mountain town"}\n')
    assert path.stat().st_size > 50_000_000
    index = index_of(path)
    assert len(index) == 2
    assert index.search(["harbours"], 1)[0][0].text == text
    assert index.search(["mountain"], 1)[0][0].id == "short"


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
def test_broken_text_is_named_by_line_and_byte(tmp_path: Path, name: str):
    lines = b'{"text": "first"}\r\n\r\n{"text": "caf\xe9"}\n'  # Latin-1: the é is byte 14 of line 3
    (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    passages = read_corpus(tmp_path / name)
    assert next(passages).text == "first"
    with pytest.raises(DataError, match=rf"{name}, line 3 is not UTF-8 text .* at byte 14 of the line.*iconv"):
        next(passages)


def test_broken_text_in_one_document(tmp_path: Path):
    (tmp_path / "c.json").write_bytes(b'[{"text": "caf\xe9"}]')
    with pytest.raises(DataError, match=r"c.json is not UTF-8 text .* at byte 15 of the file"):
        list(read_corpus(tmp_path / "c.json"))


def test_utf16_is_refused(tmp_path: Path):
    (tmp_path / "c.jsonl").write_bytes('{"text": "town"}\n'.encode("utf-16"))
    with pytest.raises(DataError, match=r"line 1 is not UTF-8 text"):
        list(read_corpus(tmp_path / "c.jsonl"))


def test_windows_files(tmp_path: Path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "1", "text": "one"}\r\n\r\n   \r\n{"id": "2", "text": "two"}')
    assert list(read_corpus(path)) == [Passage("1", "", "one"), Passage("2", "", "two")]
    assert len(index_of(path)) == 2


def test_control_characters_and_separators_are_text(tmp_path: Path):
    # U+2028, U+0085 and form feed end a line for str.splitlines, but not in JSON lines.
    text = "a\x00b \x1b[31m tab\t line\u2028separator \u0085 \x0c end \ud83d half"
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"id": "odd\x00id", "text": text}) + "\n" + '{"id": "x", "text": "u\u2028v \u0085w"}\n')
    odd, plain = read_corpus(path)
    assert (odd.id, odd.text, plain.text) == ("odd\x00id", text, "u\u2028v \u0085w")
    (hit,) = index_of(path).search(["separator"], 1)[0]
    assert (hit.id, hit.text) == ("odd\x00id", text.replace("\ud83d", "?"))


def test_repeated_ids(tmp_path: Path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": 7, "text": "one"}\n{"id": "8", "text": "two"}\n{"id": "7", "text": "three"}\n')
    with pytest.raises(DataError, match=r"two passages have the id '7' \(passage 1 and passage 3 of c.jsonl\)"):
        index_of(path)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"id": "1", "title": "Velm"}', r"line 2 has the columns id, title, expected \{id, contents\}"),
        ('{"id": "1", "text": null}', r"line 2 .*broken \(TypeError: text is a NoneType, not a string\)"),
        ('{"id": "1", "text": 5}', r"line 2 .*text is a int, not a string"),
        ("[" * 100_000, r"line 2 cannot be read as JSON"),
        ('{"id": ' + "9" * 10_000 + ', "text": "x"}', r"line 2 cannot be read as JSON"),
        ("null", r"line 2 is a NoneType, expected"),
    ],
)
def test_records_without_text(tmp_path: Path, line: str, message: str):
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": "0", "text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        list(read_corpus(path))


def test_empty_texts_are_kept(tmp_path: Path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": "0", "text": ""}\n{"id": "1", "contents": ""}\n{"id": "2", "contents": "\\"T\\"\\n"}\n')
    assert list(read_corpus(path)) == [Passage("0", "", ""), Passage("1", "", ""), Passage("2", "T", "")]
    assert len(index_of(path)) == 3


def tar_gz(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_an_archive_under_the_name_of_a_compressed_file(tmp_path: Path):
    line = b'{"id": "%d", "contents": "\\"Velm\\"\\nA town."}\n'
    path = tar_gz(tmp_path / "wiki.jsonl.gz", {"a/one.jsonl": line % 1 + line % 2, "a/two.jsonl": line % 3})
    assert list(read_corpus(path)) == [Passage(str(n), "Velm", "A town.") for n in (1, 2, 3)]
    tar_gz(tmp_path / "bad.jsonl.gz", {"one.jsonl": line % 1, "readme.txt": b"text"})
    with pytest.raises(DataError, match=r"bad.jsonl.gz is an archive that holds readme.txt, expected .jsonl"):
        list(read_corpus(tmp_path / "bad.jsonl.gz"))
    tar_gz(tmp_path / "broken.jsonl.gz", {"one.jsonl": line % 1 + b"{"})
    with pytest.raises(DataError, match=r"broken.jsonl.gz, one.jsonl, line 2 is not valid JSON"):
        list(read_corpus(tmp_path / "broken.jsonl.gz"))


def test_an_archive_cut_short(tmp_path: Path):
    whole = tar_gz(tmp_path / "w.jsonl.gz", {"one.jsonl": b'{"text": "x"}\n' * 100_000}).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut.jsonl.gz is a damaged gzip file"):
        list(read_corpus(tmp_path / "cut.jsonl.gz"))
