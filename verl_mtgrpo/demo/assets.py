"""Make everything that the demo trains on from a seed: world, index, questions, tokenizer, warmed-up policy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from verl_mtgrpo.data.rows import make_row, write_parquet
from verl_mtgrpo.demo.folder import Clock, make_once, versions, warmup_bar
from verl_mtgrpo.demo.warmup_demos import Demonstrator, Habits
from verl_mtgrpo.demo.warmup_settings import WarmupSettings
from verl_mtgrpo.demo.world import Question, World, WorldSize, build_world
from verl_mtgrpo.retrieval.bm25 import BM25Index
from verl_mtgrpo.retrieval.render import render_passages
from verl_mtgrpo.version import __version__

# Raise it when equal settings no longer give an equal policy: existing assets are then made again.
RECIPE = 3
DATA_SOURCE = "demo_world"

# What the policy sees of the tool; its chat template shows only the name.
TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]


@dataclass(frozen=True)
class AssetSettings:
    """The size of the demo and the behaviour of its policy. The defaults are those of ``make demo``.

    ``k`` and ``template`` decide what a search returns, in the warm-up and in the tool's configuration.
    """

    size: WorldSize = field(default_factory=WorldSize)
    habits: Habits = field(default_factory=Habits)
    warmup: WarmupSettings = field(default_factory=WarmupSettings)
    k: int = 2
    template: str = "{title}: {text}"
    check_samples: int = 4

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that stored assets are compared by."""
        parts = {"size": self.size.to_dict(), "warmup": self.warmup.to_dict()}
        return {name: parts.get(name, value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class DemoAssets:
    """The paths of the parts.

    Attributes:
        policy: Hugging Face folder: model, tokenizer, chat template.
        index: Index folder of the search tool.
        train_file: Training questions for verl (parquet).
        val_file: Validation questions.
        tool_config: Tool YAML for ``actor_rollout_ref.rollout.multi_turn.tool_config_path``; it reads
            the index from MTGRPO_INDEX.
        manifest: Seed, settings, versions, seconds per stage, and how the policy behaves at the start,
            measured on the validation questions.
    """

    policy: Path
    index: Path
    train_file: Path
    val_file: Path
    tool_config: Path
    manifest: dict[str, Any]


def prepare_demo(
    out: Path, *, seed: int = 0, progress: bool = False, settings: AssetSettings | None = None
) -> DemoAssets:
    """Make the assets in the folder ``out``, or return the existing ones.

    Assets of another seed, version or other settings are replaced.

    Raises:
        DataError: ``out`` holds something else.
    """
    settings = settings or AssetSettings()
    out = Path(out)
    return _assets(out, make_once(out, _key(seed, settings), lambda draft: _make(draft, seed, settings, progress)))


def _make(folder: Path, seed: int, settings: AssetSettings, progress: bool) -> dict[str, Any]:
    from verl_mtgrpo.demo.policy import build_model, build_tokenizer, save_policy
    from verl_mtgrpo.demo.warmup import SampleMaker, torch_threads, warm_up
    from verl_mtgrpo.demo.warmup_check import rates, roll_out

    clock = Clock()
    world = build_world(seed, settings.size)
    for split in ("train", "val"):
        write_parquet(_rows(world.split(split)), folder / f"{split}.parquet")
    write_tool_config(folder / "search_tool.yaml", settings)
    index = BM25Index.build(world.passages, folder / "index", source=f"synthetic world, seed {seed}", analyser="plain")
    clock.lap("world")

    tokenizer = build_tokenizer(_texts(world), world.names)
    model = build_model(tokenizer, seed=seed)
    clock.lap("model")

    demonstrator = Demonstrator(world, index, k=settings.k, template=settings.template, rng=random.Random(seed))
    with torch_threads(), warmup_bar(settings.warmup.steps, progress) as advance:
        warm_up(
            model,
            SampleMaker(tokenizer, world, TOOLS),
            drill=lambda: demonstrator.drill(settings.warmup.chain_drills),
            habit=lambda: demonstrator.habit(settings.habits),
            settings=settings.warmup,
            seed=seed,
            on_step=advance,
        )
        clock.lap("warm-up")
        save_policy(model, tokenizer, folder / "policy")
        rollouts = roll_out(
            model,
            tokenizer,
            world.split("val"),
            lambda query: render_passages(demonstrator.look(query), template=settings.template),
            TOOLS,
            samples=settings.check_samples,
            seed=seed,
            max_turns=1 + max(len(question.facts) for question in world.questions),
        )
    clock.lap("check")
    return {"made_with": versions("tantivy"), "seconds": clock.laps, "start": rates(rollouts)}


def _key(seed: int, settings: AssetSettings) -> dict[str, Any]:
    """Return the key that is equal for equal demos."""
    return {"recipe": RECIPE, "version": __version__, "seed": seed, "settings": settings.to_dict()}


def _assets(out: Path, manifest: dict[str, Any]) -> DemoAssets:
    return DemoAssets(
        policy=out / "policy",
        index=out / "index",
        train_file=out / "train.parquet",
        val_file=out / "val.parquet",
        tool_config=out / "search_tool.yaml",
        manifest=manifest,
    )


def _texts(world: World) -> Iterator[str]:
    """Yield the texts that the tokenizer learns its words from."""
    for passage in world.passages:
        yield f"{passage.title}: {passage.text}"
    for question in world.questions:
        yield question.text
        yield from question.queries


def _rows(questions: list[Question]) -> Iterator[dict[str, Any]]:
    for number, question in enumerate(questions):
        yield make_row(
            question.text,
            [question.answer],
            index=number,
            split=question.split,
            id=question.id,
            data_source=DATA_SOURCE,
            system_prompt=None,
            famous=question.famous,
            hops=len(question.facts),
        )


def write_tool_config(path: Path, settings: AssetSettings) -> None:
    """Write the package's tool YAML with the demo's ``k`` and ``template``."""
    from importlib.resources import files

    import yaml

    packaged = files("verl_mtgrpo.config") / "tools" / "search_tool.yaml"
    config = yaml.safe_load(packaged.read_text(encoding="utf-8"))
    config["tools"][0]["config"].update(k=settings.k, template=settings.template)
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
