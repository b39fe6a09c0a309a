"""A real sentence-transformers model, made here with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.retrieval import DenseIndex, Passage, open_retriever
from verl_mtgrpo.retrieval.encoders import SentenceEncoder

pytest.importorskip("sentence_transformers", reason="needs the extra dense")
pytest.importorskip("faiss", reason="needs the extra dense")

pytestmark = pytest.mark.heavy

VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] query passage : a harbour mountain town market school hills sea"
PASSAGES = [
    Passage("sea", "Harbour", "a town sea"),
    Passage("hill", "", "mountain hills"),
    Passage("town", "Market", "a school"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a Bert of two small layers behind sentence-transformers' mean pooling."""
    import torch
    from sentence_transformers import SentenceTransformer, models
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text(VOCABULARY.replace(" ", "\n"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY.split()),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertModel(config).save_pretrained(folder / "bert")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    bert = models.Transformer(str(folder / "bert"))
    pooling = models.Pooling(bert.get_embedding_dimension())
    SentenceTransformer(modules=[bert, pooling], device="cpu").save(str(folder / "st"))
    return str(folder / "st")


def test_an_index_by_a_model(model: str, tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    DenseIndex.build(
        PASSAGES, tmp_path / "index", source="t", model=model, query_prefix="query: ", passage_prefix="passage: "
    )
    index = open_retriever(tmp_path / "index")  # the model and its prefixes come from the manifest
    reference = SentenceTransformer(model, device="cpu")
    texts = ["passage: Harbour\na town sea", "passage: mountain hills", "passage: Market\na school"]
    query = reference.encode(["query: mountain market"], normalize_embeddings=True)[0]
    scores = reference.encode(texts, normalize_embeddings=True) @ query
    (hits,) = index.search(["mountain market"], 3)
    assert [hit.id for hit in hits] == [PASSAGES[at].id for at in np.argsort(-scores)]
    assert [hit.score for hit in hits] == pytest.approx(np.sort(scores)[::-1].tolist(), rel=1e-4)
    # The prefixes matter: without them the scores are others.
    bare = reference.encode(["mountain market"], normalize_embeddings=True)[0]
    assert not np.allclose(reference.encode(texts, normalize_embeddings=True) @ bare, scores, rtol=1e-3)


def test_vectors_made_elsewhere_and_a_model_for_queries(model: str, tmp_path: Path):
    encoder = SentenceEncoder(model, None, None)
    vectors = encoder.encode(["Harbour\na town sea", "mountain hills", "Market\na school"], "document")
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), rel=1e-5)
    given = DenseIndex.build(PASSAGES, tmp_path / "given", source="t", model=model, embeddings=vectors)
    made = DenseIndex.build(PASSAGES, tmp_path / "made", source="t", model=model)
    ids = [[hit.id for hit in index.search(["a sea", "school hills"], 3)[1]] for index in (given, made)]
    assert ids[0] == ids[1]
    assert json.loads((tmp_path / "given" / "manifest.json").read_text())["model"] == model


def test_a_model_that_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"the model '.*nothing' cannot be loaded .*local folder"):
        DenseIndex.build(PASSAGES, tmp_path / "index", source="t", model=str(tmp_path / "nothing"))
    assert not (tmp_path / "index").exists()


def test_mtgrpo_query_searches_vectors(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from verl_mtgrpo.cli.main import main

    DenseIndex.build(PASSAGES, tmp_path / "index", source="t", model=model)
    ((hit,),) = open_retriever(tmp_path / "index").search(["a school"], 1)
    assert main(["query", str(tmp_path / "index"), "a school", "--top", "1"]) == 0
    assert f"1. {hit.score:.4g}  {hit.title or '(no title)'}  [{hit.id}]" in capsys.readouterr().out
