"""Make a world for two roles: a rewriter that searches, and an answerer that reads what was found.

The passages and questions are those of ``mtgrpo demo``, without anything to know by heart: the answer is only in what
the search finds. The policy is warmed up for both roles with bad habits. The rewriter asks for the wrong name or none,
the answerer sometimes reads the wrong name.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verl_mtgrpo.data.rows import make_row, write_parquet
from verl_mtgrpo.demo.assets import TOOLS, AssetSettings, DemoAssets, write_tool_config
from verl_mtgrpo.demo.folder import Clock, make_once, versions, warmup_bar
from verl_mtgrpo.demo.policy import build_model, build_tokenizer, final_answer, finding, save_policy, search_call
from verl_mtgrpo.demo.warmup import Sample, SampleMaker, torch_threads, warm_up
from verl_mtgrpo.demo.warmup_check import generate_turns
from verl_mtgrpo.demo.warmup_demos import RENAME_ALL, Demonstration, Demonstrator, Habits
from verl_mtgrpo.demo.warmup_settings import WarmupSettings
from verl_mtgrpo.demo.world import Question, World, WorldSize, build_world
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.retrieval.bm25 import BM25Index
from verl_mtgrpo.retrieval.render import render_passages
from verl_mtgrpo.version import __version__

RECIPE = 2
"""Raise it when equal settings no longer give an equal policy."""
DATA_SOURCE = "roles_world"
_CALL = re.compile(re.escape(search_call("QUERY")).replace("QUERY", "(.*)"))
SETTINGS = AssetSettings(
    size=WorldSize(famous_per_kind=0, famous_share=0.0, hop_shares={}, train_questions=1024, val_questions=96),
    habits=Habits(search=1.0, broken_call=0.1, vague_query=0.15, wrong_query=0.35, careless=0.1),
    warmup=WarmupSettings(drill_steps=800, habit_steps=300, chain_drills=0.0),
)


def read(question: str, result: str) -> str:
    """Return what the answerer reads: the prompt of the answerer in run.py writes the same."""
    return f"{question}\n\n{result}"


@dataclass(frozen=True)
class OfRole(Demonstration):
    """A demonstration of one role; ``tools`` is True if its prompt names the search tool."""

    tools: bool = False


class Roles(Demonstrator):
    """Writes demonstrations of both roles."""

    def drill(self, chains: float = 0.0) -> OfRole:
        """Return an exercise: search for what a question asks, or read answers out of passages."""
        fact = self.rng.choice(self.world.facts)
        query = f"the {fact.relation.noun} of {fact.subject}"
        if self._happens(0.4):
            return self._rewriter(self._ask(fact), search_call(query))
        found = self.look(query)
        messages = [_said("user", read(self._ask(fact), self.text(found)))]
        messages.append(_said("assistant", final_answer(fact.relation.noun, fact.object)))
        more = [other for passage in found for other in self._stated[passage.id] if other != fact]
        for other in self.rng.sample(more, min(3, len(more))):
            messages.append(_said("user", self._ask(other)))
            messages.append(_said("assistant", final_answer(other.relation.noun, other.object)))
        return OfRole(tuple(messages), RENAME_ALL)

    def habit(self, habits: Habits) -> OfRole:
        """Return how a role handles a training question when reinforcement learning starts."""
        question = self.rng.choice(self._train)
        (query,) = question.queries
        broken, query = self._happens(habits.broken_call), self._spoil(query, habits)
        if self._happens(0.5):
            call = search_call(query)
            return self._rewriter(question.text, call.replace('"}}', '"}') if broken else call)
        found = [] if broken else self.look(query)
        name = self._read(found, question, habits) if found else self.rng.choice(self.world.names)
        noun = question.facts[-1].relation.noun
        text = finding(noun, name) if self._happens(habits.bare_answer) else final_answer(noun, name)
        shown = read(question.text, self.text(found) if found else "")
        return OfRole((_said("user", shown), _said("assistant", text)), RENAME_ALL)

    def _read(self, found: Sequence[Passage], question: Question, habits: Habits) -> str:
        """Return what was asked for, in the wrong passage that of somebody else; if careless, another name.

        A name drawn at random wherever the answer is missing would unlearn reading: the policy does not look whom a
        passage is about.
        """
        stated = [fact for passage in found for fact in self._stated[passage.id]]
        asked = question.facts[-1]
        alike = [fact.object for fact in stated if fact.relation == asked.relation]
        read = asked.object if asked.object in alike else next(iter(alike), None)
        others = [fact.object for fact in stated if fact.object != read]
        return self.rng.choice(others) if read is None or (others and self._happens(habits.careless)) else read

    def _rewriter(self, question: str, call: str) -> OfRole:
        return OfRole((_said("user", question), _said("assistant", call)), RENAME_ALL, tools=True)

    def text(self, found: Sequence[Any]) -> str:
        """Return what the search shows of these passages."""
        return render_passages(found, template=self._template)


class RoleSamples(SampleMaker):
    """Renders each role's prompt with the tools that it has."""

    def __init__(self, tokenizer: Any, world: World) -> None:
        super().__init__(tokenizer, world, TOOLS)
        self.without = SampleMaker(tokenizer, world, [])

    def __call__(self, demonstration: Demonstration, rng: np.random.Generator) -> Sample:
        """Return the demonstration as a sample, with names exchanged at random."""
        tools = isinstance(demonstration, OfRole) and demonstration.tools
        return super().__call__(demonstration, rng) if tools else self.without(demonstration, rng)


def prepare(out: Path, *, seed: int, settings: AssetSettings = SETTINGS) -> DemoAssets:
    """Make the assets in the folder ``out``, or return the existing ones."""
    key = {"recipe": RECIPE, "version": __version__, "seed": seed, "roles": asdict(settings)}
    manifest = make_once(out, key, lambda draft: _make(draft, seed, settings))
    files = (out / name for name in ("policy", "index", "train.parquet", "val.parquet", "search_tool.yaml"))
    return DemoAssets(*files, manifest)


def _make(folder: Path, seed: int, settings: AssetSettings) -> dict[str, Any]:
    clock, world = Clock(), build_world(seed, settings.size)
    for split in ("train", "val"):
        write_parquet([_row(number, one) for number, one in enumerate(world.split(split))], folder / f"{split}.parquet")
    write_tool_config(folder / "search_tool.yaml", settings)
    index = BM25Index.build(world.passages, folder / "index", source=f"synthetic world, seed {seed}", analyser="plain")
    texts = [f"{passage.title}: {passage.text}" for passage in world.passages]
    texts += [text for question in world.questions for text in (question.text, *question.queries)]
    tokenizer = build_tokenizer(texts, world.names)
    model = build_model(tokenizer, seed=seed)
    roles = Roles(world, index, k=settings.k, template=settings.template, rng=random.Random(seed))
    with torch_threads(1), warmup_bar(settings.warmup.steps, True) as advance:
        warm_up(
            model,
            RoleSamples(tokenizer, world),
            drill=roles.drill,
            habit=lambda: roles.habit(settings.habits),
            settings=settings.warmup,
            seed=seed,
            on_step=advance,
        )
    save_policy(model, tokenizer, folder / "policy")
    clock.lap("policy")
    start = rates(model, tokenizer, world.split("val"), roles, seed=seed)
    clock.lap("check")
    return {"made_with": versions("tantivy"), "seconds": clock.laps, "start": start}


def rates(model: Any, tokenizer: Any, questions: Sequence[Question], roles: Roles, *, seed: int) -> dict[str, float]:
    """Let both roles speak once for each question, without verl, and return how often each did well."""
    import torch

    def ask(texts: Sequence[str], tools: list[dict[str, Any]]) -> list[str]:
        chats = [
            tokenizer.apply_chat_template(
                [_said("user", text)], tools=tools, tokenize=False, add_generation_prompt=True
            )
            for text in texts
        ]
        ids = [tokenizer.encode(chat, add_special_tokens=False) for chat in chats]
        return [tokenizer.decode(one, skip_special_tokens=True) for one in generate_turns(model, tokenizer, ids)]

    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        calls = [_CALL.fullmatch(text) for text in ask([one.text for one in questions], TOOLS)]
        found = [roles.text(roles.look(call[1])) if call else "" for call in calls]
        shown = [read(one.text, result) for one, result in zip(questions, found, strict=True)]
        right = [f"<answer> {one.answer}<" in text for one, text in zip(questions, ask(shown, []), strict=True)]
    hit = [one.answer in result for one, result in zip(questions, found, strict=True)]
    read_right = [a and b for a, b in zip(hit, right, strict=True)]
    return {
        "called": sum(map(bool, calls)) / len(questions),
        "hit": sum(hit) / len(questions),
        "right": sum(right) / len(questions),
        "right_after_hit": sum(read_right) / max(sum(hit), 1),
    }


def _row(number: int, question: Question) -> dict[str, Any]:
    return make_row(
        question.text, [question.answer], index=number, split=question.split, id=question.id, data_source=DATA_SOURCE,
        system_prompt=None,
    )  # fmt: skip


def _said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}
