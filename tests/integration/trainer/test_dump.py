"""What a dump of training rollouts says beyond verl's, without a trainer."""

from __future__ import annotations

import pytest

pytest.importorskip("verl")

import torch
from transfer_queue import KVBatchMeta

from verl_mtgrpo.integration.trainer.dump import pick_groups, turn_columns, with_credit

pytestmark = pytest.mark.imports_verl


def batch(prompts: int, rollouts: int) -> KVBatchMeta:
    keys = [f"p_{prompt}_{rollout}_0" for rollout in range(rollouts) for prompt in range(prompts)]
    return KVBatchMeta(partition_id="train", keys=keys, tags=[{"row": row} for row in range(len(keys))])


def test_turns_by_hand():
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    columns = turn_columns(
        rewards=torch.tensor([[0.1, 0.7, 0, 1.0], [0.2, 0, 0, 0], [5.0, 0, 0, 0]]),
        advantages=torch.tensor([[1.0, 3.0, 9.0, -1.0], [0.5, 0, 0, 0], [0, 0, 0, 0]]),
        response_mask=mask,
        values=torch.tensor([[0.25, 0.5, 9.0, 0.75], [0.125, 0, 0, 0], [0, 0, 0, 0]]),
        values_after=torch.tensor([[0.5, 9.0, 0.75, 0.625], [0.375, 0, 0, 0], [0, 0, 0, 0]]),
    )
    assert columns["turn_credited"] == [pytest.approx([0.8, 1.0]), pytest.approx([0.2]), []]
    assert columns["turn_advantages"] == [[2.0, -1.0], [0.5], []], "the mean over a turn's tokens"
    assert columns["turn_values"] == [[0.25, 0.75], [0.125], []], "where a turn begins"
    assert columns["turn_values_after"] == [[9.0, 0.625], [0.375], []], "behind its last token"
    assert not {"turn_values", "turn_values_after", "turn_surprisal"} & set(
        turn_columns(mask.float(), mask.float(), mask)
    )
    log_probs = -torch.tensor([[1.0, 3.0, 9.0, 0.5], [0.25, 0, 0, 0], [0, 0, 0, 0]])
    columns = turn_columns(mask.float(), mask.float(), mask, log_probs=log_probs)
    assert columns["turn_surprisal"] == [[2.0, 0.5], [0.25], []], "the mean of -log p over a turn's tokens"


def test_groups_are_taken_whole_and_the_same_ones_again():
    picked = pick_groups(batch(10, 4), 3, seed=7)
    prompts = {key.rsplit("_", 2)[0] for key in picked.keys}
    assert len(prompts) == 3
    assert len(picked.keys) == 12
    rows = [tag["row"] for tag in picked.tags]
    assert rows == sorted(rows), "in their order"
    assert [batch(10, 4).keys[row] for row in rows] == picked.keys, "each with its own tag"
    assert pick_groups(batch(10, 4), 3, seed=7).keys == picked.keys
    assert len({tuple(pick_groups(batch(10, 4), 3, seed=seed).keys) for seed in range(20)}) > 5, "chance, by step"


@pytest.mark.parametrize("groups", [0, 10, 11])
def test_all_groups(groups):
    assert pick_groups(batch(10, 4), groups, seed=1).keys == batch(10, 4).keys


def test_columns_follow_verls_order_of_rows():
    rows = {"a_0_0": {"x": 1, "y": "one"}, "b_0_0": {"x": 2}}
    columns = with_credit({"uid": ["b_0_0", "a_0_0"]}, rows)
    assert columns == {"uid": ["b_0_0", "a_0_0"], "x": [2, 1], "y": [None, "one"]}
    assert with_credit({"uid": ["v_0_0"], "reward": [1.0]}, {}) == {"uid": ["v_0_0"], "reward": [1.0]}, "validation"
