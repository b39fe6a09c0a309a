"""Train with the examples' reward, tool and estimator at once in verl's real trainer: a policy with a calculator."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

pytest.importorskip("verl")

from tests.integration.runs import QUESTIONS, run
from tests.training import REPOSITORY
from verl_mtgrpo.data.rows import make_row, write_parquet
from verl_mtgrpo.demo.policy import build_model, build_tokenizer, save_policy
from verl_mtgrpo.demo.warmup import SampleMaker, torch_threads, warm_up
from verl_mtgrpo.demo.warmup_demos import RENAME_NONE, Demonstration
from verl_mtgrpo.demo.warmup_settings import WarmupSettings
from verl_mtgrpo.demo.world import World
from verl_mtgrpo.report.rollouts import read_dump
from verl_mtgrpo.rewards import load_preset

pytestmark = pytest.mark.imports_verl

EXAMPLES = REPOSITORY / "examples" / "extend"
REWARD = f"{EXAMPLES / 'own_turn_reward.py'}:evidence"
QUESTION, RIGHT, WRONG = "How much is three and four?", "<answer>7</answer>", "<answer>8</answer>"
CALL = '<tool_call>{"name": "calculate", "arguments": {"expression": "3 + 4"}}</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "calculate", "parameters": {"type": "object"}}}]
BOUND = 0.75


class TwoHabits:
    """Make demonstrations: half calculate, half guess, and both are sometimes wrong."""

    def __init__(self) -> None:
        self.rng = random.Random(0)

    def drill(self) -> Demonstration:
        question = {"role": "user", "content": QUESTION}
        answer = {"role": "assistant", "content": self.rng.choice([RIGHT, WRONG])}
        if self.rng.random() < 0.5:
            return Demonstration((question, answer), RENAME_NONE)
        call, result = {"role": "assistant", "content": CALL}, {"role": "tool", "content": "7"}
        return Demonstration((question, call, result, answer), RENAME_NONE)


def make_assets(folder: Path) -> Path:
    folder.mkdir()
    row = {"data_source": "sums", "split": "train", "system_prompt": None}
    rows = [make_row(QUESTION, ["7"], index=n, id=str(n), **row) for n in range(2 * QUESTIONS)]
    write_parquet(rows, folder / "train.parquet")
    write_parquet(rows[:QUESTIONS], folder / "val.parquet")
    tokenizer = build_tokenizer([QUESTION, CALL, RIGHT, WRONG, "Error: "], [])
    model = build_model(tokenizer, seed=0)
    settings = WarmupSettings(drill_steps=80, habit_steps=0, warmup_steps=10)
    with torch_threads():
        maker = SampleMaker(tokenizer, World((), (), (), ()), TOOLS)
        warm_up(model, maker, drill=TwoHabits().drill, settings=settings, seed=0, sorted_together=1)
    save_policy(model, tokenizer, folder / "policy")
    return folder


@pytest.mark.verl
@pytest.mark.slow
def test_own_reward_own_tool_and_own_estimator_train_together(tmp_path: Path):
    multi_turn = "actor_rollout_ref.rollout.multi_turn"
    settings = [
        f"reward.turn.preset={REWARD}",
        f"{multi_turn}.function_tool_path={EXAMPLES / 'own_tool.py'}",
        "algorithm.adv_estimator=bounded_returns",
        "~algorithm.turn",
        f"+algorithm.turn.bound={BOUND}",
    ]
    env = {
        "VERL_USE_EXTERNAL_MODULES": "own_estimator",
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(REPOSITORY)]),
    }
    result = run(make_assets(tmp_path / "assets"), tmp_path, *settings, env=env)
    assert result.returncode == 0, result.tail()
    assert set(result.steps) == {1, 2}
    for step in result.steps.values():
        assert 0 < step["tool/used"] < 1, "both habits occur"
        assert 0 < step["critic/advantages/max"] <= BOUND + 1e-6
        assert 0 > step["critic/advantages/min"] >= -BOUND - 1e-6
        paid = step["turn/1/reward"] + step["turn/2/reward"] * step["turn/2/rollouts"] / step["turn/1/rollouts"]
        assert step["critic/score/mean"] == pytest.approx(paid, abs=1e-4)
    assert any(abs(step["critic/advantages/max"] - BOUND) < 1e-6 for step in result.steps.values()), "it was reached"
    rollouts = read_dump(tmp_path / "val" / "2.jsonl")
    reward = load_preset(REWARD)
    for one in rollouts:
        own = reward(one.transcript, {"target": list(one.answers)})
        assert one.turn_rewards == pytest.approx((*own.turns[:-1], own.turns[-1] + own.outcome))
    first = [one.turn_rewards[0] for one in rollouts if len(one.turn_rewards) == 2]
    assert pytest.approx(0.5 + 0.2) in first, "0.5 because the result is an answer, 0.2 by the tool itself"
