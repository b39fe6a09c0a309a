from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from verl_mtgrpo.data.corpus import read_corpus
from verl_mtgrpo.data.files import read_records
from verl_mtgrpo.errors import DataError
from verl_mtgrpo.retrieval import Passage


def test_rows_of_csv_and_tsv_files(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfid,text\r\n1,"a, ""b""\r\nc"\r\n2,\xc3\xa9\r\n')
    assert list(read_records(tmp_path / "a.csv")) == [
        (f"{tmp_path / 'a.csv'}, line 3", {"id": "1", "text": 'a, "b"\r\nc'}),
        (f"{tmp_path / 'a.csv'}, line 4", {"id": "2", "text": "é"}),
    ]
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"id\ttext\ttitle\n1\ta, b\tT\n"))
    assert list(read_corpus(tmp_path / "a.tsv.gz")) == [Passage("1", "T", "a, b")]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a,b\n1,2\n3\n", r"line 3 has fewer fields than the first line has names"),
        (b"a,b\n1,2,3\n", r"line 2 has more fields"),
        (b"a,b\n1,\xff\n", r"line 2 is not UTF-8 text .*byte 3"),
        (b'a,b\n1,"' + b"x" * 200_000 + b'"\n', r"line 2 is not a valid row: field larger than"),
    ],
)
def test_broken_tables_say_where(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_records(tmp_path / "a.csv"))
