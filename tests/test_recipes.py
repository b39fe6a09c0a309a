from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from verl_mtgrpo.retrieval import BM25Index

RECIPES = Path(__file__).parent.parent / "recipes"


def build_wiki18(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = folder / "mtgrpo"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m verl_mtgrpo.cli.main "$@"\n')
    command.chmod(0o755)
    return subprocess.run(
        ["bash", str(RECIPES / "wiki18" / "build.sh")],
        cwd=folder,
        env={**os.environ, "PYTHON": sys.executable, "MTGRPO": str(command), "PYTHONPATH": os.getcwd(), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_wiki18_in_small(tmp_path: Path):
    result = build_wiki18(tmp_path, DRY_RUN="1")
    assert result.returncode == 0, result.stderr
    index = BM25Index.open(tmp_path / "runs" / "dry_run" / "wiki18" / "made-up-bm25")
    assert len(index) == 2000
    (hit,) = index.search(["word7 word8"], 1)[0]
    assert hit.title.startswith("Article ")
    assert "whole. BM25Index of 2000 passages from made-up.jsonl.gz" in result.stdout


def test_wiki18_refuses_another_file(tmp_path: Path):
    with (tmp_path / "wiki.jsonl.gz").open("wb") as file:
        file.truncate(1_000_000_001)  # sparse: about the size of a dump
    result = build_wiki18(tmp_path, CORPUS="wiki.jsonl.gz")
    assert result.returncode == 1
    assert "is not the file this recipe was written for" in result.stderr
    assert not (tmp_path / "data" / "wiki18" / "bm25").exists()
