from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from verl_mtgrpo.errors import ConfigError, IndexFormatError, RetrievalError, RetrievalUnreachable
from verl_mtgrpo.retrieval import (
    BM25Index,
    DenseIndex,
    HTTPRetriever,
    HybridRetriever,
    Passage,
    Retriever,
    open_retriever,
)
from verl_mtgrpo.retrieval.hybrid import fuse


def ranking(ids: str) -> list[Passage]:
    return [Passage(id, f"title {id}", f"text {id}", score=99.0) for id in ids]


def test_reciprocal_ranks_worked_by_hand():
    # Cormack et al. with k = 60, two rankings:   A B C   and   C A D
    #   A: 1/61 + 1/62 = 0.016393 + 0.016129 = 0.032522
    #   C: 1/63 + 1/61 = 0.015873 + 0.016393 = 0.032266
    #   B: 1/62        = 0.016129
    #   D: 1/63        = 0.015873
    fused = fuse([ranking("ABC"), ranking("CAD")], 10)
    assert [hit.id for hit in fused] == ["A", "C", "B", "D"]
    assert [hit.score for hit in fused] == pytest.approx([0.032522, 0.032266, 0.016129, 0.015873], abs=1e-6)
    assert (fused[1].title, fused[1].text) == ("title C", "text C")
    assert fuse([ranking("ABC"), ranking("CAD")], 2) == fused[:2]


def test_equal_scores_go_by_the_better_rank_then_by_the_order_of_the_parts():
    # A and B: 1/61 + 1/62 each, both with a rank 1; A's is of the first part. X and Y: 1/63, once each.
    assert [hit.id for hit in fuse([ranking("ABX"), ranking("BAY")], 4)] == ["A", "B", "X", "Y"]
    assert fuse([[], []], 3) == []
    assert [hit.id for hit in fuse([[], ranking("AB")], 3)] == ["A", "B"]


def test_one_id_with_two_texts_is_an_error():
    other = [Passage("A", "", "another corpus")]
    with pytest.raises(RetrievalError, match=r"different texts for the passage 'A' .*same corpus"):
        fuse([ranking("AB"), other], 3)


CORPUS = [
    Passage("sea", "Velm", "a harbour"),
    Passage("hill", "Dravik", "a mountain"),
    Passage("plain", "Orsa", "a field"),
]
# In the space of the two first passages: sea = (1, 0), hill = (0, 1), plain in between.
PLACES = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.6]])


def near_the_sea(texts: list[str]) -> np.ndarray:
    return np.array([[1.0, 0.1]] * len(texts))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    pytest.importorskip("faiss", reason="needs the extra dense")
    BM25Index.build(CORPUS, tmp_path / "bm25", source="t")
    DenseIndex.build(CORPUS, tmp_path / "dense", source="t", embeddings=PLACES)
    return tmp_path / "bm25", tmp_path / "dense"


def test_words_and_vectors_together(folders: tuple[Path, Path]):
    hybrid = HybridRetriever([BM25Index.open(folders[0]), DenseIndex.open(folders[1], encoder=near_the_sea)])
    assert isinstance(hybrid, Retriever)
    # Words: hill only. Vectors: sea 1.0, plain 0.66, hill 0.1. So hill: 1/61 + 1/63, sea: 1/61, plain: 1/62.
    expected = [("hill", 1 / 61 + 1 / 63), ("sea", 1 / 61), ("plain", 1 / 62)]
    (hits,) = hybrid.search(["mountain"], 3)
    assert [(hit.id, hit.score) for hit in hits] == [(id, pytest.approx(score)) for id, score in expected]
    assert asyncio.run(hybrid.asearch(["mountain", "?"], 3)) == [hits, hybrid.search(["?"], 3)[0]]


class Down:
    """A search service that cannot be reached."""

    fingerprint = "down"

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        raise RetrievalUnreachable("no connection")

    async def asearch(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return self.search(queries, k)


def test_half_the_results_are_never_given_for_all(tmp_path: Path):
    index = BM25Index.build(CORPUS, tmp_path / "bm25", source="t")
    for parts in ([index, Down()], [Down(), index]):
        with pytest.raises(RetrievalUnreachable, match="no connection"):
            HybridRetriever(parts).search(["mountain"], 3)
        with pytest.raises(RetrievalUnreachable, match="no connection"):
            asyncio.run(HybridRetriever(parts).asearch(["mountain"], 3))


def test_settings_of_a_hybrid(tmp_path: Path):
    with pytest.raises(ConfigError, match="has 1 parts, expected at least 2"):
        HybridRetriever([Down()])
    with pytest.raises(ConfigError, match="depth is 0"):
        HybridRetriever([Down(), Down()], depth=0)
    with pytest.raises(ConfigError, match="k is 0"):
        HybridRetriever([Down(), Down()]).search(["x"], 0)


def test_what_a_config_names_is_opened(folders: tuple[Path, Path]):
    bm25, dense = folders
    assert isinstance(open_retriever(str(bm25)), BM25Index)
    assert isinstance(open_retriever(dense), DenseIndex)
    assert isinstance(open_retriever([bm25]), BM25Index)
    both = open_retriever([str(bm25), dense])
    assert isinstance(both, HybridRetriever)
    assert [type(part) for part in both.parts] == [BM25Index, DenseIndex]


@pytest.mark.parametrize("spec", ["", "  ", [], None, 5])
def test_what_names_no_retriever(spec: object):
    with pytest.raises(ConfigError, match=r"the index is .*expected a folder, an http\(s\) address, or a list"):
        open_retriever(spec)  # type: ignore[arg-type]


def test_folders_that_are_no_index(tmp_path: Path):
    with pytest.raises(IndexFormatError, match="there is no index at"):
        open_retriever(tmp_path / "missing")
    (tmp_path / "manifest.json").write_text('{"format": "someone else"}')
    with pytest.raises(IndexFormatError, match="format='someone else', expected one of verl-mtgrpo/bm25, "):
        open_retriever(tmp_path)


@pytest.mark.network
def test_addresses_are_opened_with_their_settings(folders: tuple[Path, Path]):
    service = open_retriever("http://127.0.0.1:9", patience_s=0.2, concurrency=3)
    assert isinstance(service, HTTPRetriever)
    assert service.url == "http://127.0.0.1:9/retrieve"
    with pytest.raises(RetrievalUnreachable, match=r"\(\d (try|tries) in \d\.\d s\)"):
        service.search(["x"], 1)
    both = open_retriever([folders[0], "http://127.0.0.1:9"])
    assert isinstance(both, HybridRetriever)
    assert isinstance(both.parts[1], HTTPRetriever)


def test_fingerprints_tell_when_answers_may_change(folders: tuple[Path, Path], tmp_path: Path):
    bm25, dense = BM25Index.open(folders[0]), DenseIndex.open(folders[1])
    other = BM25Index.build(CORPUS[:2], tmp_path / "other", source="t")
    assert bm25.fingerprint == BM25Index.open(folders[0]).fingerprint
    assert len({bm25.fingerprint, other.fingerprint, dense.fingerprint}) == 3
    assert DenseIndex.open(folders[1], encoder=near_the_sea).fingerprint == "", "a function may change"
    assert HybridRetriever([bm25, dense]).fingerprint != HybridRetriever([dense, bm25]).fingerprint
    assert HybridRetriever([bm25, DenseIndex.open(folders[1], encoder=near_the_sea)]).fingerprint == ""
