"""examples/trees: what is counted and averaged where chains and trees are compared."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from verl_mtgrpo.own_code import load_file

FILE = Path(__file__).parents[1] / "examples" / "trees" / "run.py"


@pytest.fixture(scope="module")
def trees():
    return load_file(FILE)


def row(uid: str, path: str | None, *lengths: int) -> dict:
    start, turns = 0, []
    for length in lengths:
        turns.append({"text": "", "span": [start, start + length]})
        start += length + 7  # a tool result of 7 tokens
    return {"uid": uid, "transcript": json.dumps({"turns": turns}), **({"node_path": path} if path else {})}


def test_generated_tokens_of_a_shared_turn_count_once(trees):
    rows = [
        row("q_0_0", "0/0.0", 10, 5),
        row("q_0_1", "0/0.1", 10, 3),  # shares the first turn
        row("q_0_2", "1", 4),
        row("q_1_0", "0/0.0", 10, 5),  # another tree of the same prompt
        row("p_0_0", None, 6, 2),  # chains
        row("p_1_0", None, 6, 2),
    ]
    assert trees.generated(rows) == (10 + 5 + 3 + 4) + (10 + 5) + 2 * (6 + 2)


def test_numbers_at_equal_tokens_are_those_of_the_last_steps_within_them(trees):
    shares = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    run = trees.Run(SimpleNamespace(), [100 * step for step in range(1, 9)], {"outcome/em": shares})
    assert run.at("outcome/em", 799) == pytest.approx((0.2 + 0.3 + 0.4 + 0.5 + 0.6) / 5)
    assert run.at("outcome/em", 800) == pytest.approx((0.3 + 0.4 + 0.5 + 0.6 + 0.7) / 5)
    assert run.at("outcome/em", 250) == pytest.approx(0.05)


def test_the_control_differs_from_arpo_in_its_trees_alone(trees, tmp_path):
    assets = SimpleNamespace(
        policy=tmp_path, index=None, train_file=tmp_path, val_file=tmp_path, tool_config=None, manifest={}
    )
    plans = [trees.plan_of(name, tmp_path, assets, seed=0, steps=None) for name in trees.METHODS]
    assert len({plan.folder for plan in plans}) == len(plans)
    arpo, control = ({*plan.command(metrics=tmp_path / "m", validate_first=True).overrides} for plan in plans[-2:])
    paths = {"checkpoints", "validation", "rollouts", "hydra"}
    assert {one for one in control - arpo if Path(one).name not in paths} == {"trainer.turn.branch.grow=random"}
    assert plans[-1].preset == plans[-2].preset == "arpo"
