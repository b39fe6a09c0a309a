from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes import build_wiki18
from verl_mtgrpo.retrieval import BM25Index

pytestmark = pytest.mark.process


def test_wiki18_in_small(tmp_path: Path):
    result = build_wiki18(tmp_path, DRY_RUN="1")
    assert result.returncode == 0, result.stderr
    index = BM25Index.open(tmp_path / "runs" / "dry_run" / "wiki18" / "made-up-bm25")
    assert len(index) == 2000
    (hit,) = index.search(["word7 word8"], 1)[0]
    assert hit.title.startswith("Article ")
    assert "complete. BM25Index of 2000 passages from made-up.jsonl.gz" in result.stdout


def test_wiki18_refuses_another_file(tmp_path: Path):
    with (tmp_path / "wiki.jsonl.gz").open("wb") as file:
        file.truncate(1_000_000_001)  # sparse: about the size of a dump
    result = build_wiki18(tmp_path, CORPUS="wiki.jsonl.gz")
    assert result.returncode == 1
    assert "is not the file this recipe was written for" in result.stderr
    assert not (tmp_path / "data" / "wiki18" / "bm25").exists()
