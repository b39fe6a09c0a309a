"""The demo's worlds, by their numbers and by what they draw."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from verl_mtgrpo.demo.assets import _key
from verl_mtgrpo.demo.warmup_demos import Demonstrator
from verl_mtgrpo.demo.world import build_world
from verl_mtgrpo.demo.worlds import WORLDS
from verl_mtgrpo.retrieval.bm25 import BM25Index


def checksum(data: object) -> str:
    return hashlib.sha256(json.dumps(data, default=asdict).encode()).hexdigest()[:16]


# Made at commit 929c8f6, before there was a world with chains of three; the first two anew with their
# longer warm-up and the rarer vague queries. Make new ones for a world whose numbers change.
@pytest.mark.parametrize(
    ("name", "settings", "world", "demonstrations"),
    [
        ("paper", "700b87ce3dd8bf64", "3d38d1bd3e967de0", "b88838860a48ff02"),
        ("clumsy", "8df94670405e8bc6", "b0dade496504dd0f", "7923ed7bb5a575a0"),
        ("easy", "25b9c8df1a15bd3a", "98fb7be7fc3b3bcf", "46e53d404fd04b52"),
    ],
)
def test_earlier_worlds_stay_as_they_were(
    tmp_path: Path, name: str, settings: str, world: str, demonstrations: str
) -> None:
    """Finished runs are recognised by their assets' settings, and repeated ones draw the same samples."""
    assets = WORLDS[name].assets
    made = build_world(0, assets.size)
    index = BM25Index.build(made.passages, tmp_path / "index", source="world", analyser="plain")
    writer = Demonstrator(made, index, k=assets.k, template=assets.template, rng=random.Random(0))
    shown = [writer.drill() for _ in range(300)] + [writer.habit(assets.habits) for _ in range(300)]
    assert checksum(_key(0, assets)["settings"]) == settings
    assert checksum([made.entities, made.facts, made.passages, made.questions]) == world
    assert checksum(shown) == demonstrations


def test_a_setting_that_came_later_is_stored_where_it_is_used() -> None:
    """Runs that finished before there was a choice of rewards are still recognised."""
    assert "rewards" not in WORLDS["paper"].training.to_dict()
    assert WORLDS["hops"].training.to_dict()["rewards"] == "paper_v2"
    assert "reward.turn.preset=paper_v1" in WORLDS["paper"].training.overrides(seed=0)
