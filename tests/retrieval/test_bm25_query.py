"""Searching rare words first gives the same as the formula over all words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.oracles import naive_bm25
from verl_mtgrpo.retrieval import BM25Index, Passage, bm25_query


def zipf_corpus(passages: int, words: int, seed: int) -> list[Passage]:
    """Texts of the words w0, w1, … drawn with probabilities 1/(rank + 1): w0 is nearly everywhere."""
    rng = np.random.default_rng(seed)
    share = 1 / (np.arange(300) + 1)
    drawn = rng.choice(300, (passages, words), p=share / share.sum())
    return [Passage(f"p{n}", "", " ".join(f"w{word}" for word in row)) for n, row in enumerate(drawn)]


CORPUS = zipf_corpus(1500, 30, seed=0)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> BM25Index:
    return BM25Index.build(CORPUS, tmp_path_factory.mktemp("zipf") / "index", source="zipf", analyser="plain")


def queries(count: int, seed: int) -> list[str]:
    """A few rare words with frequent ones, some of them twice."""
    rng = np.random.default_rng(seed)
    return [
        " ".join(f"w{word}" for word in [*rng.integers(0, 5, 3), *rng.integers(60, 300, rng.integers(1, 6))])
        for _ in range(count)
    ]


@pytest.mark.parametrize("k", [1, 3, 40])
def test_the_best_passages_are_those_of_the_formula(index: BM25Index, monkeypatch: pytest.MonkeyPatch, k: int):
    monkeypatch.setattr(bm25_query, "_FEW_POSTINGS", 0)
    proven = []
    by_split = bm25_query.WordSearch._best_by_split
    monkeypatch.setattr(
        bm25_query.WordSearch, "_best_by_split", lambda *args: proven.append(by_split(*args)) or proven[-1]
    )
    asked = queries(25, seed=k)
    for query, hits in zip(asked, index.search(asked, k), strict=True):
        expected = naive_bm25(query, CORPUS)
        assert len(hits) == min(k, len(expected))
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected[:k]], rel=1e-4)
        by_id = dict(expected)  # equal scores may be ordered otherwise, so ids are compared through their scores
        assert [hit.score for hit in hits] == pytest.approx([by_id[hit.id] for hit in hits], rel=1e-4)
    used = sum(found is not None for found in proven)
    assert used >= 5, "the split was hardly ever tried: this test shows nothing"


def test_ties_keep_the_order_of_the_corpus_by_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # 60 equal passages hold the rare word; all passages hold the frequent one.
    corpus = [Passage(f"p{n}", "", "common rare" if n % 25 == 24 else "common other") for n in range(1500)]
    index = BM25Index.build(corpus, tmp_path / "index", source="t", analyser="plain")
    wanted = [f"p{25 * n + 24}" for n in range(60)]
    for few in (0, 10**9):
        monkeypatch.setattr(bm25_query, "_FEW_POSTINGS", few)
        for k in (3, 60):
            assert [hit.id for hit in index.search(["rare common"], k)[0]] == wanted[:k]
    # More than there are with the rare word: the rest are the first of the others.
    assert [hit.id for hit in index.search(["rare common"], 62)[0]] == [*wanted, "p0", "p1"]
