"""Every estimator: against its naive loop, and what holds for all of them."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from tests import oracles
from tests.credit.batches import Batch, estimate, insert_columns, multi_turn_batch, random_batch
from verl_mtgrpo.credit import ESTIMATORS, gtpo, mt_grpo, mt_grpo_v1, turn_reinforce_pp, turn_rloo
from verl_mtgrpo.errors import CreditInputError

every = pytest.mark.parametrize("name", ESTIMATORS)
# Their baseline is other rollouts of the prompt.
grouped = pytest.mark.parametrize("name", ["mt_grpo", "mt_grpo_v1", "turn_rloo", "gtpo"])


def advantages(name: str, batch: Batch, **settings) -> torch.Tensor:
    return estimate(name, batch.rewards, batch.mask, batch.index, **settings)[0]


@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("name", ["mt_grpo_v1", "turn_rloo", "gtpo", "turn_reinforce_pp"])
def test_equals_the_naive_loop(name, block):
    oracle = getattr(oracles, name)
    for seed in range(50 * block, 50 * block + 50):
        batch = random_batch(seed)
        number = (1.0, 0.9, 0.5, 0.0)[seed % 4]
        ours, theirs = ("turn_coef", "c") if name == "mt_grpo_v1" else ("discount", "gamma")
        expected = oracle(batch.rewards.double().tolist(), batch.mask.tolist(), batch.index, **{theirs: number})
        result = advantages(name, batch, **{ours: number})
        assert torch.allclose(result, torch.tensor(expected), atol=3e-4, rtol=3e-4), f"seed {seed}"


@every
@pytest.mark.parametrize("seed", range(5))
def test_permuting_rows_permutes_the_output(name, seed):
    batch = multi_turn_batch(seed)
    order = torch.randperm(len(batch.mask), generator=torch.Generator().manual_seed(seed))
    shuffled = Batch(batch.rewards[order], batch.mask[order], [batch.index[i] for i in order])
    assert torch.allclose(advantages(name, shuffled), advantages(name, batch)[order], atol=1e-5)


@every
@pytest.mark.parametrize("seed", range(5))
def test_observation_tokens_and_padding_change_nothing(name, seed):
    batch = multi_turn_batch(seed)
    # A column of observations may only be put where it cuts no turn in two.
    free = [t for t in range(1, batch.mask.shape[1]) if not (batch.mask[:, t - 1] & batch.mask[:, t]).any()]
    at = [*free, batch.mask.shape[1], batch.mask.shape[1]]
    wide = Batch(insert_columns(batch.rewards, at, fill=7.0), insert_columns(batch.mask, at), batch.index)
    result, wanted = advantages(name, wide)[wide.mask == 1], advantages(name, batch)[batch.mask == 1]
    # arpo adds up a row as verl's grpo does, and torch's sum of a longer row has another order.
    assert torch.allclose(result, wanted, atol=1e-5) if name == "arpo" else torch.equal(result, wanted)


@every
@pytest.mark.parametrize("seed", range(5))
def test_masked_positions_are_exactly_zero(name, seed):
    batch = random_batch(seed)
    for result in estimate(name, batch.rewards, batch.mask, batch.index):
        assert (result[batch.mask == 0] == 0).all()
        assert result.shape == batch.mask.shape


@every
def test_rows_without_generated_tokens_enter_no_statistic(name):
    batch = multi_turn_batch(0, rows=6, groups=2)
    empty = torch.zeros(1, batch.mask.shape[1])
    more = Batch(
        torch.cat([batch.rewards, empty + 9.0]), torch.cat([batch.mask, empty.long()]), [*batch.index, batch.index[0]]
    )
    assert torch.equal(advantages(name, more)[:-1], advantages(name, batch))
    assert (advantages(name, more)[-1] == 0).all()


@grouped
def test_groups_do_not_see_each_other(name):
    batch = multi_turn_batch(5, rows=10, groups=3)  # groups of 4, 3 and 3
    together = advantages(name, batch)
    for label in set(batch.index):
        rows = [i for i, other in enumerate(batch.index) if other == label]
        alone = Batch(batch.rewards[rows], batch.mask[rows], [label] * len(rows))
        assert torch.allclose(advantages(name, alone), together[rows], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "bilevel_gae"])  # that compares tokens
def test_two_identical_rollouts_of_one_turn_have_advantage_exactly_zero(name):
    batch = Batch(torch.tensor([[0.1, 0.0, 1 / 3]] * 2), torch.tensor([[1, 1, 1]] * 2), ["q", "q"])
    assert (advantages(name, batch) == 0).all()


@pytest.mark.parametrize("name", ["mt_grpo", "mt_grpo_v1", "turn_rloo"])
def test_two_identical_rollouts_have_advantage_exactly_zero(name):
    # Not gtpo and turn_reinforce_pp: they compare turns with each other.
    batch = Batch(torch.tensor([[0.1, 0.0, 1 / 3]] * 2), torch.tensor([[1, 0, 1]] * 2), ["q", "q"])
    assert (advantages(name, batch) == 0).all()


@every
def test_all_zero_rewards_give_zero(name):
    batch = multi_turn_batch(1)
    assert (advantages(name, Batch(torch.zeros_like(batch.rewards), batch.mask, batch.index)) == 0).all()


@every
def test_rewards_of_very_different_size_stay_finite(name):
    mask = torch.tensor([[1, 0, 1]] * 3)
    batch = Batch(torch.tensor([[1e8, 0, 1e-8], [0, 0, 1e-8], [1e-8, 0, 0]]), mask, ["q"] * 3)
    assert torch.isfinite(advantages(name, batch)).all()


def test_a_tiny_difference_is_not_lost_beside_a_huge_reward():
    mask = torch.tensor([[1, 0, 1]] * 2)
    result, _ = turn_rloo(torch.tensor([[1e8, 0, 3e-8], [1e8, 0, 1e-8]]), mask, ["q", "q"])
    assert result[:, 2].tolist() == pytest.approx([2e-8, -2e-8])


@every
def test_a_batch_of_one_row(name):
    batch = Batch(torch.tensor([[0.5, 0.0, 2.0, 0.0]]), torch.tensor([[1, 0, 1, 0]]), ["q"])
    result = advantages(name, batch)
    assert torch.isfinite(result).all()
    if name == "turn_rloo":
        assert result.tolist() == [[2.5, 0.0, 2.0, 0.0]]  # alone in its group: raw, as verl's rloo


@every
@pytest.mark.parametrize(
    "index",
    [["a", "a", "b"], [7, 7, 3], np.array(["a", "a", "b"], dtype=object), np.array([7, 7, 3]), torch.tensor([7, 7, 3])],
    ids=["str", "int", "object", "int64", "tensor"],
)
def test_labels_of_any_kind(name, index):
    rewards = torch.tensor([[0.5, 0.0, 2.0], [0.1, 0.0, 1.0], [3.0, 0.0, 1.0]])
    mask = torch.tensor([[1, 0, 1]] * 3)
    expected, _ = estimate(name, rewards, mask, ["x", "x", "y"])
    assert torch.equal(estimate(name, rewards, mask, index)[0], expected)


@every
def test_bfloat16_rewards_give_float32_advantages(name):
    batch = multi_turn_batch(2)
    coarse = Batch(batch.rewards.bfloat16(), batch.mask, batch.index)
    fine = Batch(coarse.rewards.float(), batch.mask, batch.index)
    assert advantages(name, coarse).dtype == torch.float32
    assert torch.equal(advantages(name, coarse), advantages(name, fine))


@every
def test_inputs_are_not_modified(name):
    batch = multi_turn_batch(2)
    before = batch.rewards.clone(), batch.mask.clone()
    advantages(name, batch).fill_(9.0)  # nor does the output share their memory
    assert torch.equal(batch.rewards, before[0])
    assert torch.equal(batch.mask, before[1])


@every
def test_no_rows_and_no_tokens(name):
    assert estimate(name, torch.zeros(0, 4), torch.zeros(0, 4), [])[0].shape == (0, 4)
    assert estimate(name, torch.zeros(2, 0), torch.zeros(2, 0), ["q", "q"])[0].shape == (2, 0)
    assert (estimate(name, torch.ones(2, 3), torch.zeros(2, 3), ["q", "q"])[0] == 0).all()


@pytest.mark.gpu
@every
def test_cuda_agrees_with_cpu_and_with_itself(name):
    batch = multi_turn_batch(4)
    on_gpu = [estimate(name, batch.rewards.cuda(), batch.mask.cuda(), batch.index)[0] for _ in range(3)]
    assert all(torch.equal(on_gpu[0], again) for again in on_gpu)
    assert torch.allclose(on_gpu[0].cpu(), advantages(name, batch), atol=1e-5)


# ---- worked by hand: three rollouts of one prompt.
# 1: turn rewards .7 | 1 (two turns).  2: .2 | 0.  3: no tool call, .5.
MASK = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 1], [1, 0, 0, 0]])
REWARDS = torch.tensor([[0, 0.7, 0, 1.0], [0, 0.2, 0, 0.0], [0.5, 0, 0, 0]])


def test_mt_grpo_v1_by_hand():
    # R^T = .7 .2 0: mean .3, std .360555. R^O = 1 0 .5: mean .5, std .5. Total 1.7 .2 .5: mean .8, deviations
    # .9 -.6 -.3, std sqrt((.81 + .36 + .09) / 2) = .793725.
    # 1: turn 1  1 + .4/.360555 = 2.109400, turn 2  1.  2: -1 - .1/.360555 = -1.277350, -1.  3: -.3/.793725 = -.377964.
    result, _ = mt_grpo_v1(REWARDS, MASK, ["q"] * 3)
    assert result[0].tolist() == pytest.approx([2.1094, 2.1094, 0, 1.0], abs=1e-3)
    assert result[1].tolist() == pytest.approx([-1.27735, -1.27735, 0, -1.0], abs=1e-3)
    assert result[2].tolist() == pytest.approx([-0.377964, 0, 0, 0], abs=1e-3)


def test_mt_grpo_v1_credits_only_the_first_of_three_turns():
    # R^T = .4 + .6 = 1 and 0: norm .7071, -.7071. Outcome 1, 0: the same. A_1 = 1.4142, A_2 = A_3 = .7071.
    mask = torch.tensor([[1, 0, 1, 0, 1]] * 2)
    rewards = torch.tensor([[0.4, 0, 0.6, 0, 1.0], [0.0, 0, 0.0, 0, 0.0]])
    result, _ = mt_grpo_v1(rewards, mask, ["q", "q"])
    assert result[0, ::2].tolist() == pytest.approx([1.41421, 0.70711, 0.70711], abs=1e-3)


def test_turn_rloo_by_hand():
    # Returns: 1: 1.7, 1. 2: .2, 0. 3: .5.
    # Turn 1: 1.7 - (.2 + .5)/2 = 1.35;  .2 - (1.7 + .5)/2 = -.9;  .5 - (1.7 + .2)/2 = -.45. Turn 2: 1 - 0; 0 - 1.
    result, _ = turn_rloo(REWARDS, MASK, ["q"] * 3)
    assert torch.allclose(result, torch.tensor([[1.35, 1.35, 0, 1], [-0.9, -0.9, 0, -1], [-0.45, 0, 0, 0]]))


def test_turn_rloo_alone_at_its_turn_and_with_discount():
    # 1 is the only one with a second turn: its baseline there is the mean of the others' last rewards (.5 + .1)/2 = .3,
    # so A_2 = 1 - .3 = .7. Turn 1, γ = .5: G = .7 + .5 = 1.2, others .5, .1: 1.2 - .3 = .9.
    mask = torch.tensor([[1, 0, 1], [1, 0, 0], [1, 0, 0]])
    rewards = torch.tensor([[0.7, 0, 1.0], [0.5, 0, 0], [0.1, 0, 0]])
    result, _ = turn_rloo(rewards, mask, ["q"] * 3, discount=0.5)
    assert result[0].tolist() == pytest.approx([0.9, 0, 0.7])


def test_turn_rloo_scaled_by_hand():
    # Turn 1: returns 1.7 .2 .5, std .793725; turn 2: 1, 0, std .707107. A / std.
    result, _ = turn_rloo(REWARDS, MASK, ["q"] * 3, scale="std")
    assert result[0, [1, 3]].tolist() == pytest.approx([1.35 / 0.793725, 1 / 0.707107], rel=1e-4)


def test_gtpo_by_hand():
    # Returns of all five turns: 1.7 1 .2 0 .5: mean .68, deviations 1.02 .32 -.48 -.68 -.18,
    # squares 1.0404 + .1024 + .2304 + .4624 + .0324 = 1.868, std sqrt(1.868 / 4) = .683374.
    result, _ = gtpo(REWARDS, MASK, ["q"] * 3)
    assert result[0].tolist() == pytest.approx([1.492594, 1.492594, 0, 0.468265], abs=1e-4)
    assert result[2, 0].item() == pytest.approx(-0.263399, abs=1e-4)


def test_turn_reinforce_pp_by_hand():
    # Tokens: 1.7 1.7 1 | .2 .2 0 | .5: mean 5.3/7 = .757143, squared deviations
    # 2(.942857²) + .242857² + 2(.557143²) + .757143² + .257143² = 1.777959 + .058980 + .620816 + .573265 + .066122
    # = 3.097143, over 6 = .516190, root .718464. Token of turn 1 of rollout 1: .942857/.718464 = 1.312323.
    result, returns = turn_reinforce_pp(REWARDS, MASK, ["q"] * 3)
    assert result[0, 0].item() == pytest.approx(1.312323, abs=1e-4)
    assert torch.allclose(returns, torch.tensor([[1.7, 1.7, 0, 1], [0.2, 0.2, 0, 0], [0.5, 0, 0, 0]]))


def test_with_two_turns_everywhere_mt_grpo_is_v1_up_to_epsilon():
    rewards, mask = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[1, 1, 0, 1]] * 6)
    index = ["a", "a", "a", "b", "b", "b"]
    v1, _ = mt_grpo_v1(rewards * mask, mask, index, turn_coef=0.7)
    assert torch.allclose(mt_grpo(rewards * mask, mask, index, turn_coef=0.7)[0], v1, atol=1e-3)


@pytest.mark.parametrize("name", ["mt_grpo", "mt_grpo_v1", "turn_rloo"])
def test_a_constant_paid_to_all_at_one_turn_changes_nothing(name):
    mask = torch.tensor([[1, 0, 1]] * 4)
    rewards = torch.tensor([[0.5, 0, 1.0], [0.1, 0, 0.0], [0.9, 0, 0.5], [0.2, 0, 0.3]])
    before = advantages(name, Batch(rewards, mask, ["q"] * 4))
    for turn in (0, 2):
        paid = rewards.clone()
        paid[:, turn] += 5.0
        assert torch.allclose(advantages(name, Batch(paid, mask, ["q"] * 4)), before, atol=1e-4)


def test_what_was_paid_before_a_turn_does_not_change_turn_rloos_credit_for_it():
    batch = multi_turn_batch(3)
    first = batch.mask.cumprod(dim=1).bool()  # tokens of turn 1, rows start with one
    paid = batch.rewards + 3.0 * torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0)) * first
    several = torch.tensor([len(oracles.runs_of_ones(row.tolist())) > 1 for row in batch.mask])[:, None]
    paid = paid.where(several, batch.rewards)  # for the others turn 1 is the last
    later = (batch.mask == 1) & ~first
    before, after = advantages("turn_rloo", batch), advantages("turn_rloo", Batch(paid, batch.mask, batch.index))
    assert torch.allclose(after[later], before[later], atol=1e-5)
    assert not torch.allclose(after[first], before[first], atol=0.1)


@pytest.mark.imports_verl
class TestAgainstVerl:
    """One turn and its reward on the last token: verl's own estimators."""

    @pytest.fixture(autouse=True)
    def verl(self):
        self.verl = pytest.importorskip("verl.trainer.ppo.core_algos")

    def batch(self, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        length = torch.randint(1, 7, (9, 1), generator=generator)
        mask = (torch.arange(8) < length).long()
        rewards = torch.randn(9, 8, generator=generator) * (torch.arange(8) == length - 1)
        return Batch(rewards, mask, np.array(["alone", *"aabbbbcc"], dtype=object))

    @pytest.mark.parametrize(
        ("name", "function", "epsilon"),
        [
            ("mt_grpo", "compute_grpo_outcome_advantage", 1e-6),
            ("mt_grpo_v1", "compute_grpo_outcome_advantage", 1e-4),
            ("gtpo", "compute_grpo_outcome_advantage", 1e-6),
            ("turn_rloo", "compute_rloo_outcome_advantage", 1e-6),
        ],
    )
    def test_one_turn(self, name, function, epsilon):
        for seed in range(20):
            batch = self.batch(seed)
            expected, _ = getattr(self.verl, function)(batch.rewards, batch.mask, batch.index, epsilon=epsilon)
            assert torch.allclose(advantages(name, batch), expected, atol=1e-4, rtol=1e-4)

    def test_one_turn_reinforce_plus_plus(self):
        batch = self.batch(0)
        config = type("Config", (), {"gamma": 1.0})
        expected, returns = self.verl.compute_reinforce_plus_plus_outcome_advantage(
            batch.rewards, batch.mask, config=config
        )
        result = turn_reinforce_pp(batch.rewards, batch.mask, batch.index)
        assert torch.allclose(result[0], expected, atol=1e-5)
        assert torch.allclose(result[1], returns, atol=1e-6)


BAD_INPUT = [
    ({"token_level_rewards": torch.zeros(3, 5)}, r"shape \(3, 5\) and response_mask \(3, 4\)"),
    ({"token_level_rewards": REWARDS * float("nan")}, r"NaN or infinite in 3 of 3 rows \(0, 1, 2\)"),
    ({"token_level_rewards": REWARDS + torch.tensor([[0], [torch.inf], [0]])}, r"in 1 of 3 rows \(1\)"),
    ({"index": ["q"]}, "1 group labels for 3 rollouts"),
    ({"discount": -0.1}, "discount is -0.1, expected a finite number >= 0"),
    ({"epsilon": float("inf")}, "epsilon is inf"),
    ({"response_mask": MASK * 2}, "other than 0 and 1"),
    ({"response_mask": MASK * 0.5}, "other than 0 and 1"),
]


def takes(name: str, change: dict) -> bool:
    return {*change} <= {*inspect.signature(ESTIMATORS[name].function).parameters}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [(name, change, message) for name in ESTIMATORS for change, message in BAD_INPUT if takes(name, change)],
)
def test_bad_input(name, change, message):
    with pytest.raises(CreditInputError, match=message):
        estimate(name, **{"token_level_rewards": REWARDS, "response_mask": MASK, "index": ["q"] * 3, **change})


@pytest.mark.parametrize("name", ESTIMATORS)
def test_rewards_that_float32_cannot_hold_statistics_of_are_refused(name):
    with pytest.raises(CreditInputError, match=r"more than 1e\+12 in 1 of 2 rows \(1\) .*3e\+38.*scale them"):
        estimate(name, torch.tensor([[1.0, 0, 1], [3e38, 0, 3e38]]), torch.tensor([[1, 0, 1]] * 2), ["q"] * 2)
