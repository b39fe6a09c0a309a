import pytest
import torch

from tests.oracles import runs_of_ones
from verl_mtgrpo.credit import segment_turns
from verl_mtgrpo.errors import CreditInputError


def test_turns_are_the_runs_of_ones():
    mask = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0], [0, 1, 0, 1, 0, 1, 0, 0], [0] * 8, [1] * 8])
    turns = segment_turns(mask)
    assert turns.count_B.tolist() == [2, 3, 0, 1]
    assert turns.max_turns == 3
    assert turns.token_turn_BT[0].tolist() == [0, 0, 3, 3, 1, 1, 1, 3]
    assert turns.alive_BK.tolist() == [[True, True, False], [True] * 3, [False] * 3, [True, False, False]]
    assert turns.last_BK.tolist() == [[False, True, False], [False, False, True], [False] * 3, [True, False, False]]


def test_rewards_are_summed_inside_each_turn_and_ignored_outside():
    mask = torch.tensor([[1, 1, 0, 1, 0]])
    rewards = torch.tensor([[0.25, 0.5, 100.0, 2.0, 100.0]])
    turns = segment_turns(mask)
    assert turns.sum_over_turns(rewards).tolist() == [[0.75, 2.0]]
    assert turns.spread(torch.tensor([[3.0, -1.0]])).tolist() == [[3.0, 3.0, 0.0, -1.0, 0.0]]


def test_a_tiny_reward_survives_beside_a_huge_one():
    turns = segment_turns(torch.tensor([[1, 0, 1]]))
    assert turns.sum_over_turns(torch.tensor([[1e8, 0.0, 1e-8]])).tolist() == [[1e8, pytest.approx(1e-8)]]


@pytest.mark.parametrize("seed", range(20))
def test_equal_to_a_loop(seed):
    mask = (torch.rand(9, 13, generator=torch.Generator().manual_seed(seed)) < 0.6).long()
    turns = segment_turns(mask)
    for row in range(len(mask)):
        expected = [turns.max_turns] * 13
        for k, tokens in enumerate(runs_of_ones(mask[row].tolist())):
            for token in tokens:
                expected[token] = k
        assert turns.token_turn_BT[row].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16, torch.int32])
def test_mask_of_any_dtype(dtype):
    mask = torch.tensor([[1, 0, 1, 1]])
    assert torch.equal(segment_turns(mask.to(dtype)).token_turn_BT, segment_turns(mask).token_turn_BT)


def test_no_generated_token_anywhere():
    turns = segment_turns(torch.zeros(2, 3, dtype=torch.long))
    assert turns.max_turns == 0
    assert turns.sum_over_turns(torch.ones(2, 3)).shape == (2, 0)
    assert turns.spread(torch.zeros(2, 0)).tolist() == [[0.0] * 3] * 2


def test_the_mask_is_not_modified():
    mask = torch.tensor([[1, 1, 0, 1]])
    segment_turns(mask)
    assert mask.tolist() == [[1, 1, 0, 1]]


def test_a_mask_that_is_not_zero_or_one_is_refused():
    with pytest.raises(CreditInputError, match="2 values other than 0 and 1"):
        segment_turns(torch.tensor([[1, 2, 0, 3]]))
    with pytest.raises(CreditInputError, match=r"shape \(3,\), expected"):
        segment_turns(torch.ones(3))
