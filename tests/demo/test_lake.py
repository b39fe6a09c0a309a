"""The demo's lake: what it demonstrates, what a run of it is, and that it is made once."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("gymnasium")
pytest.importorskip("transformers")

import pyarrow.parquet as pq

from verl_mtgrpo.demo.lake import NONSENSE, LakeSettings, Walker, prepare_lake
from verl_mtgrpo.demo.session import plan_run
from verl_mtgrpo.demo.warmup_settings import WarmupSettings
from verl_mtgrpo.demo.worlds import WORLDS
from verl_mtgrpo.environments.frozen_lake import WORDS

TINY = LakeSettings(train_rows=8, val_rows=4, warmup=WarmupSettings(drill_steps=2, habit_steps=2, batch_size=2))


def steps(demonstration):
    """Return what was said, and the goal's distance in rows and columns before each turn."""
    said = [message["content"] for message in demonstration.messages if message["role"] == "assistant"]
    seen = [message["content"].split()[-4:] for message in demonstration.messages if message["role"] == "user"]
    return said, [int(words[0]) + int(words[2]) for words in seen]


@pytest.mark.heavy
def test_careful_walks_get_nearer_and_clumsy_ones_do_not():
    walker, nearer = Walker(LakeSettings(), random.Random(0)), {}
    for habit in ("drill", "habit"):
        moves = Counter()
        for _ in range(60):
            said, away = steps(getattr(walker, habit)())
            assert set(said) <= {*WORDS, NONSENSE} and len(said) <= LakeSettings().turns
            moves.update(later < earlier for earlier, later in pairwise(away))
        nearer[habit] = moves[True] / moves.total()
    assert nearer["drill"] > 0.8 > 0.7 > nearer["habit"], "0.35, and of the random steps nearly half"


@pytest.mark.heavy
def test_the_assets_are_made_once(tmp_path: Path):
    made = prepare_lake(tmp_path / "lake", seed=1, progress=False, settings=TINY, turns=3)
    assert set(made.manifest["start"]) == {"goal", "return", "turns"}
    assert 1 <= made.manifest["start"]["turns"] <= 3
    rows = pq.read_table(made.train_file).to_pylist()
    assert len(rows) == 8 and len({row["extra_info"]["id"] for row in rows}) == 8
    weights = made.policy / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = prepare_lake(tmp_path / "lake", seed=1, progress=False, settings=TINY, turns=3)
    assert (again.manifest, weights.stat().st_mtime_ns) == (made.manifest, before)
    other = prepare_lake(tmp_path / "lake", seed=1, progress=False, settings=replace(TINY, val_rows=5), turns=3)
    assert weights.stat().st_mtime_ns != before
    command = plan_run(
        tmp_path, other, preset="grpo_mr", seed=1, settings=WORLDS["lake"].training, world="lake"
    ).command(metrics=tmp_path / "m", validate_first=True)
    assert "MTGRPO_INDEX" not in command.env
    assert {"+mtgrpo_env=default", "trainer.turn.environment.name=frozen_lake", "reward.turn.preset=env"} <= set(
        command.overrides
    )
    assert not [one for one in command.overrides if "tool_config_path" in one]
