from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from verl_mtgrpo.demo.world import World, WorldSize, build_world
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.retrieval.bm25 import BM25Index

SMALL = WorldSize(entities_per_kind=12, famous_per_kind=2, train_questions=100, val_questions=40)


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(0, SMALL)


@pytest.fixture(scope="module")
def index(world: World, tmp_path_factory: pytest.TempPathFactory) -> BM25Index:
    out: Path = tmp_path_factory.mktemp("world") / "index"
    return BM25Index.build(world.passages, out, source="world", analyser="plain")


def test_equal_seeds_give_equal_worlds(world: World):
    assert build_world(0, SMALL) == world
    assert build_world(1, SMALL).names != world.names


def test_no_name_hides_in_another_one_or_in_the_words_of_the_world(world: World):
    names = world.names
    assert len(set(names)) == len(names) == 48
    assert not [(a, b) for a in names for b in names if a != b and a in b]
    words = {
        word for fact in world.facts for word in fact.relation.sentence.replace("{s}", "").replace("{o}", "").split()
    }
    assert not words & set(names)


def test_a_passage_states_its_facts_in_several_sentences_and_no_object_twice(world: World):
    for passage in world.passages:
        facts = [fact for fact in world.facts if fact.passage == passage.id]
        assert len(facts) == passage.text.count(".") == 3
        assert all(fact.relation.sentence.format(s=fact.subject, o=fact.object) in passage.text for fact in facts)
        assert len({fact.object for fact in facts}) == 3


def test_the_answer_stands_in_the_gold_passage(world: World):
    passages = {passage.id: passage for passage in world.passages}
    for question in world.questions:
        assert question.answer in passages[question.facts[-1].passage].text
        assert question.facts[0].subject in question.text
        assert question.answer not in question.text


@pytest.mark.parametrize("hops", [2, 3])
def test_hops_are_chained_and_name_only_the_first_entity(hops: int):
    questions = build_world(0, replace(SMALL, famous_share=0.1, hop_shares={hops: 0.9})).questions
    chained = [question for question in questions if not question.famous]
    assert len(chained) == 126
    for question in chained:
        assert len(question.facts) == len(question.queries) == hops
        for fact, following in zip(question.facts, question.facts[1:], strict=False):
            assert fact.object == following.subject
        passed = [fact.object for fact in question.facts]
        assert len({question.facts[0].subject, *passed}) == hops + 1
        assert question.facts[0].subject in question.text
        assert not [name for name in passed if name in question.text]
        assert question.answer == passed[-1]


def test_the_possessive_changes_only_the_wording():
    size = replace(SMALL, famous_share=0.1, hop_shares={2: 0.4, 3: 0.5})
    plain, possessive = build_world(0, size), build_world(0, replace(size, possessive=True))
    assert possessive.passages == plain.passages
    for question, other in zip(plain.questions, possessive.questions, strict=True):
        assert replace(other, text=question.text) == question
        nouns = [fact.relation.noun for fact in question.facts]
        assert (
            " of ".join(f"the {noun}" for noun in reversed(nouns)) + f" of {question.facts[0].subject}" in question.text
        )
        assert "'s ".join([question.facts[0].subject, *nouns]) in other.text


def test_good_queries_find_the_gold_passages_and_vague_ones_do_not(world: World, index: BM25Index):
    vague_hits = 0
    for question in world.questions:
        for query, fact in zip(question.queries, question.facts, strict=True):
            assert index.search([query], 2)[0][0].id == fact.passage
            vague = index.search([f"the {fact.relation.noun}"], 2)[0]
            vague_hits += any(passage.id == fact.passage for passage in vague)
    assert vague_hits < 0.25 * len(world.questions)


def test_distractors_share_both_the_name_and_the_words(world: World, index: BM25Index):
    """The second hit of a good query is never the gold passage but always shares words with the query."""
    for question in world.questions[:40]:
        query = question.queries[0]
        second = index.search([query], 2)[0][1]
        assert second.id != question.facts[0].passage
        shared = set(query.split()) & set(f"{second.title} {second.text}".replace(".", "").split())
        assert shared - {"the", "of"}


def test_shares_of_famous_questions_and_of_hops(world: World):
    for split, count in (("train", 100), ("val", 40)):
        questions = world.split(split)
        assert len(questions) == count
        assert sum(question.famous for question in questions) == pytest.approx(0.35 * count, abs=1)
        assert sum(len(question.facts) == 2 for question in questions) == pytest.approx(0.15 * count, abs=1)

    mixed = build_world(0, replace(SMALL, famous_share=0.1, hop_shares={2: 0.3, 3: 0.4}))
    for split, count in (("train", 100), ("val", 40)):
        hops = [len(question.facts) for question in mixed.split(split)]
        assert [hops.count(n) / count for n in (1, 2, 3)] == [0.3, 0.3, 0.4]


def test_ordinary_facts_of_validation_are_not_asked_in_training(world: World):
    train = {question.facts for question in world.split("train")}
    assert not [question for question in world.split("val") if not question.famous and question.facts in train]
    assert len({question.id for question in world.questions}) == len(world.questions)


def test_a_world_too_small_for_its_questions_is_refused():
    with pytest.raises(ConfigError, match=r"the world has 96 famous questions, expected at least 350"):
        build_world(0, WorldSize(entities_per_kind=12, famous_per_kind=2, train_questions=1000, val_questions=0))
    with pytest.raises(ConfigError, match=r"famous_per_kind is 9, expected 0 to entities_per_kind=5"):
        build_world(0, WorldSize(entities_per_kind=5, famous_per_kind=9))
