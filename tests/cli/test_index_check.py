from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from verl_mtgrpo.cli.main import main
from verl_mtgrpo.retrieval import BM25Index, DenseIndex


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "c.jsonl"
    path.write_text(
        "".join(f'{{"id": "p{n}", "title": "Town {n}", "text": "harbour number {n}"}}\n' for n in range(50))
    )
    return path


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_whole_index(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["index", str(corpus), "--out", str(tmp_path / "index")]) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")}
    capsys.readouterr()
    assert main(["index", "--check", str(tmp_path / "index")]) == 0
    assert "complete. BM25Index of 50 passages from c.jsonl" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")} == before


@pytest.mark.parametrize("suffix", [".store", ".idx", ".term", ".fieldnorm"])
def test_one_flipped_bit(corpus: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]):
    main(["index", str(corpus), "--out", str(tmp_path / "index")])
    (file,) = (tmp_path / "index").glob(f"data-*/*{suffix}")
    flip_a_bit(file)
    assert main(["index", "--check", str(tmp_path / "index")]) == 1
    error = capsys.readouterr().err
    assert "damaged" in error or "cannot be opened" in error
    assert f"build it again with: mtgrpo index CORPUS --out {tmp_path / 'index'}" in error or file.name in error


def test_another_checksum(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["index", str(corpus), "--out", str(tmp_path / "index")])
    manifest = tmp_path / "index" / "manifest.json"
    checksum = BM25Index.open(tmp_path / "index").manifest.checksum
    manifest.write_text(manifest.read_text().replace(checksum, "0" * 64))
    assert main(["index", "--check", str(tmp_path / "index")]) == 1
    assert (
        f"50 passages with the checksum {checksum[:12]}…, its manifest says 50 with 000000" in capsys.readouterr().err
    )


def test_what_is_no_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["index", "--check", str(tmp_path)]) == 1
    assert "not an index of verl-mtgrpo: it has no manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["c.jsonl"], "needs a CORPUS and --out DIR, or --check DIR"),
        (["--out", "x"], "needs a CORPUS and --out DIR"),
        (["c.jsonl", "--check", "x"], "--check builds nothing"),
        (["c.jsonl", "--out", "x", "--kind", "hnsw"], "belong to an index of vectors; add --dense"),
        (["c.jsonl", "--out", "x", "--dense", "m", "--analyser", "plain"], "--analyser belongs to a BM25 index"),
    ],
)
def test_arguments_that_do_not_go_together(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["index", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not Path("x").exists()


def test_vectors_from_a_file(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("faiss", reason="needs the extra dense")
    vectors = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    arguments = ["index", str(corpus), "--out", str(tmp_path / "dense"), "--vectors", str(tmp_path / "v.npy")]
    assert main([*arguments, "--kind", "hnsw"]) == 0
    index = DenseIndex.open(tmp_path / "dense", encoder=lambda texts: np.stack([vectors[int(t)] for t in texts]))
    best = int(np.argmax(vectors @ vectors[7]))
    assert index.search(["7"], 1)[0][0].id == f"p{best}"
    assert (index.manifest.kind, index.manifest.dimension) == ("hnsw", 8)
    capsys.readouterr()
    assert main(["index", "--check", str(tmp_path / "dense")]) == 0
    assert "DenseIndex of 50 passages" in capsys.readouterr().out
