"""Demonstrations that the demo policy is warmed up on: chats with good or bad habits.

There are two stages. *Drills* teach what the policy must be able to do: repeat a name in a query, read a name out of
a passage, know the famous facts by heart. *Habits* teach how it behaves at the start of reinforcement
learning: it rarely searches, often for the wrong thing, and reads carelessly.

Searches are carried out on the real index, so observations look as they will in training. A chat is varied
by renaming: the trainer swaps all names in it at random, consistently, so that there is nothing to
memorise and only reading gives the right answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from verl_mtgrpo.demo.policy import final_answer, finding, search_call
from verl_mtgrpo.demo.warmup_settings import WarmupSettings
from verl_mtgrpo.demo.world import Fact, Question, World, question_about
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.retrieval.render import render_passages
from verl_mtgrpo.retrieval.types import Retriever

Message = dict[str, Any]

RENAME_NONE, RENAME_ALL, RENAME_ALIKE = "none", "all", "alike"


@dataclass(frozen=True)
class Demonstration:
    """A chat, and how its names may be varied.

    ``rename`` is ``none`` (it states true facts), ``all`` (any name may become any other) or ``alike``
    (famous names stay famous ones).
    """

    messages: tuple[Message, ...]
    rename: str


@dataclass(frozen=True)
class Habits:
    """How the policy behaves when reinforcement learning starts; each number is a probability.

    The defaults are those of ``make demo``.

    Attributes:
        search: It searches at all.
        broken_call: A call has damaged JSON and is not carried out.
        vague_query: A query leaves the name out.
        wrong_query: A query asks about a wrong name.
        second_search: After a result that leads to the next hop it searches again.
        careless: It answers with another name from the result than the right one.
        bare_answer: It answers without tags.
    """

    search: float = 0.35
    broken_call: float = 0.2
    vague_query: float = 0.15
    wrong_query: float = 0.35
    second_search: float = 0.5
    careless: float = 0.85
    bare_answer: float = 0.06


class Demonstrator:
    """Writes demonstrations for one world and one index.

    ``k`` and ``template`` must be those of the search tool, or the policy will meet unfamiliar observations.
    """

    def __init__(self, world: World, index: Retriever, *, k: int, template: str, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self._index = index
        self._k = k
        self._template = template
        self._found: dict[str, list[Passage]] = {}
        self._stated: dict[str, list[Fact]] = {}
        for fact in world.facts:
            self._stated.setdefault(fact.passage, []).append(fact)
        self._famous_names = {entity.name for entity in world.entities if entity.famous}
        self._known = [fact for fact in world.facts if fact.subject in self._famous_names]
        self._train = world.split("train")
        self._chained = [question for question in self._train if len(question.facts) > 1]

    def look(self, query: str) -> list[Passage]:
        """Return what the search tool finds."""
        if query not in self._found:
            self._found[query] = self._index.search([query], self._k)[0]
        return self._found[query]

    # ---- drills

    def drill(self, chains: float = WarmupSettings.chain_drills) -> Demonstration:
        """Return one exercise: recite facts, look one up or, with probability ``chains``, look up several in a row."""
        recite = 0.25
        return self._pick({self._recite: recite, self._look_up: 1 - recite - chains, self._look_up_chain: chains})()

    def _recite(self) -> Demonstration:
        messages: list[Message] = []
        for fact in self.rng.sample(self._known, min(5, len(self._known))):
            messages += [_user(self._ask(fact)), _assistant(_answer(fact))]
        return Demonstration(tuple(messages), RENAME_NONE)

    def _look_up(self, follow_ups: int = 3) -> Demonstration:
        """Search for one fact, then answer more questions about the same result."""
        fact = self.rng.choice(self.world.facts)
        query = f"the {fact.relation.noun} of {fact.subject}"
        found = self.look(query)
        messages = [_user(self._ask(fact)), _assistant(search_call(query)), self._result(found)]
        messages.append(_assistant(_answer(fact)))
        more = [other for passage in found for other in self._stated[passage.id] if other != fact]
        for other in self.rng.sample(more, min(follow_ups, len(more))):
            messages += [_user(self._ask(other)), _assistant(_answer(other))]
        return Demonstration(tuple(messages), RENAME_ALL)

    def _look_up_chain(self) -> Demonstration:
        """Search hop by hop, state each finding before the next search, and answer."""
        question = self.rng.choice(self._chained)
        messages = [_user(question.text)]
        for hop, query in enumerate(question.queries):
            messages += [_assistant(_found_before(question, hop) + search_call(query)), self._result(self.look(query))]
        messages.append(_assistant(_answer(question.facts[-1])))
        return Demonstration(tuple(messages), RENAME_ALL)

    # ---- habits

    def habit(self, habits: Habits) -> Demonstration:
        """Demonstrate how the policy should handle a random training question at the start."""
        question = self.rng.choice(self._train)
        if self._happens(habits.search):
            return self._search_somehow(question, habits)
        if question.famous:
            return self._answered((_user(question.text),), question, question.answer, habits, RENAME_NONE)
        guess = self.rng.choice(self.world.names)
        return self._answered((_user(question.text),), question, guess, habits, RENAME_ALIKE)

    def _search_somehow(self, question: Question, habits: Habits) -> Demonstration:
        messages = [_user(question.text)]
        found: list[Passage] = []
        for hop, good_query in enumerate(question.queries):
            if hop and not self._happens(habits.second_search):
                break
            stated = _found_before(question, hop)
            if self._happens(habits.broken_call):
                messages.append(_assistant(stated + search_call(good_query).replace('"}}', '"}')))
                return Demonstration(tuple(messages), RENAME_ALIKE)
            query = self._spoil(good_query, habits)
            found = self.look(query)
            messages += [_assistant(stated + search_call(query)), self._result(found)]
            if query != good_query:
                break
        answer = self._read(found, question, habits)
        return self._answered(tuple(messages), question, answer, habits, RENAME_ALIKE)

    def _spoil(self, query: str, habits: Habits) -> str:
        words, _, name = query.rpartition(" of ")
        kind = self.rng.random()
        if kind < habits.vague_query:
            return words
        if kind < habits.vague_query + habits.wrong_query:
            return f"{words} of {self.rng.choice([other for other in self.world.names if other != name])}"
        return query

    def _read(self, found: Sequence[Passage], question: Question, habits: Habits) -> str:
        """Return the answer if the result contains it and is read carefully, else another name from it."""
        stated = [fact.object for passage in found for fact in self._stated[passage.id]]
        others = [name for name in stated if name != question.answer]
        if question.answer in stated and not (others and self._happens(habits.careless)):
            return question.answer
        return self.rng.choice(others)

    def _answered(
        self, messages: tuple[Message, ...], question: Question, answer: str, habits: Habits, rename: str
    ) -> Demonstration:
        noun = question.facts[-1].relation.noun
        text = finding(noun, answer) if self._happens(habits.bare_answer) else final_answer(noun, answer)
        return Demonstration((*messages, _assistant(text)), rename)

    # ---- helpers

    def _ask(self, fact: Fact) -> str:
        return question_about((fact,), self.rng.randrange(2), possessive=self.world.possessive)

    def _result(self, found: Sequence[Passage]) -> Message:
        return {"role": "tool", "content": render_passages(found, template=self._template)}

    def _happens(self, probability: float) -> bool:
        return self.rng.random() < probability

    def _pick(self, weights: dict[Callable[[], Demonstration], float]) -> Callable[[], Demonstration]:
        return self.rng.choices(list(weights), weights=list(weights.values()))[0]


def _answer(fact: Fact) -> str:
    return final_answer(fact.relation.noun, fact.object)


def _found_before(question: Question, hop: int) -> str:
    """Return what the previous hop found, which a turn states before it searches for the next one."""
    fact = question.facts[hop - 1]
    return finding(fact.relation.noun, fact.object) if hop else ""


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
