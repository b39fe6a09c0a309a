"""Issue 21, part C, 15 and 16: which rollouts a baseline averages over, and what its statistics are made of.

| number | input | right value | source |
|---|---|---|---|
| 15 | a group that earned 1, 1, 1 and a dropped rollout | advantage 0 for the three | the group without the fourth |
| 15 | all but one of a group are lost | the last one leaves too; a critic's estimator keeps it | no baseline is left |
| 16 | KL in the reward, groups in which all earned the same | refused where a group's std divides | review-gpu.md 4 |
| 16 | the same in the guards and `zero_variance` | what was paid counts, not the KL | review-gpu.md 4 |
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_kl_controller
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from tests.composed import composed
from tests.credit.batches import fields_of
from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.doctor import fit
from verl_mtgrpo.doctor.setup import Setup
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.advantage.comparing import compares
from verl_mtgrpo.integration.dense import chosen_dense
from verl_mtgrpo.integration.preflight import check_estimator
from verl_mtgrpo.integration.trainer.buffer import TurnReplayBuffer, TurnReplayBufferAsync
from verl_mtgrpo.integration.trainer.left_out import Sorted, sort_rows
from verl_mtgrpo.integration.trainer.queue import token_columns, without_padding
from verl_mtgrpo.integration.trainer.trainer import TurnTrainerSync, guards_of, measure
from verl_mtgrpo.watch.diagnostics import credit_metrics

pytestmark = pytest.mark.compose

LOST = None
"""A rollout that was dropped, among the turn rewards of others."""

GROUPS: dict[str, list[list[float] | None]] = {
    "equal": [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], LOST],
    "mixed": [[0.7, 1.0], LOST, [0.2, 0.0], [0.5]],
    "whole": [[0.3, 1.0], [0.3, 0.2], [0.0, 1.0], [0.1, 0.0]],
    "alone": [LOST, LOST, [0.7, 1.0], LOST],
    "gone": [LOST, LOST, LOST, LOST],
}
OURS = ("mt_grpo", "mt_grpo_v1", "turn_rloo", "gtpo")
VERLS = ("grpo", "rloo", "grpo_vectorized", "rloo_vectorized", "opo")
"""Those that look at one group at a time: for others a group on its own is no oracle."""


# ---- 15: which rows leave


@pytest.mark.parametrize(
    ("case", "dropped", "need_company", "expected"),
    [
        ("nothing lost", [], True, Sorted([0, 1, 2, 3, 4, 5], [], [])),
        ("one of three", ["a_1"], True, Sorted([0, 2, 3, 4, 5], [1], [])),
        ("two of three: the third has nobody", ["a_0", "a_1"], True, Sorted([3, 4, 5], [0, 1], [2])),
        ("and stays where nobody is compared with", ["a_0", "a_1"], False, Sorted([2, 3, 4, 5], [0, 1], [])),
        (
            "a rollout of two rows goes whole, and one rollout is no company",
            ["b_0"],
            True,
            Sorted([0, 1, 2], [3, 4], [5]),
        ),
        ("everything", ["a_0", "a_1", "a_2", "b_0", "b_1"], True, Sorted([], [0, 1, 2, 3, 4, 5], [])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_rows_that_leave(case: str, dropped: list[str], need_company: bool, expected: Sorted):
    keys = ["a_0_0", "a_1_0", "a_2_0", "b_0_0", "b_0_1", "b_1_0"]  # the first rollout of b came as two rows
    marks = [{"outcome/dropped": 1.0} if key.rpartition("_")[0] in dropped else {} for key in keys]
    if "b_0" in dropped:
        marks[4] = {}  # the mark on one of its rows is enough
    assert sort_rows(keys, marks, need_company=need_company) == expected, case


def test_who_compares_rollouts():
    assert all(compares(name) for name in (*OURS, *VERLS, "grpo_passk", "gpg", "reinforce_plus_plus_baseline"))
    assert not any(compares(name) for name in ("gae", "turn_gae", "bilevel_gae", "reinforce_plus_plus", "remax"))


# ---- 15: through verl's own queue and trainer


def row(uid: str, rewards: list[float] | None) -> dict[str, Any]:
    """Put a row into the queue as the agent loop does: two tokens per turn, each followed by an observation token."""
    turns = [0.0, 0.0] if rewards is LOST else rewards
    mask = [1, 1, 0] * len(turns)
    scores = [number for reward in turns for number in (0.0, reward, 0.0)]
    info = {
        "outcome/dropped": float(rewards is LOST),
        "dropped_reason": "the search was down" if rewards is LOST else "",
    }
    response = torch.arange(len(mask))
    return {
        "uid": uid,
        "prompts": torch.arange(3),
        "responses": response,
        "input_ids": torch.arange(3 + len(mask)),
        "attention_mask": torch.ones(3 + len(mask), dtype=torch.int64),
        "position_ids": torch.arange(3 + len(mask)),
        "response_mask": torch.tensor(mask) * (rewards is not LOST),
        "rm_scores": torch.tensor(scores),
        "rollout_log_probs": torch.zeros(len(mask)),
        "old_log_probs": torch.zeros(len(mask)),
        "extra_fields": {"reward_extra_info": info},
    }


def fill(groups: dict[str, list[list[float] | None]], step: int) -> None:
    """Put finished questions into the queue."""
    for uid, rollouts in groups.items():
        keys = [f"{uid}_{session}_0" for session in range(len(rollouts))]
        rows = [row(uid, rewards) for rewards in rollouts]
        tags = [{"status": "success", "global_steps": step, "seq_len": len(one["input_ids"])} for one in rows]
        tq.kv_batch_put(keys=keys, partition_id="train", fields=list_of_dict_to_tensordict(rows), tags=tags)
        tq.kv_batch_put(
            keys=[uid], partition_id="train", tags=[{"is_prompt": True, "status": "finished", "global_steps": step}]
        )


def buffer_for(estimator: str, kind: type = TurnReplayBuffer, rollouts_per_prompt: int = 4) -> Any:
    return kind(
        estimator=estimator,
        rollouts_per_prompt=rollouts_per_prompt,
        poll_interval=0.01,
        trainer_mode="sync",
        trainer_config=OmegaConf.create({}),
        max_off_policy_threshold=1,
        max_off_policy_strategy="drop",
        sampler_kwargs=OmegaConf.create({}),
    )


def run_with(estimator: str) -> Any:
    """A run with one of our estimators, or with one of verl's."""
    preset = estimator if estimator in OURS else "grpo_mr"
    return composed(f"algorithm.adv_estimator={estimator}", preset=preset)


def advantages(batch: Any, estimator: str) -> dict[str, list[float]]:
    """Let verl's trainer compute advantages, and read the one of each turn by row."""
    trainer = object.__new__(TurnTrainerSync)
    trainer.config, trainer.global_steps = run_with(estimator), 1
    trainer._guards, trainer._dense_rewards = guards_of(trainer.config), chosen_dense(trainer.config)
    metrics: dict[str, float] = {}
    trainer._compute_advantage(batch, metrics)
    again = measure(batch, "rm_scores")
    assert again == pytest.approx({name: metrics[name] for name in again}, abs=1e-6), "what was kept is in the queue"
    tokens, _ = token_columns(batch, ["advantages", "response_mask"])
    return {
        key: values[mask.bool()][::2].tolist()
        for key, values, mask in zip(batch.keys, tokens["advantages"], tokens["response_mask"], strict=True)
    }


@pytest.mark.verl
@pytest.mark.parametrize("kind", [TurnReplayBuffer, TurnReplayBufferAsync])
@pytest.mark.parametrize("estimator", [*OURS, *VERLS])
def test_a_dropped_rollout_moves_nobodys_advantage(queue: None, estimator: str, kind: type):
    """The oracle is the estimator itself, called for the surviving rollouts of each group and nothing else."""
    fill(GROUPS, step=1)
    buffer = buffer_for(estimator, kind)
    batch, metrics = buffer.sample(1, "train", len(GROUPS))
    assert [metrics[f"rollouts_total/{fate}"] for fate in ("asked", "trained", "dropped", "alone", "failed")] == [
        *(20, 10, 9, 1, 0)
    ]
    padded = upsample_batch_to_divisible_size(batch, 4, eos_token_id=0)  # as the trainer does before everything else
    assert len(padded) == 12
    found = advantages(padded, estimator)
    for uid in ("equal", "mixed", "whole"):
        survivors = [(n, rewards) for n, rewards in enumerate(GROUPS[uid]) if rewards is not LOST]
        expected = without_the_others(estimator, [rewards for _, rewards in survivors])
        for (session, _), wanted in zip(survivors, expected, strict=True):
            assert found[f"{uid}_{session}_0"] == pytest.approx(wanted, abs=1e-5), (uid, session)
    assert {key.split("_")[0] for key in without_padding(padded).keys} == {"equal", "mixed", "whole"}
    if estimator not in ("gtpo",):  # whose one baseline for all turns tells the turns of equal rollouts apart
        assert found["equal_0_0"] == [0.0, 0.0]
    tq.kv_clear(keys=padded.keys, partition_id="train")
    buffer.left_out.begin(2)


def without_the_others(estimator: str, rollouts: list[list[float]]) -> list[list[float]]:
    """One group on its own, given to the registered function."""
    width = 3 * max(map(len, rollouts))
    rewards, mask = torch.zeros(len(rollouts), width), torch.zeros(len(rollouts), width)
    for n, one in enumerate(rollouts):
        for turn, reward in enumerate(one):
            mask[n, 3 * turn : 3 * turn + 2] = 1
            rewards[n, 3 * turn + 1] = reward
    settings = run_with(estimator).algorithm
    index = np.array(["q"] * len(rollouts), dtype=object)
    result, _ = get_adv_estimator_fn(estimator)(
        token_level_rewards=rewards, response_mask=mask, index=index, config=settings
    )
    return [[float(result[n, 3 * turn]) for turn in range(len(one))] for n, one in enumerate(rollouts)]


@pytest.mark.verl
def test_lost_rollouts_stay_for_the_dump_until_the_next_step(queue: None):
    buffer = buffer_for("grpo")
    fill({"mixed": GROUPS["mixed"], "alone": GROUPS["alone"]}, step=1)
    first, _ = buffer.sample(1, "train", 2)
    fill({"whole": GROUPS["whole"]}, step=1)
    second, _ = buffer.sample(1, "train", 1)  # a step may have several batches
    lost = [key for batch in (*buffer.left_out.dropped, *buffer.left_out.alone) for key in batch.keys]
    assert sorted(lost) == sorted(["mixed_1_0", "alone_0_0", "alone_1_0", "alone_3_0", "alone_2_0"])
    there = set(tq.kv_list("train")["train"])
    assert set(lost) <= there and set(first.keys) | set(second.keys) <= there
    tq.kv_clear(keys=[*first.keys, *second.keys], partition_id="train")  # as the trainer does behind each step
    fill({"equal": GROUPS["whole"]}, step=2)
    third, metrics = buffer.sample(2, "train", 1)
    assert set(tq.kv_list("train")["train"]) == set(third.keys), "nothing of the step before is left"
    assert metrics["rollouts_total/trained"] == 4.0
    tq.kv_clear(keys=third.keys, partition_id="train")


@pytest.mark.verl
def test_one_rollout_a_prompt_by_intention_is_no_loss(queue: None):
    fill({"a": [[0.3, 1.0]], "b": [[0.3, 1.0]]}, step=1)
    buffer = buffer_for("grpo", rollouts_per_prompt=1)
    batch, metrics = buffer.sample(1, "train", 2)
    assert (len(batch.keys), metrics["rollouts_total/alone"]) == (2, 0.0)
    tq.kv_clear(keys=batch.keys, partition_id="train")


@pytest.mark.verl
def test_a_critics_estimator_keeps_a_rollout_without_company(queue: None):
    fill({"alone": GROUPS["alone"]}, step=1)
    buffer = buffer_for("gae")
    batch, metrics = buffer.sample(1, "train", 1)
    assert batch.keys == ["alone_2_0"]
    assert metrics["rollouts_total/alone"] == 0.0
    tq.kv_clear(keys=batch.keys, partition_id="train")
    buffer.left_out.begin(2)


# ---- 16: KL in the reward

DIVIDES: dict[tuple[str, str], tuple[dict[str, Any], bool]] = {
    ("mt_grpo", ""): ({"scale": "std"}, True),
    ("mt_grpo", "scale=none"): ({"scale": "none"}, False),
    ("mt_grpo_v1", ""): ({}, True),
    ("gtpo", ""): ({}, True),
    ("turn_rloo", ""): ({"scale": "none"}, False),
    ("turn_rloo", "scale=std"): ({"scale": "std"}, True),
    ("turn_reinforce_pp", ""): ({}, False),
    ("turn_gae", ""): ({"whiten": False}, False),
    ("bilevel_gae", ""): ({"whiten": False}, False),
    ("turn_td", ""): ({"whiten": False}, False),
    ("mt_grpo_tree", ""): ({"scale": "std"}, True),
    ("mt_grpo_tree", "scale=none"): ({"scale": "none"}, False),
    ("turn_rloo_tree", ""): ({"scale": "none"}, False),
    ("turn_rloo_tree", "scale=std"): ({"scale": "std"}, True),
    ("turn_gae_tree", ""): ({"whiten": False}, False),
    ("arpo", ""): ({}, True),
    ("tree_grpo", ""): ({"scale": "std"}, True),
    ("at2po", ""): ({}, True),
    ("mhgpo", ""): ({"scale": "std"}, True),
    ("mhgpo", "scale=none"): ({"scale": "none"}, False),
}
"""Estimator and knobs -> whether a difference in a group, however small, becomes an advantage of size 1."""


def hopeless_and_mixed(kl: float) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Eight rollouts that earned nothing, and eight of which half earned 0.7 and 1.0; a KL penalty on each token."""
    mask = torch.tensor([[1, 1, 0, 1, 1]] * 16)
    paid = torch.tensor([[0.0] * 5] * 12 + [[0, 0.7, 0, 0, 1.0]] * 4)
    noise = torch.rand(16, 5, generator=torch.Generator().manual_seed(0))
    return paid - kl * noise * mask, mask, ["hopeless"] * 8 + ["mixed"] * 8


@pytest.mark.parametrize("case", DIVIDES, ids="-".join)
def test_which_estimators_divide_by_a_groups_deviation(case: tuple[str, str]):
    """Measure how far a KL of 1e-3 per token moves advantages if no rollout earned anything."""
    name, (settings, divides) = case[0], DIVIDES[case]
    assert ESTIMATORS[name].divides(settings) is divides
    fields = fields_of(name, torch.zeros(16, 5), lambda rewards: torch.full_like(rewards, 0.4))
    with_kl, without = (ESTIMATORS[name](*hopeless_and_mixed(kl), **fields, **settings)[0][:8] for kl in (1e-3, 0.0))
    moved = float((with_kl - without).abs().max())
    assert moved > 0.5 if divides else moved < 0.02


def test_each_estimator_of_ours_is_in_the_table():
    assert {name for name, _ in DIVIDES} == {
        *("mt_grpo", "mt_grpo_v1", "turn_rloo", "gtpo", "turn_reinforce_pp", "turn_gae", "bilevel_gae", "turn_td"),
        *("mt_grpo_tree", "turn_rloo_tree", "turn_gae_tree", "arpo", "tree_grpo", "at2po"),
        "mhgpo",
    }


@pytest.mark.parametrize(
    ("preset", "override", "refused"),
    [
        ("mt_grpo", [], r"algorithm.turn.scale=none, which only centres"),
        ("mt_grpo", ["algorithm.turn.scale=none"], None),
        ("mt_grpo_v1", [], r"kl_loss_coef, as in GRPO"),
        ("gtpo", [], r"use_kl_loss=True with"),
        ("turn_rloo", [], None),
        ("turn_rloo", ["algorithm.turn.scale=std"], r"divides by the standard deviation of a group"),
        ("turn_reinforce_pp", [], None),
        ("turn_gae", [], None),
        ("bilevel_gae", [], None),
        ("mt_ppo", [], None),
        ("grpo_mr", [], None),
    ],
)
def test_a_divided_kl_is_refused_at_start(preset: str, override: list[str], refused: str | None):
    run = composed("algorithm.use_kl_in_reward=True", "actor_rollout_ref.rollout.n=8", *override, preset=preset)
    if refused is None:
        check_estimator(run)
    else:
        with pytest.raises(ConfigError, match=refused):
            check_estimator(run)
    run.algorithm.use_kl_in_reward = False
    check_estimator(run)


def test_the_doctor_warns_of_verls_own():
    setup = Setup(composed("algorithm.use_kl_in_reward=True", "actor_rollout_ref.rollout.n=8", preset="grpo_mr"))
    (finding,) = fit.estimator(setup)
    assert (finding.status, "actor.use_kl_loss=True" in finding.fix) == ("warn", True)
    setup = Setup(composed("actor_rollout_ref.rollout.n=8", preset="grpo_mr"))
    assert [finding.status for finding in fit.estimator(setup)] == ["ok"]


def test_zero_variance_is_of_what_was_paid():
    rewards, mask, index = hopeless_and_mixed(kl=1e-6)
    paid, _, _ = hopeless_and_mixed(kl=0.0)
    blind = credit_metrics(rewards, torch.zeros(16, 5), mask, index)
    seeing = credit_metrics(rewards, torch.zeros(16, 5), mask, index, paid=paid)
    assert [blind[f"turn/{k}/zero_variance"] for k in (1, 2)] == [0.0, 0.0]
    assert [seeing[f"turn/{k}/zero_variance"] for k in (1, 2)] == [0.5, 0.5], "one of two groups"
    assert seeing["outcome/zero_variance"] == 0.5
    assert seeing["turn/1/reward_total"] == blind["turn/1/reward_total"], "as the estimator saw it"


@pytest.mark.verl
def test_guards_of_a_real_step_see_what_was_paid(queue: None):
    """Nobody earns anything before the last turn, all outcomes are equal, and the KL makes every token differ."""
    groups = {uid: [[0.0, 1.0]] * 4 for uid in "abc"}
    fill(groups, step=1)
    batch, _ = buffer_for("turn_rloo").sample(1, "train", 3)
    noise = torch.randn(len(batch), 6, generator=torch.Generator().manual_seed(0)) * 0.1
    tq.kv_batch_put(
        keys=batch.keys,
        partition_id="train",
        fields=TensorDict({"ref_log_prob": torch.nested.as_nested_tensor(list(noise), layout=torch.jagged)}, [12]),
    )
    run = composed("algorithm.use_kl_in_reward=True", "trainer.turn.guards.steps=1", preset="turn_rloo")
    trainer = object.__new__(TurnTrainerSync)
    trainer.config, trainer.global_steps = run, 1
    trainer._guards, trainer._dense_rewards = guards_of(run), chosen_dense(run)
    trainer.kl_ctrl_in_reward = get_kl_controller(run.algorithm.kl_ctrl)
    metrics: dict[str, float] = {}
    trainer._compute_advantage(batch, metrics)
    assert metrics["turn/1/advantage_std"] > 0, "the KL is in the advantages"
    assert [metrics[f"turn/{k}/zero_variance"] for k in (1, 2)] == [1.0, 1.0]
    assert metrics["guard/zero_variance"] == metrics["guard/turn_rewards"] == 1.0
    again = measure(batch, "token_level_rewards")
    assert again == pytest.approx({name: metrics[name] for name in again}), "as from the queue"
    tq.kv_clear(keys=batch.keys, partition_id="train")
