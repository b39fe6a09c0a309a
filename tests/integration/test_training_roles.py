"""Roles on their way through verl's real trainer: rows, books, advantages, a frozen role, lost outputs, validation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

pytest.importorskip("verl")

from tests import oracles_roles
from tests.integration.runs import QUESTIONS, run
from verl_mtgrpo.report.rollouts import read_dump

pytestmark = pytest.mark.imports_verl

BRANCHES = 4
OWN = """
from verl_mtgrpo.errors import DropRollout
from verl_mtgrpo.rewards import TurnRewards

def oslo(transcript, ground_truth):
    text = transcript.turns[-1].text
    if "tool_call" in text and "Rome" not in text:
        raise DropRollout("no answer")
    return TurnRewards((0.0,) * len(transcript.turns), float("Oslo" in text))

def called(transcript, ground_truth):
    return TurnRewards(tuple(0.5 * bool(turn.tool_calls) for turn in transcript.turns), 0.0)
"""


def roles(folder: Path) -> dict:
    return {
        "sampling": "rr",
        "names": {
            "rewriter": {"tools": ["search"], "call_ends": True, "reward": f"{folder}/own.py:called"},
            "reader": {"frozen": True, "prompt": "{question} {rewriter.result}", "max_tokens": 12},
            "answerer": {"prompt": "{question} {reader}", "pattern": "<answer>.*</answer>", "penalty": 0.25},
        },
    }


def rows_of_step(folder: Path, step: int) -> list[dict]:
    return [json.loads(line) for line in (folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()]


def prompt_of(row: dict) -> str:
    return row["uid"].rsplit("_", 2)[0]


def assert_shape(rows: list[dict]) -> None:
    """Each prompt forks at one role, and what was read is what was written."""
    by_name = {(prompt_of(row), row["output_id"]): row for row in rows}
    assert len(by_name) == len(rows)
    for prompt in {prompt_of(row) for row in rows}:
        counts = [
            sum(row["role"] == role and prompt_of(row) == prompt for row in rows)
            for role in ("rewriter", "reader", "answerer")
        ]
        assert counts in ([BRANCHES] * 3, [1, BRANCHES, BRANCHES], [1, 1, BRANCHES])
    for row in rows:
        turns, (*_, asked) = (json.loads(row["transcript"])[name] for name in ("turns", "prompt"))
        read = [by_name[prompt_of(row), one] for one in row["fed_by"].split("/") if one]
        assert [one["role"] for one in read] == {"rewriter": [], "reader": ["rewriter"], "answerer": ["reader"]}[
            row["role"]
        ]
        for one in read:
            (*_, last) = json.loads(one["transcript"])["turns"]
            calls = [call["result"] for call in last["tool_calls"] if call["ok"]]
            shown = "\n".join(calls) if one["role"] == "rewriter" else last["text"].replace("<", "< ")
            assert shown.replace("< ", "<") in asked["content"].replace("< ", "<")
        assert len(turns) == 1


def assert_advantages(rows: list[dict]) -> None:
    """The loops of ``tests/oracles_roles.py`` find what was trained, from what the dump says was paid."""
    trained = [row for row in rows if not row["outcome/dropped"]]
    there = {(prompt_of(row), row["output_id"]) for row in trained}
    outputs = oracles_roles.Outputs(
        [[sum(json.loads(row["turn_rewards"])), 0.0] for row in trained],
        [[int(row["role"] != "reader"), 0] for row in trained],
        [prompt_of(row) for row in trained],
        [row["role"] for row in trained],
        [row["output_id"] for row in trained],
        ["/".join(one for one in row["fed_by"].split("/") if (prompt_of(row), one) in there) for row in trained],
    )
    for row, expected in zip(trained, oracles_roles.mhgpo(outputs), strict=True):
        assert json.loads(row["turn_advantages"]) == pytest.approx(expected[:1], abs=2e-3)
        assert row["role"] != "reader" or json.loads(row["turn_advantages"]) == [0.0]


@pytest.mark.verl
def test_two_steps_of_three_roles_one_of_them_frozen(assets: Path, tmp_path: Path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "roles.yaml").write_text(yaml.safe_dump(roles(tmp_path), sort_keys=False))
    result = run(
        assets,
        tmp_path,
        "actor_rollout_ref.rollout.agent.default_agent_loop=mtgrpo_roles_agent",
        f"trainer.turn.roles.file={tmp_path / 'roles.yaml'}",
        *("algorithm.adv_estimator=mhgpo", "trainer.turn.on_purpose=[algorithm.adv_estimator]", "~algorithm.turn"),
        f"reward.turn.preset='{tmp_path}/own.py:oslo'",
        f"actor_rollout_ref.rollout.n={BRANCHES}",
        "data.max_prompt_length=128",
        *(f"trainer.rollout_data_dir={tmp_path / 'rollouts'}", "trainer.turn.dump.groups=0"),
    )
    assert result.returncode == 0, result.tail()
    assert set(result.steps) == {1, 2}
    moved = []
    for number, step in result.steps.items():
        rows = rows_of_step(tmp_path, number)
        assert_shape(rows)
        assert_advantages(rows)
        moved += [any(json.loads(row["turn_advantages"])) for row in rows]
        books = {name.partition("/")[2]: value for name, value in step.items() if name.startswith("rollouts_total/")}
        assert books["asked"] == len(rows) == books["trained"] + books["dropped"] + books["alone"]
        dropped = [row for row in rows if row["outcome/dropped"]]
        assert books["dropped"] + books["alone"] == len(dropped)
        assert step["role/answerer/dropped"] == pytest.approx(
            sum(row["role"] == "answerer" for row in dropped) / sum(row["role"] == "answerer" for row in rows)
        )
        assert "turn/1/zero_variance" not in step, "queries are paid nothing, and are not worth the same for that"
        assert {"role/rewriter/reward", "role/answerer/format", "role/reader/turns"} <= set(step)
        assert "guard/zero_variance_groups" in step
        assert len(read_dump(tmp_path / "rollouts" / f"{number}.jsonl")) == len(rows), "the report sees all outputs"
    assert any(moved), "something was learnt"
    validated = [json.loads(line) for line in (tmp_path / "val" / "2.jsonl").read_text().splitlines()]
    assert len(validated) == QUESTIONS * 4 * 3, "a validation has one branch per rollout: an output of each role"
    answers = read_dump(tmp_path / "val" / "2.jsonl")
    assert [one.role for one in answers] == ["answerer"] * QUESTIONS * 4
    assert not any(key.startswith("val-aux/searchR1_nq/role/rewriter") for key in result.steps[2])
