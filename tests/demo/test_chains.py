"""The world whose questions need several searches: what its demonstrations show, and whether its rollouts fit."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from verl_mtgrpo.demo.assets import TOOLS, _texts
from verl_mtgrpo.demo.policy import build_tokenizer
from verl_mtgrpo.demo.warmup_check import Rollout, rates
from verl_mtgrpo.demo.warmup_demos import Demonstration, Demonstrator
from verl_mtgrpo.demo.world import Question, World, build_world
from verl_mtgrpo.demo.worlds import WORLDS
from verl_mtgrpo.retrieval.bm25 import BM25Index
from verl_mtgrpo.rewards.paper_v2 import paper_v2
from verl_mtgrpo.rewards.transcript import ToolCall, Transcript, Turn

HOPS = WORLDS["hops"]
SMALL = replace(HOPS.assets.size, entities_per_kind=12, famous_per_kind=2, train_questions=100, val_questions=40)


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(0, SMALL)


@pytest.fixture
def demonstrator(world: World, tmp_path: Path) -> Demonstrator:
    index = BM25Index.build(world.passages, tmp_path / "index", source="world", analyser="plain")
    return Demonstrator(world, index, k=HOPS.assets.k, template=HOPS.assets.template, rng=random.Random(0))


def said(shown: Demonstration) -> list[str]:
    return [message["content"] for message in shown.messages if message["role"] == "assistant"]


def queries(shown: Demonstration) -> list[str]:
    return [query for text in said(shown) for query in re.findall('"query": "(.*?)"', text)]


def test_a_chain_states_each_finding_and_searches_for_what_the_question_asks_of_it(demonstrator: Demonstrator):
    asked = {question.text: question for question in demonstrator.world.questions}
    seen = set[int]()
    for _ in range(60):
        shown = demonstrator._look_up_chain()
        question = asked[shown.messages[0]["content"]]
        texts = said(shown)
        results = [message["content"] for message in shown.messages if message["role"] == "tool"]
        assert len(texts) == len(question.facts) + 1 and len(results) == len(question.facts)
        for fact, result, before, after in zip(question.facts, results, texts, texts[1:], strict=False):
            assert f"the {fact.relation.noun} of {fact.subject}" in before
            assert fact.relation.sentence.format(s=fact.subject, o=fact.object) in result
            assert after.startswith(f"So {fact.relation.noun.capitalize()} {fact.object}")
        assert texts[-1].endswith(f"<answer> {question.answer}</answer>")
        seen.add(len(question.facts))
    assert seen == {2, 3}


def test_habits_go_on_to_the_next_hop_as_often_as_wanted(demonstrator: Demonstrator):
    habits = replace(HOPS.assets.habits, search=1.0, broken_call=0.0, vague_query=0.0, wrong_query=0.0)
    asked = {question.text: len(question.facts) for question in demonstrator.world.questions}
    shown = [demonstrator.habit(habits) for _ in range(3000)]
    made = [len(queries(one)) for one in shown if asked[one.messages[0]["content"]] == 3]
    again, third = sum(count > 1 for count in made), sum(count > 2 for count in made)
    assert again / len(made) == pytest.approx(habits.second_search, abs=0.05)
    assert third / again == pytest.approx(habits.second_search, abs=0.05)


@pytest.mark.heavy
def test_three_results_and_the_answer_fit_into_a_response(world: World, demonstrator: Demonstrator):
    pytest.importorskip("transformers")
    tokenizer: Any = build_tokenizer(_texts(world), world.names)

    def length(messages: tuple[dict[str, Any], ...]) -> int:
        text = tokenizer.apply_chat_template(list(messages), tools=TOOLS, tokenize=False)
        return len(tokenizer.encode(text, add_special_tokens=False))

    chains = [demonstrator._look_up_chain().messages for _ in range(100)]
    questions, whole = max(length(chain[:1]) for chain in chains), max(length(chain) for chain in chains)
    assert questions < HOPS.training.prompt_length
    assert 200 < whole - questions < 0.9 * HOPS.training.response_length


def rollout_of(question: Question, made: tuple[str, ...], answer: str) -> Rollout:
    return Rollout(question, [], [], queries=list(made), results=["" for _ in made], answer=answer, done=True)


def test_a_chain_is_complete_with_one_good_query_for_each_hop(world: World):
    question = next(question for question in world.questions if len(question.facts) == 3)
    famous = next(question for question in world.questions if question.famous)
    good = question.queries
    rollouts = [
        rollout_of(question, good, question.answer),
        rollout_of(question, (*good, good[2]), "x"),
        rollout_of(question, good[:2], "x"),
        rollout_of(question, (good[0], good[2], good[1]), "x"),
        rollout_of(question, (), "x"),
        rollout_of(famous, famous.queries, "x"),
    ]
    assert rates(rollouts)["complete_chains"] == 0.5


def earned(*results: str, last: str = "So Mayor Vel<answer> Vel</answer>") -> float:
    """Return everything that a rollout earns that got these results and then wrote ``last``."""
    text = '<tool_call>{"name": "search", "arguments": {"query": "the mayor of Orrin"}}</tool_call>'
    turns = [Turn(text, (0, 1), (ToolCall("search", "{}", result),)) for result in results]
    rewards = paper_v2(Transcript((*turns, Turn(last, (1, 2))), "answered", max_turns=4), {"target": ["Vel"]})
    return sum(rewards.turns) + rewards.outcome


def test_what_searching_on_earns_against_an_answer():
    """Two hops, the answer Vel is in the second result. By hand: 0.1 - 0.1·k, 0.3 more with Vel; then 1, 0.2 or -1."""
    first, hit = "Youth of Mar: Mar left Birthplace Orrin early.", "Present of Orrin: Orrin is governed by Mayor Vel."
    guess = "So Mayor Tol<answer> Tol</answer>"
    search = '<tool_call>{"name": "search", "arguments": {"query": "the mayor of Orrin"}}</tool_call>'
    assert earned(last=guess) == pytest.approx(0.2)
    assert earned(first, last=guess) == pytest.approx(0.0 + 0.2)
    assert earned(first, hit) == pytest.approx(0.0 + 0.2 + 1.0)
    # A third search costs 0.2, or earns 0.1 if it finds the same once more; three hops are worth as much as one.
    assert earned(first, hit, first) == pytest.approx(0.0 + 0.2 - 0.2 + 1.0)
    assert earned(first, hit, hit) == pytest.approx(0.0 + 0.2 + 0.1 + 1.0)
    assert earned(first, first, hit) == pytest.approx(0.0 - 0.1 + 0.1 + 1.0)
    # One that never answers loses all of it.
    assert earned(first, hit, hit, last=search) == pytest.approx(0.0 + 0.2 + 0.1 - 1.0)
