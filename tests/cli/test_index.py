from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from verl_mtgrpo.cli import index
from verl_mtgrpo.errors import DataError
from verl_mtgrpo.retrieval import BM25Index


def mtgrpo(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    index.add_parser(parser.add_subparsers())
    args = parser.parse_args(["index", *map(str, arguments)])
    return args.run(args)


def test_builds_an_index_of_several_corpora(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.jsonl").write_text('{"id": "1", "contents": "\\"Velm\\"\\nA harbour town."}\n')
    (tmp_path / "b.json").write_text('{"Dravik": ["A mountain town.", "It is cold."]}')
    assert mtgrpo(tmp_path / "a.jsonl", tmp_path / "b.json", "--out", tmp_path / "index") == 0
    printed = capsys.readouterr().out
    manifest, end = json.JSONDecoder().raw_decode(printed)
    assert (manifest["count"], manifest["source"], manifest["analyser"]) == (2, "a.jsonl, b.json", "english")
    assert f"{tmp_path / 'index'}: 2 passages" in printed[end:]
    built = BM25Index.open(tmp_path / "index")
    assert [hit.title for hit in built.search(["mountains"], 2)[0]] == ["Dravik"]


def test_an_empty_corpus(tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"corpus is empty: empty.jsonl has no passages"):
        mtgrpo(tmp_path / "empty.jsonl", "--out", tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_ids_that_two_corpora_share(tmp_path: Path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps({"id": "0", "text": name}) + "\n")
    with pytest.raises(DataError, match=r"two passages have the id '0' .*of a.jsonl, b.jsonl"):
        mtgrpo(tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--out", tmp_path / "index")
