import pytest
import torch

from tests import oracles
from tests.credit.batches import multi_turn_batch, random_batch
from verl_mtgrpo.credit import mt_grpo
from verl_mtgrpo.errors import CreditInputError


def advantages(batch, **settings):
    result, returns = mt_grpo(batch.rewards, batch.mask, batch.index, **settings)
    assert returns is result
    return result


# Group of three. Rollout 1: turn 0.7, outcome 1. Rollout 2: turn 0.2, outcome 0. Rollout 3: no tool call, 0.5.
MASK = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 0, 0]])
REWARDS = torch.tensor([[0, 0.7, 0, 0, 0, 1.0], [0, 0.2, 0, 0, 0, 0.0], [0, 0, 0.5, 0, 0, 0]])


def test_worked_by_hand():
    # Turn 1, all three alive, rollout 3 with 0: values .7 .2 0, mean .3, deviations .4 -.1 -.3,
    # std = sqrt((.16 + .01 + .09) / 2) = sqrt(.13) = .3605551: Â^I = 1.109400, -.277350, -.832050.
    # Outcome 1, 0, .5: mean .5, std sqrt((.25 + .25) / 2) = .5: Â^O = 1, -1, 0.
    # A_1 = Â^I + Â^O = 2.109400, -1.277350, -.832050; A_2 = Â^O (turn 2's intermediate rewards are 0 for both).
    result, _ = mt_grpo(REWARDS, MASK, ["q", "q", "q"])
    expected = [[2.1094, 2.1094, 0, 0, 1, 1], [-1.27735, -1.27735, 0, 0, -1, -1], [-0.83205] * 3 + [0] * 3]
    assert torch.allclose(result, torch.tensor(expected), atol=2e-5)


def test_worked_by_hand_with_exclude_discount_and_coefficient():
    # exclude: only rollouts 1 and 2 have an intermediate reward: .7, .2, mean .45, std sqrt(2 * .0625) = .3535534:
    # Â^I = .7071068, -.7071068. c = 2, α = .5: A_1 = 2 Â^I + .5 Â^O = 1.914214, -1.914214; rollout 3: Â^O = 0.
    result, _ = mt_grpo(REWARDS, MASK, ["q"] * 3, turn_coef=2.0, discount=0.5, missing_turn="exclude")
    assert result[:, 0].tolist() == pytest.approx([1.914214, -1.914214, 0.0], abs=2e-5)
    assert result[:2, 4].tolist() == pytest.approx([1.0, -1.0], abs=2e-5)


def test_three_turns_worked_by_hand():
    # scale none, α = .5. Rollouts: R = (.4, .6, 1) and (0, .2, 0). Turn 1: .4, 0 -> .2, -.2. Turn 2: .6, .2 -> .2, -.2.
    # Turn 3 is both's last: Â^I 0. Outcome 1, 0 -> .5, -.5.
    # A_1 = .2 + .5·.2 + .25·.5 = .425;  A_2 = .2 + .5·.5 = .45;  A_3 = .5; the other rollout the negative.
    mask = torch.tensor([[1, 0, 1, 0, 1]] * 2)
    rewards = torch.tensor([[0.4, 0, 0.6, 0, 1.0], [0.0, 0, 0.2, 0, 0.0]])
    result, _ = mt_grpo(rewards, mask, ["q", "q"], discount=0.5, scale="none")
    assert torch.allclose(result[0], torch.tensor([0.425, 0, 0.45, 0, 0.5]))
    assert torch.allclose(result[1], -result[0])


@pytest.mark.parametrize("missing_turn", ["zero", "exclude"])
@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("block", range(4))
def test_equals_the_naive_loop(missing_turn, scale, block):
    settings = {"missing_turn": missing_turn, "scale": scale}
    for seed in range(50 * block, 50 * block + 50):
        batch = random_batch(seed)
        alpha, c = (1.0, 0.9, 0.5, 0.0)[seed % 4], (1.0, 0.3)[seed % 2]
        expected = oracles.mt_grpo(
            batch.rewards.double().tolist(), batch.mask.tolist(), batch.index, c=c, alpha=alpha, **settings
        )
        result = advantages(batch, turn_coef=c, discount=alpha, **settings)
        assert torch.allclose(result, torch.tensor(expected), atol=2e-4, rtol=2e-4), f"seed {seed}"


def test_the_random_batches_hold_the_hard_cases():
    batches = [random_batch(seed) for seed in range(200)]
    assert any((batch.mask.sum(1) == 0).any() for batch in batches), "no row without generated tokens"
    assert any(batch.index.count(label) == 1 for batch in batches for label in batch.index), "no group of one"
    turns = [len(oracles.runs_of_ones(row.tolist())) for batch in batches for row in batch.mask]
    assert {0, 1, 2, 3, 4} <= set(turns)


def test_a_constant_added_to_everyones_reward_at_a_turn_changes_nothing():
    batch = multi_turn_batch(3, rows=8, groups=2)
    two_turns = torch.tensor([[1, 1, 0, 1]] * 8)
    rewards = batch.rewards[:, :4] * two_turns
    shifted = rewards + torch.tensor([[0.0, 5.0, 0.0, -3.0]])
    before, _ = mt_grpo(rewards, two_turns, batch.index)
    assert torch.allclose(mt_grpo(shifted, two_turns, batch.index)[0], before, atol=1e-4)


def test_each_turns_advantage_has_group_mean_zero_before_it_is_spread():
    batch = multi_turn_batch(1)
    result = advantages(batch, scale="none", turn_coef=0.0)
    first_token = torch.stack([row[mask == 1][-1] for row, mask in zip(result, batch.mask, strict=True)])
    for label in set(batch.index):
        members = [i for i, other in enumerate(batch.index) if other == label]
        assert first_token[members].sum().abs() < 1e-5


def test_a_turn_with_reward_zero_is_still_a_turn():
    mask = torch.tensor([[1, 0, 1, 0, 1]] * 2)
    middle_zero = torch.tensor([[1.0, 0, 0.0, 0, 1.0], [0.0, 0, 1.0, 0, 0.0]])
    result, _ = mt_grpo(middle_zero, mask, ["q", "q"], scale="none")
    # Turn 1: .5, -.5. Turn 2: 0, 1 -> -.5, .5. Outcome .5, -.5. A = (.5, 0, .5).
    assert result[0, [0, 2, 4]].tolist() == [0.5, 0.0, 0.5]


def test_rows_that_end_in_an_observation():
    result, _ = mt_grpo(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[1, 0], [1, 0]]), ["q", "q"])
    assert result[:, 0].tolist() == pytest.approx([0.7071068, -0.7071068], abs=1e-5)


@pytest.mark.imports_verl
class TestAgainstVerl:
    @pytest.fixture(autouse=True)
    def verl_grpo(self):
        self.grpo = pytest.importorskip("verl.trainer.ppo.core_algos").compute_grpo_outcome_advantage

    @pytest.mark.parametrize("scale", ["std", "none"])
    def test_without_turn_rewards_it_is_verls_grpo(self, scale):
        import numpy as np

        for seed in range(20):
            batch = multi_turn_batch(seed, rows=9, groups=4)  # one group of three, three of two
            batch.index[0] = "alone"
            last = torch.stack([mask.nonzero().max() for mask in batch.mask])
            rewards = torch.zeros_like(batch.rewards)
            rewards[torch.arange(9), last] = torch.randn(9, generator=torch.Generator().manual_seed(seed))
            expected, _ = self.grpo(
                rewards,
                batch.mask,
                np.array(batch.index, dtype=object),
                norm_adv_by_std_in_grpo=scale == "std",
            )
            result, _ = mt_grpo(rewards, batch.mask, batch.index, scale=scale)
            assert torch.allclose(result, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"missing_turn": "skip"}, "missing_turn is 'skip'"), ({"scale": "max"}, "scale is 'max'")],
)
def test_bad_settings(change, message):
    with pytest.raises(CreditInputError, match=message):
        mt_grpo(REWARDS, MASK, ["q"] * 3, **change)
