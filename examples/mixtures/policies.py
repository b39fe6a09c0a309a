"""Make two tiny policies of different skill for one world: one searches well, the other one reads well.

Passages and questions are those of `mtgrpo demo`, without anything to know by heart and with one passage per search, so
that a few minutes of drills are enough. Both policies come from the same drills. Then each gets bad habits of its own:
one damages the JSON of its calls, and the other one answers with a wrong name of the passage.
"""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from verl_mtgrpo.data.rows import make_row, write_parquet
from verl_mtgrpo.demo.assets import TOOLS, AssetSettings, DemoAssets, write_tool_config
from verl_mtgrpo.demo.folder import Clock, make_once, versions, warmup_bar
from verl_mtgrpo.demo.policy import build_model, build_tokenizer, save_policy
from verl_mtgrpo.demo.warmup import SampleMaker, torch_threads, warm_up
from verl_mtgrpo.demo.warmup_check import rates, roll_out
from verl_mtgrpo.demo.warmup_demos import RENAME_ALL, Demonstration, Demonstrator, Habits
from verl_mtgrpo.demo.warmup_settings import WarmupSettings
from verl_mtgrpo.demo.world import World, WorldSize, build_world
from verl_mtgrpo.retrieval.bm25 import BM25Index
from verl_mtgrpo.retrieval.render import render_passages
from verl_mtgrpo.version import __version__

RECIPE = 1
"""Raise it when equal settings no longer give equal policies."""
SETTINGS = AssetSettings(
    size=WorldSize(famous_per_kind=0, famous_share=0.0, hop_shares={}, train_questions=512, val_questions=96),
    warmup=WarmupSettings(drill_steps=150, habit_steps=50, warmup_steps=20, chain_drills=0.0),
    k=1,
    check_samples=2,
)
HABITS = {
    "searches": Habits(
        search=1.0, broken_call=0.02, vague_query=0.02, wrong_query=0.02, careless=0.9, bare_answer=0.02
    ),
    "reads": Habits(search=1.0, broken_call=0.5, vague_query=0.05, wrong_query=0.05, careless=0.05, bare_answer=0.02),
}
"""The policies, in the order of their servers."""


class Skills(Demonstrator):
    """Writes demonstrations for a world in which everything has to be looked up."""

    def drill(self, chains: float = 0.0) -> Demonstration:
        """Return one exercise: look a fact up, and read others out of the same passage."""
        return self._look_up()

    def habit(self, habits: Habits) -> Demonstration:
        """Return how a training question is handled, with any name in place of any other: none is famous."""
        return replace(super().habit(habits), rename=RENAME_ALL)


@dataclass(frozen=True)
class Pair:
    """Two policies of one world.

    Attributes:
        assets: Index, questions and tool, with the policy of each name.
    """

    assets: dict[str, DemoAssets]

    @property
    def start(self) -> dict[str, dict[str, float]]:
        """How each policy behaves, measured on the validation questions."""
        return next(iter(self.assets.values())).manifest["start"]


def prepare(out: Path, *, seed: int, settings: AssetSettings = SETTINGS) -> Pair:
    """Make world and policies in the folder ``out``, or return the existing ones."""
    habits = {name: asdict(one) for name, one in HABITS.items()}
    key = {"recipe": RECIPE, "version": __version__, "seed": seed, "settings": settings.to_dict(), "habits": habits}
    manifest = make_once(out, key, lambda draft: _make(draft, seed, settings))
    files = {name: out / f"{name}.parquet" for name in ("train", "val")}
    rest: dict[str, Any] = {"train_file": files["train"], "val_file": files["val"], "manifest": manifest}
    rest |= {"index": out / "index", "tool_config": out / "search_tool.yaml"}
    return Pair({name: DemoAssets(policy=out / name, **rest) for name in HABITS})


def _make(folder: Path, seed: int, settings: AssetSettings) -> dict[str, Any]:
    clock, world = Clock(), build_world(seed, settings.size)
    _write_questions(world, folder)
    write_tool_config(folder / "search_tool.yaml", settings)
    index = BM25Index.build(world.passages, folder / "index", source=f"synthetic world, seed {seed}", analyser="plain")
    texts = [f"{one.title}: {one.text}" for one in world.passages]
    texts += [text for question in world.questions for text in (question.text, *question.queries)]
    tokenizer = build_tokenizer(texts, world.names)
    model = build_model(tokenizer, seed=seed, start="phrases")
    shows = Skills(world, index, k=settings.k, template=settings.template, rng=random.Random(seed))
    maker, found, start = SampleMaker(tokenizer, world, TOOLS), settings.warmup, {}
    with torch_threads(), warmup_bar(found.drill_steps + len(HABITS) * found.habit_steps, True) as step:
        warm_up(model, maker, drill=shows.drill, settings=replace(found, habit_steps=0), seed=seed, on_step=step)
        clock.lap("drills")
        drilled = deepcopy(model.state_dict())
        for name, habits in HABITS.items():
            model.load_state_dict(drilled)
            lessons = replace(found, drill_steps=0, learning_rate=found.learning_rate / 2)
            warm_up(
                model,
                maker,
                drill=shows.drill,
                habit=lambda habits=habits: shows.habit(habits),
                settings=lessons,
                seed=seed,
                on_step=step,
            )
            save_policy(model, tokenizer, folder / name)
            start[name] = _behaviour(model, tokenizer, world, shows, settings, seed)
            clock.lap(name)
    return {"made_with": versions("tantivy"), "seconds": clock.laps, "start": start}


def _behaviour(
    model: Any, tokenizer: Any, world: World, shows: Skills, settings: AssetSettings, seed: int
) -> dict[str, float]:
    def search(query: str) -> str:
        return render_passages(shows.look(query), template=settings.template)

    questions = world.split("val")
    return rates(
        roll_out(model, tokenizer, questions, search, TOOLS, samples=settings.check_samples, seed=seed, max_turns=2)
    )


def _write_questions(world: World, folder: Path) -> None:
    for split in ("train", "val"):
        rows = (
            make_row(
                question.text,
                [question.answer],
                index=number,
                split=split,
                id=question.id,
                data_source="mixture_world",
                system_prompt=None,
            )
            for number, question in enumerate(world.split(split))
        )
        write_parquet(rows, folder / f"{split}.parquet")
