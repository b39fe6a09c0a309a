from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from verl_mtgrpo.errors import ConfigError, DataError, IndexFormatError
from verl_mtgrpo.retrieval import BM25Index, DenseIndex, Passage, Retriever, check_index

pytest.importorskip("faiss", reason="needs the extra dense")

PASSAGES = [Passage(f"p{n}", f"title {n}", f"text {n}") for n in range(2000)]
VECTORS = np.random.default_rng(0).standard_normal((2000, 16)).astype(np.float32)
QUERIES = np.random.default_rng(1).standard_normal((50, 16)).astype(np.float32)


class Table:
    """Encodes the text "query 7" as row 7; picklable, and tells what it was asked."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        return self.rows[[int(text.split()[-1]) for text in texts]]


def build(out: Path, kind: str = "flat", **settings: object) -> DenseIndex:
    DenseIndex.build(PASSAGES, out, source="test", embeddings=VECTORS, kind=kind, **settings)  # type: ignore[arg-type]
    return DenseIndex.open(out, encoder=Table(QUERIES))


def nearest(query: np.ndarray, k: int) -> list[tuple[str, float]]:
    """The k passages with the largest inner products, by comparing all of them."""
    scores = VECTORS @ query
    return [(f"p{row}", float(scores[row])) for row in np.argsort(-scores, kind="stable")[:k]]


def names(count: int) -> list[str]:
    return [f"query {n}" for n in range(count)]


def test_flat_finds_the_largest_inner_products(tmp_path: Path):
    index = build(tmp_path / "index")
    assert isinstance(index, Retriever)
    for query, hits in zip(QUERIES, index.search(names(50), 7), strict=True):
        expected = nearest(query, 7)
        assert [hit.id for hit in hits] == [id for id, _ in expected]
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], rel=1e-5)
    (hit,) = index.search(["query 0"], 1)[0]
    number = int(hit.id[1:])
    assert (hit.title, hit.text) == (f"title {number}", f"text {number}")


def test_a_graph_finds_nearly_all_of_them(tmp_path: Path):
    index = build(tmp_path / "index", kind="hnsw")
    found = index.search(names(50), 10)
    right = sum(
        len({hit.id for hit in hits} & {id for id, _ in nearest(query, 10)})
        for query, hits in zip(QUERIES, found, strict=True)
    )
    assert right / 500 > 0.9
    scores = [hit.score for hit in found[0]]
    assert scores == sorted(scores, reverse=True)


def test_equal_scores_keep_the_order_of_the_corpus_and_k_may_exceed_it(tmp_path: Path):
    passages = PASSAGES[:5]
    vectors = np.array([[1, 0], [2, 0], [1, 0], [2, 0], [1, 0]], np.float32)
    index = DenseIndex.build(passages, tmp_path / "index", source="t", embeddings=vectors)
    index = DenseIndex.open(index.path, encoder=lambda texts: np.ones((len(texts), 2)))
    assert [hit.id for hit in index.search(["x"], 100)[0]] == ["p1", "p3", "p0", "p2", "p4"]


def test_blank_queries_find_nothing(tmp_path: Path):
    index = build(tmp_path / "index")
    assert [len(hits) for hits in index.search(["", "query 1", " \n"], 3)] == [0, 3, 0]
    assert index.search([], 3) == []


def test_vectors_from_a_file_a_list_of_rows_and_a_function_are_the_same(tmp_path: Path):
    np.save(tmp_path / "vectors.npy", VECTORS)
    encoder = Table(VECTORS)
    built = [
        DenseIndex.build(PASSAGES, tmp_path / "file", source="t", embeddings=tmp_path / "vectors.npy"),
        DenseIndex.build(PASSAGES, tmp_path / "rows", source="t", embeddings=VECTORS.tolist()),  # type: ignore[arg-type]
        DenseIndex.build(PASSAGES, tmp_path / "function", source="t", embeddings=encoder),
    ]
    assert encoder.asked[3] == "title 3\ntext 3"
    assert built[2].search(["title 5"], 1)[0][0].id == nearest(VECTORS[5], 1)[0][0]  # the function encodes queries too
    hashes = {index.manifest.files["vectors.faiss"] for index in built}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "vectors, message",
    [
        (VECTORS[:1999], r"1999 vectors, but the corpus has at least 2000"),
        (np.vstack([VECTORS, VECTORS[:1]]), r"2001 vectors for the 2000 passages of test"),
        (VECTORS[:, 0], r"shape \(2000,\), expected \(passages, dimension\)"),
        (np.where(np.arange(2000)[:, None] == 1500, np.nan, VECTORS), r"NaN or infinity \(first in row 1500\)"),
        (VECTORS.astype(str), r"of the type <U\d+, expected numbers"),
        (lambda texts: VECTORS[:3], r"shape \(3, 16\), expected \(1024, dimension\): one vector for each text"),
    ],
)
def test_vectors_that_do_not_fit(tmp_path: Path, vectors: object, message: str):
    with pytest.raises(DataError, match=message):
        DenseIndex.build(PASSAGES, tmp_path / "index", source="test", embeddings=vectors)  # type: ignore[arg-type]
    assert not (tmp_path / "index").exists()


def test_a_file_that_holds_no_vectors(tmp_path: Path):
    (tmp_path / "x.npy").write_text("text")
    with pytest.raises(DataError, match=r"x.npy is not a .npy file of vectors .*numpy.save"):
        DenseIndex.build(PASSAGES, tmp_path / "index", source="t", embeddings=tmp_path / "x.npy")


def test_settings_that_make_no_index(tmp_path: Path):
    with pytest.raises(ConfigError, match="needs vectors; give model="):
        DenseIndex.build(PASSAGES, tmp_path / "index", source="t")
    with pytest.raises(ConfigError, match="kind is 'ivf', expected one of flat, hnsw"):
        DenseIndex.build(PASSAGES, tmp_path / "index", source="t", embeddings=VECTORS, kind="ivf")
    with pytest.raises(ConfigError, match=r"looks like an E5 model.*--query-prefix"):
        DenseIndex.build(PASSAGES, tmp_path / "index", source="t", model="intfloat/e5-base-v2")


def test_without_a_model_queries_need_an_encoder(tmp_path: Path):
    index = DenseIndex.build(PASSAGES, tmp_path / "index", source="t", embeddings=VECTORS)
    with pytest.raises(ConfigError, match=r"names no model.*encoder="):
        index.search(["query 1"], 3)
    wrong = DenseIndex.open(index.path, encoder=lambda texts: np.ones((len(texts), 3)))
    with pytest.raises(DataError, match=r"queries' vectors have the shape \(1, 3\), expected \(1, 16\)"):
        wrong.search(["query 1"], 3)


def test_repeated_ids_and_an_empty_corpus(tmp_path: Path):
    twice = [PASSAGES[0], PASSAGES[1], PASSAGES[0]]
    with pytest.raises(DataError, match=r"two passages have the id 'p0' \(passage 1 and passage 3 of t\)"):
        DenseIndex.build(twice, tmp_path / "index", source="t", embeddings=VECTORS[:3])
    with pytest.raises(DataError, match="the corpus is empty"):
        DenseIndex.build([], tmp_path / "index", source="t", embeddings=VECTORS[:0])


def test_a_copy_opens_the_same_index(tmp_path: Path):
    index = build(tmp_path / "index")
    copy = pickle.loads(pickle.dumps(index))
    assert copy.search(names(3), 3) == index.search(names(3), 3)
    lazy = pickle.loads(pickle.dumps(index))
    DenseIndex.build(PASSAGES[:3], index.path, source="t", embeddings=VECTORS[:3])
    with pytest.raises(IndexFormatError, match="replaced by one with other passages"):
        lazy.search(["query 1"], 1)
    assert len(copy.search(["query 1"], 50)[0]) == 50  # open files outlive their folder


def test_the_kinds_of_index_are_told_apart(tmp_path: Path):
    dense, bm25 = build(tmp_path / "dense"), BM25Index.build(PASSAGES, tmp_path / "bm25", source="t")
    with pytest.raises(IndexFormatError, match=r"of the kind DenseIndex, not BM25Index; open it with DenseIndex.open"):
        BM25Index.open(dense.path)
    with pytest.raises(IndexFormatError, match=r"of the kind BM25Index, not DenseIndex"):
        DenseIndex.open(bm25.path)
    with pytest.raises(IndexFormatError, match=r"holds an index of another kind \(DenseIndex\); give another --out"):
        BM25Index.build(PASSAGES, dense.path, source="t")
    assert bm25.manifest.checksum == dense.manifest.checksum  # equal passages, whatever they are indexed by


@pytest.mark.parametrize("file", ["vectors.faiss", "passages.arrow"])
def test_damage_is_found(tmp_path: Path, file: str):
    index = build(tmp_path / "index")
    assert len(check_index(index.path)) == 2000
    path = index.path / index.manifest.data / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IndexFormatError, match=rf"damaged: files in data-.*\(changed: {file}\)"):
        check_index(index.path)
    path.write_bytes(content[:100])
    with pytest.raises(IndexFormatError, match=r"cannot be opened by faiss"):
        DenseIndex.open(index.path)
    path.unlink()
    with pytest.raises(IndexFormatError, match=r"damaged: its data folder .* is missing or incomplete"):
        DenseIndex.open(index.path)


def test_a_manifest_of_another_dimension(tmp_path: Path):
    index = build(tmp_path / "index")
    path = index.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dimension": 15}))
    with pytest.raises(IndexFormatError, match="vectors of length 16, its manifest says 2000 of length 15"):
        DenseIndex.open(index.path)
