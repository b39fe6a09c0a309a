"""`mtgrpo query`: what it finds in each kind of index, and what it prints."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from tests.retrieval.services import build_index, serving
from verl_mtgrpo.cli import index, query
from verl_mtgrpo.errors import ConfigError, IndexFormatError
from verl_mtgrpo.retrieval import BM25Index, Passage


def mtgrpo(command: str, *arguments: object) -> int:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    index.add_parser(subparsers)
    query.add_parser(subparsers)
    args = parser.parse_args([command, *map(str, arguments)])
    return args.run(args)


@pytest.fixture(scope="module")
def houses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_index(tmp_path_factory.mktemp("query") / "index")


def test_the_best_passages_with_their_scores(houses: Path, capsys: pytest.CaptureFixture[str]):
    assert mtgrpo("query", houses, "house", "uid7", "--top", 2) == 0
    printed = capsys.readouterr().out
    (hits,) = BM25Index.open(houses).search(["house uid7"], 2)
    assert hits[0].id == "p7"
    for rank, hit in enumerate(hits, start=1):
        assert f"{rank}. {hit.score:.4g}  {hit.title}  [{hit.id}]" in printed
    assert "   House uid7 stands\n   in the old town of Velm." in printed
    assert "2 passages in " in printed


def test_records_for_programs(houses: Path, capsys: pytest.CaptureFixture[str]):
    assert mtgrpo("query", houses, "uid7", "--json") == 0
    out, err = capsys.readouterr()
    (record,) = map(json.loads, out.splitlines())
    (hit,) = BM25Index.open(houses).search(["uid7"], 3)[0]
    assert record == {"rank": 1, "score": hit.score, "id": "p7", "title": hit.title, "text": hit.text}
    assert "1 passages in" in err


@pytest.mark.process
@pytest.mark.network
def test_a_service_and_several_at_once(houses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with serving("serve", houses) as running:
        assert mtgrpo("query", running.url, "uid7") == 0
        assert "[p7]" in capsys.readouterr().out
        assert mtgrpo("query", running.url, "uid7", "--with", houses) == 0
        # Both rank it first: 1 / 61 + 1 / 61.
        assert f"1. {2 / 61:.4g}  " in capsys.readouterr().out


def test_nothing_found(houses: Path, capsys: pytest.CaptureFixture[str]):
    assert mtgrpo("query", houses, "zzz") == 0
    assert capsys.readouterr().out == "No passage was found for this query. Try other words.\n"


def test_wrong_arguments(houses: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--top is 0, expected 1 or more"):
        mtgrpo("query", houses, "x", "--top", 0)
    with pytest.raises(ConfigError, match=r"--chars is -1, expected 0 or more"):
        mtgrpo("query", houses, "x", "--chars", -1)
    with pytest.raises(ConfigError, match="the query is empty"):
        mtgrpo("query", houses, " \x00 ")
    with pytest.raises(IndexFormatError, match="there is no index at"):
        mtgrpo("query", tmp_path / "none", "x")


def test_a_passage_cannot_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    hostile = "words \x1b[2J\x1b]0;title\x07 \u202e turned \x9b31m"
    BM25Index.build([Passage(f"id\x1b[1m\n{hostile}", hostile, hostile)], tmp_path / "index", source="made")
    assert mtgrpo("query", tmp_path / "index", "words") == 0
    printed = capsys.readouterr().out
    assert not set("\x1b\x07\x9b\u202e") & set(printed) and "words" in printed


def test_a_long_text_is_cut_unless_all_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = " ".join(f"word{number}" for number in range(1000))
    BM25Index.build([Passage("a", "", text)], tmp_path / "index", source="made")
    for given, last in (([], "word999"), (["--chars", 0], "…")):
        mtgrpo("query", tmp_path / "index", "word1", *given)
        printed = capsys.readouterr().out
        assert last not in printed and "1.  (no title)" not in printed and "(no title)" in printed


def test_documents_from_the_folder_to_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for package in ("semantic_text_splitter", "pypdf", "bs4", "markdownify"):
        pytest.importorskip(package, reason="needs the extra documents")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "harbour.md").write_text("# Harbour\n\n## Hours\n\nThe gate opens at nine.\n")
    (tmp_path / "docs" / "bad.txt").write_bytes(b"\xff")
    (tmp_path / "long.jsonl").write_text(json.dumps({"id": "1", "text": "x" * 2_000_000}) + "\n")
    assert mtgrpo("index", tmp_path / "docs", tmp_path / "long.jsonl", "--out", tmp_path / "index") == 0
    err = capsys.readouterr().err
    assert "mtgrpo: warning: 1 documents could not be read and are not in the index:" in err
    assert f"{tmp_path / 'docs' / 'bad.txt'} is not UTF-8 text" in err
    assert "1 passages have more than 100,000 characters, the longest 2,000,000 (id '1')" in err
    mtgrpo("query", tmp_path / "index", "when does the gate open")
    assert "Harbour: Hours  [docs/harbour.md#1]" in capsys.readouterr().out


def test_passages_of_another_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("semantic_text_splitter", reason="needs the extra documents")
    (tmp_path / "a.txt").write_text("One sentence of a text. " * 40)
    mtgrpo("index", tmp_path / "a.txt", "--out", tmp_path / "index", "--chunk-chars", 120)
    assert max(len(one.text) for one in BM25Index.open(tmp_path / "index").passages()) <= 120
    with pytest.raises(ConfigError, match="passages of 10 characters hold no sentence, expected 50 or more"):
        mtgrpo("index", tmp_path / "a.txt", "--out", tmp_path / "index", "--chunk-chars", 10)
