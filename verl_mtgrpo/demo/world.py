"""Build a synthetic encyclopedia of invented entities, with questions about it. Pure Python, one seed.

Every entity has two short passages (aspects of it), each passage states three facts, each fact names
another entity. The passages are easy to confuse: titles differ in one name ("Youth of Belvor",
"Youth of Tarmin"), all passages of one aspect use the same words, and every entity is also mentioned in
passages about others. So a search finds the right passage only with both the name and the relation.

About a third of the questions are about a few *famous* entities. Nothing sets their passages apart;
the demo policy learns their facts by heart before reinforcement learning starts.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verl_mtgrpo.demo.stored import stored_settings
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.passages import Passage

PERSON, TOWN, GUILD, BOOK = "person", "town", "guild", "book"
KINDS = (PERSON, TOWN, GUILD, BOOK)

# Numbers of hops in words.
_HOPS = {2: "two", 3: "three"}

# How a question about an entity of this kind starts.
_ASKS = {PERSON: "Who is", TOWN: "Which town is", GUILD: "Which guild is", BOOK: "Which book is"}


@dataclass(frozen=True)
class Relation:
    """One kind of fact: ``subject`` has an entity of kind ``object`` as its ``noun``.

    ``aspect`` is the passage that states it, ``sentence`` is its wording: ``{s}`` and ``{o}`` are the two names.
    Sentences write the noun with a capital, questions without: a copying model can tell them apart.
    """

    noun: str
    subject: str
    object: str
    aspect: str
    sentence: str


RELATIONS = (
    Relation("birthplace", PERSON, TOWN, "Youth", "{s} left Birthplace {o} early."),
    Relation("teacher", PERSON, PERSON, "Youth", "{s} learned much from Teacher {o}."),
    Relation("favourite", PERSON, BOOK, "Youth", "{s} often read Favourite {o}."),
    Relation("employer", PERSON, GUILD, "Career", "{s} worked for Employer {o}."),
    Relation("rival", PERSON, PERSON, "Career", "{s} quarrelled with Rival {o}."),
    Relation("residence", PERSON, TOWN, "Career", "{s} moved to Residence {o}."),
    Relation("founder", TOWN, PERSON, "History", "{s} was started by Founder {o}."),
    Relation("architect", TOWN, PERSON, "History", "{s} was built by Architect {o}."),
    Relation("ally", TOWN, TOWN, "History", "{s} was defended by Ally {o}."),
    Relation("mayor", TOWN, PERSON, "Present", "{s} is governed by Mayor {o}."),
    Relation("port", TOWN, TOWN, "Present", "{s} is supplied through Port {o}."),
    Relation("sponsor", TOWN, GUILD, "Present", "{s} is paid for by Sponsor {o}."),
    Relation("founder", GUILD, PERSON, "Origins", "{s} was started by Founder {o}."),
    Relation("seat", GUILD, TOWN, "Origins", "{s} was given Seat {o}."),
    Relation("charter", GUILD, BOOK, "Origins", "{s} was bound by Charter {o}."),
    Relation("leader", GUILD, PERSON, "Trade", "{s} is governed by Leader {o}."),
    Relation("rival", GUILD, GUILD, "Trade", "{s} quarrelled with Rival {o}."),
    Relation("market", GUILD, TOWN, "Trade", "{s} is selling at Market {o}."),
    Relation("author", BOOK, PERSON, "Making", "{s} was written by Author {o}."),
    Relation("editor", BOOK, PERSON, "Making", "{s} was changed by Editor {o}."),
    Relation("publisher", BOOK, GUILD, "Making", "{s} was paid for by Publisher {o}."),
    Relation("hero", BOOK, PERSON, "Story", "{s} is told by Hero {o}."),
    Relation("setting", BOOK, TOWN, "Story", "{s} is taking place in Setting {o}."),
    Relation("sequel", BOOK, BOOK, "Story", "{s} is followed by Sequel {o}."),
)


@dataclass(frozen=True)
class Entity:
    """Something the encyclopedia writes about; its name is one word and unique."""

    name: str
    kind: str
    famous: bool


@dataclass(frozen=True)
class Fact:
    """``subject`` and ``object`` are names; ``passage`` is the id of the passage that states it."""

    subject: str
    relation: Relation
    object: str
    passage: str


@dataclass(frozen=True)
class Question:
    """A question, its one answer and the facts that give it.

    Attributes:
        id: The id, unique in the world.
        text: What the user asks.
        answer: A name.
        facts: One fact per hop: the object of each is the subject of the next one, and only the first one's
            subject is named in ``text``.
        split: ``train`` or ``val``.
        famous: True if it asks for a fact that the policy learns by heart.
    """

    id: str
    text: str
    answer: str
    facts: tuple[Fact, ...]
    split: str
    famous: bool

    @property
    def queries(self) -> tuple[str, ...]:
        """Return what an ideal policy searches for, in order."""
        return tuple(f"the {fact.relation.noun} of {fact.subject}" for fact in self.facts)


@dataclass(frozen=True)
class WorldSize:
    """How much to invent. The defaults are those of ``make demo``; tests use less.

    Attributes:
        entities_per_kind: Entities of each kind.
        famous_per_kind: Those of them whose facts the policy learns by heart.
        train_questions: Questions to train on.
        val_questions: Questions to validate on.
        famous_share: Share of the questions that ask for a fact of a famous entity, in both splits.
        hop_shares: Shares of the questions that need two searches and more, by number of searches. The rest
            ask for one fact of an entity that is not famous.
        possessive: Questions say "Belvor's founder's rival" and not "the rival of the founder of Belvor". What is
            searched for first then comes first, which a tiny policy learns to follow much sooner.
    """

    entities_per_kind: int = 60
    famous_per_kind: int = 9
    train_questions: int = 1024
    val_questions: int = 160
    famous_share: float = 0.35
    hop_shares: Mapping[int, float] = field(default_factory=lambda: {2: 0.15})
    possessive: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as assets store them, with a name for each share: ``two_hop_share``."""
        numbers = stored_settings(self, later=("possessive",))
        shares: Mapping[int, float] = numbers.pop("hop_shares")
        return {**numbers, **{f"{_HOPS[hops]}_hop_share": share for hops, share in shares.items()}}


@dataclass(frozen=True)
class World:
    """The encyclopedia and its questions; equal for equal seed and size."""

    entities: tuple[Entity, ...]
    facts: tuple[Fact, ...]
    passages: tuple[Passage, ...]
    questions: tuple[Question, ...]
    possessive: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All names; every subject and every answer is one of them."""
        return tuple(entity.name for entity in self.entities)

    def split(self, name: str) -> list[Question]:
        """Return the questions of one split, in a fixed random order."""
        return [question for question in self.questions if question.split == name]


def build_world(seed: int, size: WorldSize | None = None) -> World:
    """Invent a world. Raises ``ConfigError`` if it has too few facts for the questions asked for."""
    size = size or WorldSize()
    rng = random.Random(f"world-{seed}")
    entities = _make_entities(size, rng)
    facts = _make_facts(entities, rng)
    passages = _write_passages(facts, rng)
    questions = _ask(entities, facts, size, rng)
    return World(entities, tuple(facts), tuple(passages), tuple(questions), size.possessive)


def question_about(facts: Sequence[Fact], form: int = 0, *, possessive: bool = False) -> str:
    """Ask for the object of the last fact.

    Args:
        facts: One fact per hop.
        form: 0 or 1, two wordings of the question.
        possessive: :attr:`WorldSize.possessive`.
    """
    phrase = facts[0].subject
    for fact in facts:
        noun = fact.relation.noun
        phrase = f"{phrase}'s {noun}" if possessive else f"the {noun} of {phrase}"
    if form == 0:
        return f"{_ASKS[facts[-1].relation.object]} {phrase}?"
    return f"Name {phrase}."


def _make_entities(size: WorldSize, rng: random.Random) -> tuple[Entity, ...]:
    if not 0 <= size.famous_per_kind <= size.entities_per_kind:
        raise ConfigError(
            f"famous_per_kind is {size.famous_per_kind}",
            expected=f"0 to entities_per_kind={size.entities_per_kind}",
        )
    names = _invent_names(len(KINDS) * size.entities_per_kind, rng)
    return tuple(
        Entity(names.pop(), kind, famous=number < size.famous_per_kind)
        for kind in KINDS
        for number in range(size.entities_per_kind)
    )


def _invent_names(count: int, rng: random.Random) -> list[str]:
    """Return ``count`` distinct two-syllable words, none of which is the beginning of another."""
    onsets = ["b", "br", "d", "dr", "f", "g", "gr", "h", "k", "kr", "l", "m", "n", "p", "r", "t", "tr", "v", "z"]
    vowels = "aeiou"
    codas = ["k", "l", "m", "n", "r", "rd", "lm", "nt", "x", "th"]
    # No name ends in a vowel and all have one shape, so one is the beginning of another only by a
    # longer coda; of such pairs the shorter one wins.
    names: set[str] = set()
    while len(names) < count:
        name = "".join(rng.choice(part) for part in (onsets, vowels, onsets, vowels, codas)).capitalize()
        if not any(name.startswith(other) or other.startswith(name) for other in names):
            names.add(name)
    ordered = sorted(names)
    rng.shuffle(ordered)
    return ordered


def _make_facts(entities: Sequence[Entity], rng: random.Random) -> list[Fact]:
    """Make one fact for each entity and relation of its kind, grouped by passage."""
    by_kind = {kind: [entity.name for entity in entities if entity.kind == kind] for kind in KINDS}
    facts: list[Fact] = []
    for entity in entities:
        others = {kind: [name for name in by_kind[kind] if name != entity.name] for kind in KINDS}
        taken: set[str] = set()  # no object twice: else a search for the wrong relation would answer
        for relation in RELATIONS:
            if relation.subject != entity.kind:
                continue
            object_ = rng.choice([name for name in others[relation.object] if name not in taken])
            taken.add(object_)
            facts.append(Fact(entity.name, relation, object_, passage=f"{entity.name}/{relation.aspect}"))
    return facts


def _write_passages(facts: Iterable[Fact], rng: random.Random) -> list[Passage]:
    by_passage: dict[str, list[Fact]] = {}
    for fact in facts:
        by_passage.setdefault(fact.passage, []).append(fact)
    passages: list[Passage] = []
    for id_, stated in by_passage.items():
        rng.shuffle(stated)
        text = " ".join(fact.relation.sentence.format(s=fact.subject, o=fact.object) for fact in stated)
        title = f"{stated[0].relation.aspect} of {stated[0].subject}"
        passages.append(Passage(id=id_, title=title, text=text))
    rng.shuffle(passages)
    return passages


def _ask(entities: Sequence[Entity], facts: Sequence[Fact], size: WorldSize, rng: random.Random) -> list[Question]:
    """Fill both splits with famous questions, chains of each length and ordinary questions in the configured shares."""
    famous = {entity.name for entity in entities if entity.famous}
    known = [(fact,) for fact in facts if fact.subject in famous]
    ordinary = [(fact,) for fact in facts if fact.subject not in famous]
    chains = {f"{_HOPS[hops]}-hop": _chains(facts, ordinary, hops) for hops in size.hop_shares}
    pools = {"famous": known, **chains, "ordinary": ordinary}
    questions: list[Question] = []
    for kind, pool in pools.items():
        train, val = _shares(size.train_questions, size)[kind], _shares(size.val_questions, size)[kind]
        drawn = _draw(kind, pool, train, val, apart=kind != "famous", rng=rng)
        for number, (chain, form) in enumerate(drawn):
            path = "/".join([chain[0].subject, *(fact.relation.noun for fact in chain)])
            questions.append(
                Question(
                    id=f"{path}/{form}",
                    text=question_about(chain, form, possessive=size.possessive),
                    answer=chain[-1].object,
                    facts=chain,
                    split="val" if number < val else "train",
                    famous=kind == "famous",
                )
            )
    rng.shuffle(questions)
    return questions


def _chains(facts: Sequence[Fact], starts: Sequence[tuple[Fact, ...]], hops: int) -> list[tuple[Fact, ...]]:
    """Return every chain of ``hops`` facts that begins with one of ``starts`` and meets no entity twice."""
    by_subject: dict[str, list[Fact]] = {}
    for fact in facts:
        by_subject.setdefault(fact.subject, []).append(fact)
    chains = list(starts)
    for _ in range(hops - 1):
        chains = [
            (*chain, following)
            for chain in chains
            for following in by_subject[chain[-1].object]
            if following.object not in {fact.subject for fact in chain}
        ]
    return chains


def _shares(total: int, size: WorldSize) -> dict[str, int]:
    """Return how many of ``total`` questions are of each kind."""
    counts = {"famous": round(total * size.famous_share)}
    counts |= {f"{_HOPS[hops]}-hop": round(total * share) for hops, share in size.hop_shares.items()}
    return {**counts, "ordinary": total - sum(counts.values())}


def _draw(
    kind: str, pool: Sequence[tuple[Fact, ...]], train: int, val: int, *, apart: bool, rng: random.Random
) -> list[tuple[tuple[Fact, ...], int]]:
    """Draw ``val`` + ``train`` different (facts, wording) pairs; with ``apart`` the two share no facts."""
    forms = [(chain, form) for chain in pool for form in (0, 1)]
    rng.shuffle(forms)
    drawn = forms[:val]
    asked = {chain for chain, _ in drawn} if apart else set[tuple[Fact, ...]]()
    drawn += [(chain, form) for chain, form in forms[val:] if chain not in asked][:train]
    if len(drawn) < val + train:
        raise ConfigError(
            f"the world has {len(drawn)} {kind} questions",
            expected=f"at least {val + train}",
            fix="make the world larger (entities_per_kind, famous_per_kind) or ask fewer questions",
        )
    return drawn
