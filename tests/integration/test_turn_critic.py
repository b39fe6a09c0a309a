"""Train a turn critic in verl's real trainer, on the CPU, and check what reaches it by a loop over turns."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest
import torch

pytest.importorskip("verl")

from tests import oracles
from tests.integration.runs import QUESTIONS, ROLLOUTS, run
from tests.training import REPOSITORY

pytestmark = pytest.mark.imports_verl

PROBE = """
import os
import torch
from verl_mtgrpo.credit import register_estimator, turn_td

@register_estimator
def probe(token_level_rewards, response_mask, index, values, values_after, *, discount=1.0, whiten=True):
    result = turn_td(token_level_rewards, response_mask, index, values, values_after, discount=discount, whiten=whiten)
    seen = dict(rewards=token_level_rewards, mask=response_mask, before=values, after=values_after,
                advantages=result[0], returns=result[1])
    folder = os.environ["PROBE_FOLDER"]
    torch.save(seen, f"{folder}/{len(os.listdir(folder)) + 1}.pt")
    return result
"""


def assert_one_number_per_place(seen: dict) -> None:
    """A row is read once: what stands after a token is what stands before the next one."""
    for mask, before, after in zip(seen["mask"], seen["before"], seen["after"], strict=True):
        read = int(before.nonzero().max()) + 1  # rows are right padded with 0
        assert torch.equal(after[: read - 1], before[1:read])
        assert after[read - 1] != 0, "verl cuts this one off"
        assert (after[read:] == 0).all()
        assert int(mask.nonzero().max()) < read


def squared_errors(seen: dict, gamma: float) -> list[float]:
    """Of the critic at every place where it learns, before the update."""
    lists = (seen[name].double().tolist() for name in ("rewards", "mask", "before", "after"))
    _, targets = oracles.turn_td(*lists, gamma=gamma)
    return [
        (target - float(seen["before"][row, 0] if place == 0 else seen["after"][row, place - 1])) ** 2
        for row, learned in enumerate(targets)
        for place, target in learned.items()
    ]


def probed(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "seen").mkdir()
    return {
        "VERL_USE_EXTERNAL_MODULES": "probe",
        "PROBE_FOLDER": str(tmp_path / "seen"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)]),
    }


SETTINGS = [
    "algorithm.adv_estimator=probe",
    "algorithm.turn.discount=0.9",
    "trainer.test_freq=-1",
    "trainer.critic_warmup=2",
    "critic.ppo_epochs=1",
    "critic.optim.lr=1e-3",
    f"critic.ppo_micro_batch_size_per_gpu={ROLLOUTS * QUESTIONS // 4}",
    "critic.use_dynamic_bsz=False",
]


def assert_what_reached_the_critic(seen: dict, step: dict) -> None:
    """One pass over one mini-batch: the loss of the workers is that of the values that the trainer saw."""
    assert_one_number_per_place(seen)
    assert step["critic/vf_loss"] == pytest.approx(0.5 * statistics.fmean(squared_errors(seen, 0.9)), rel=1e-3)
    assert 0 < step["critic/grad_norm"] < 1000
    assert step["critic/td_error"] > 0
    assert step["critic/q_explained_variance"] < 1
    assert step["turn/1/rollouts"] == QUESTIONS * ROLLOUTS


@pytest.mark.verl
def test_two_steps_of_turn_td_in_our_trainer(assets: Path, tmp_path: Path):
    result = run(assets, tmp_path, *SETTINGS, preset="turn_td", env=probed(tmp_path))
    assert result.returncode == 0, result.tail()
    assert set(result.steps) == {1, 2}
    for n, step in result.steps.items():  # the first call is that of the start, which tries the knobs
        assert_what_reached_the_critic(torch.load(tmp_path / "seen" / f"{n + 1}.pt", weights_only=False), step)
    assert "actor/pg_loss" not in result.steps[1], "the critic learns alone in the first step"
    assert "actor/pg_loss" in result.steps[2]


@pytest.mark.verl
@pytest.mark.slow
def test_two_steps_of_archer_learn_the_first_ones_rollouts_again(assets: Path, tmp_path: Path):
    rows = QUESTIONS * ROLLOUTS
    checkpoints = [f"trainer.default_local_dir={tmp_path / 'checkpoints'}", "trainer.save_freq=2"]
    rounds = ["trainer.turn.critic.rounds=1", "trainer.turn.critic.memory=1000"]
    result = run(assets, tmp_path, *SETTINGS, *checkpoints, *rounds, preset="archer", env=probed(tmp_path))
    assert result.returncode == 0, result.tail()
    first, second = result.steps[1], result.steps[2]
    # Nothing to learn again in the first step, whose rows the critic learns in a partition of their own.
    assert_what_reached_the_critic(torch.load(tmp_path / "seen" / "2.pt", weights_only=False), first)
    assert (first["critic/memory_rollouts"], first["critic/memory_replayed"]) == (rows, 0)
    assert (second["critic/memory_rollouts"], second["critic/memory_replayed"]) == (2 * rows, rows)
    assert second["critic/memory_age"] == 1
    assert second["critic/memory_td_error"] > 0
    assert "actor/pg_loss" in second, "the policy's update finds its batch as it was"
    kept = torch.load(tmp_path / "checkpoints" / "global_step_2" / "turn_memory.pt", weights_only=True)
    assert kept["step"] == [1] * rows + [2] * rows
    seen = torch.load(tmp_path / "seen" / "3.pt", weights_only=False)
    paid = [float(one.sum()) for one in kept["rewards"].split(kept["lengths"]["response"])][rows:]
    assert sorted(paid) == pytest.approx(sorted(seen["rewards"].sum(1).tolist()), abs=1e-4)
