"""Compare GAE over turns, and over turns and tokens, with numbers by hand, naive loops, and verl's ``gae``."""

from __future__ import annotations

import pytest
import torch

from tests import oracles
from tests.credit.batches import Batch, insert_columns, multi_turn_batch, random_batch
from verl_mtgrpo.credit import bilevel_gae, segment_turns, turn_gae
from verl_mtgrpo.errors import CreditInputError

both = pytest.mark.parametrize("estimator", [turn_gae, bilevel_gae])

# Two turns of two tokens, two observation tokens between them; a search paid 0.5, an answer paid 1.
#          b1   e1   observation  b2   e2   padding
MASK = [[1, 1, 0, 0, 1, 1, 0]]
REWARDS = [[0.0, 0.5, 0.0, 0.0, 0.0, 1.0, 0.0]]
VALUES = [[0.8, 0.9, 5.0, -7.0, 0.6, 0.7, 3.0]]


def by_hand(estimator, **settings) -> tuple[list[float], list[float]]:
    mask, rewards, values = torch.tensor(MASK), torch.tensor(REWARDS), torch.tensor(VALUES)
    advantages, returns = estimator(rewards, mask, ["q"], values, whiten=False, **settings)
    return advantages[0].tolist(), returns[0].tolist()


def test_turn_gae_by_hand():
    # V_1 = .8, V_2 = .6 (first tokens). γ = .9, λ = .5.
    # δ_2 = 1 - .6 = .4;  δ_1 = .5 + .9 · .6 - .8 = .24.  A_2 = .4;  A_1 = .24 + .45 · .4 = .42.
    # Targets .42 + .8 = 1.22 and .4 + .6 = 1, the same at both tokens of a turn.
    advantages, returns = by_hand(turn_gae, discount=0.9, lam=0.5)
    assert advantages == pytest.approx([0.42, 0.42, 0, 0, 0.4, 0.4, 0])
    assert returns == pytest.approx([1.22, 1.22, 0, 0, 1.0, 1.0, 0])


def test_bilevel_gae_by_hand():
    # Turn ends: V = .9 and .7. γ_H = .9, λ = .5, γ = .8.
    # δ_2 = 1 - .7 = .3;  δ_1 = .5 + .9 · .7 - .9 = .23.  Â_2 = .3;  Â_1 = .23 + .45 · .3 = .365.
    # First tokens: turn 1: .8 · .9 - .8 + .4 · .365 = -.08 + .146 = .066.  Turn 2: .8 · .7 - .6 + .4 · .3 = .08.
    advantages, returns = by_hand(bilevel_gae, discount=0.9, token_discount=0.8, lam=0.5)
    assert advantages == pytest.approx([0.066, 0.365, 0, 0, 0.08, 0.3, 0])
    assert returns == pytest.approx([0.866, 1.265, 0, 0, 0.68, 1.0, 0])


@pytest.mark.imports_verl
def test_verls_token_gae_on_the_same_example_by_hand():
    # What `mt_ppo` computes. γ = λ = 1: return-to-go minus the token's value; observation tokens are skipped.
    # 1.5 - .8 = .7, 1.5 - .9 = .6 | 1 - .6 = .4, 1 - .7 = .3. Whitened: mean .5, std √((.04 + .01 + .01 + .04) / 3).
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    advantages, returns = core_algos.compute_gae_advantage_return(
        torch.tensor(REWARDS), torch.tensor(VALUES), torch.tensor(MASK), 1.0, 1.0
    )
    generated = torch.tensor(MASK[0]) == 1
    scale = (0.1 / 3) ** 0.5
    assert advantages[0, generated].tolist() == pytest.approx([x / scale for x in (0.2, 0.1, -0.1, -0.2)], abs=1e-4)
    assert returns[0, generated].tolist() == pytest.approx([1.5, 1.5, 1.0, 1.0])


def test_a_reward_before_the_last_token_is_paid_once_and_to_those_before_it():
    # Turn 1 pays .3 at its first token and .5 at its last, turn 2 .2 and 1; no values, nothing discounted.
    rewards = torch.tensor([[0.3, 0.5, 0.0, 0.0, 0.2, 1.0, 0.0]])
    zero = torch.zeros(1, 7)
    token, _ = bilevel_gae(rewards, torch.tensor(MASK), ["q"], zero, whiten=False)
    assert token[0].tolist() == pytest.approx([2.0, 1.7, 0, 0, 1.2, 1.0, 0])
    turn, _ = turn_gae(rewards, torch.tensor(MASK), ["q"], zero, whiten=False)
    assert turn[0].tolist() == pytest.approx([2.0, 2.0, 0, 0, 1.2, 1.2, 0])


def with_values(batch: Batch, seed: int) -> tuple[Batch, torch.Tensor]:
    """Values also at observations and padding, where they must not matter."""
    return batch, torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(seed))


SETTINGS = [(1.0, 1.0, 1.0), (0.9, 1.0, 0.95), (0.95, 0.99, 0.5), (0.5, 0.3, 0.0), (0.0, 1.0, 1.0)]


@pytest.mark.parametrize(("gamma_turn", "gamma_token", "lam"), SETTINGS)
def test_equals_the_naive_loop(gamma_turn, gamma_token, lam):
    for seed in range(60):
        batch, values = with_values(random_batch(seed), seed)
        lists = batch.rewards.double().tolist(), batch.mask.tolist(), values.double().tolist()
        found = (
            turn_gae(batch.rewards, batch.mask, batch.index, values, discount=gamma_turn, lam=lam, whiten=False),
            bilevel_gae(
                batch.rewards,
                batch.mask,
                batch.index,
                values,
                discount=gamma_turn,
                token_discount=gamma_token,
                lam=lam,
                whiten=False,
            ),
        )
        expected = (
            oracles.turn_gae(*lists, gamma=gamma_turn, lam=lam),
            oracles.bilevel_gae(*lists, gamma_turn=gamma_turn, gamma_token=gamma_token, lam=lam),
        )
        for results, loops in zip(found, expected, strict=True):
            for result, loop in zip(results, loops, strict=True):
                assert torch.allclose(result, torch.tensor(loop), atol=1e-4), f"seed {seed}"


def test_long_turns_equal_the_naive_loop():
    mask = torch.ones(2, 333, dtype=torch.int64)
    mask[0, 100:117] = 0
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 2, 333, generator=generator)
    result = bilevel_gae(rewards, mask, ["q"] * 2, values, discount=0.95, token_discount=0.99, lam=0.97, whiten=False)
    lists = (rewards * mask).double().tolist(), mask.tolist(), values.double().tolist()
    expected = oracles.bilevel_gae(*lists, gamma_turn=0.95, gamma_token=0.99, lam=0.97)
    for ours, loop in zip(result, expected, strict=True):
        assert torch.allclose(ours, torch.tensor(loop), atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_without_values_and_discount_turn_gae_is_the_return_to_go(seed):
    batch = multi_turn_batch(seed)
    advantages, returns = turn_gae(
        batch.rewards, batch.mask, batch.index, torch.zeros_like(batch.rewards), whiten=False
    )
    for row, (mask, rewards) in enumerate(zip(batch.mask.tolist(), batch.rewards.tolist(), strict=True)):
        for turn in oracles.runs_of_ones(mask):
            to_go = sum(rewards[turn[0] :])
            assert advantages[row, turn].tolist() == pytest.approx([to_go] * len(turn), abs=1e-5)
            assert returns[row, turn[0]].item() == pytest.approx(to_go, abs=1e-5)


@pytest.mark.imports_verl
class TestAgainstVerl:
    """verl's own ``gae``, its whitening included."""

    @pytest.fixture(autouse=True)
    def verl(self):
        core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
        self.gae = core_algos.compute_gae_advantage_return

    def one_token_turns(self, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        turns = torch.randint(1, 5, (9, 1), generator=generator)
        mask = ((torch.arange(9) % 2 == 0) & (torch.arange(9) // 2 < turns)).long()
        rewards, values = torch.randn(2, 9, 9, generator=generator)
        return rewards * mask, mask, values

    @both
    @pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.95), (0.5, 0.0)])
    @pytest.mark.parametrize("seed", range(5))
    def test_one_token_turns(self, estimator, gamma, lam, seed):
        rewards, mask, values = self.one_token_turns(seed)
        expected, returns = self.gae(rewards, values, mask, gamma, lam)
        found = estimator(rewards, mask, ["q"] * 9, values, discount=gamma, lam=lam)
        assert torch.allclose(found[0], expected * mask, atol=1e-5)
        assert torch.allclose(found[1], returns * mask, atol=1e-5)

    @pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.95), (0.5, 0.0)])
    def test_one_turn_of_any_length_bilevel(self, gamma, lam):
        generator = torch.Generator().manual_seed(0)
        mask = (torch.arange(8) < torch.randint(1, 9, (9, 1), generator=generator)).long()
        rewards, values = torch.randn(2, 9, 8, generator=generator)
        expected, returns = self.gae(rewards * mask, values, mask, gamma, lam)
        # γ_H has nothing to discount.
        found = bilevel_gae(rewards * mask, mask, ["q"] * 9, values, discount=0.3, token_discount=gamma, lam=lam)
        assert torch.allclose(found[0], expected * mask, atol=1e-5)
        assert torch.allclose(found[1], returns * mask, atol=1e-5)

    def test_bilevel_without_discount_at_lambda_one(self):
        batch, values = with_values(multi_turn_batch(3), 3)
        expected, returns = self.gae(batch.rewards, values, batch.mask, 1.0, 1.0)
        found = bilevel_gae(batch.rewards, batch.mask, batch.index, values)
        assert torch.allclose(found[0], expected * batch.mask, atol=1e-5)
        assert torch.allclose(found[1], returns * batch.mask, atol=1e-5)

    @pytest.mark.parametrize("seed", range(3))
    def test_verls_critic_loss_pulls_every_token_of_a_turn_to_the_turns_return(self, seed):
        from verl.trainer.ppo.core_algos import compute_value_loss

        batch, values = with_values(multi_turn_batch(seed), seed)
        advantages, returns = turn_gae(batch.rewards, batch.mask, batch.index, values, lam=0.9, whiten=False)
        predicted = values.clone().requires_grad_()
        loss, _ = compute_value_loss(predicted, returns, values, batch.mask, cliprange_value=0.5)
        (gradient,) = torch.autograd.grad(loss, predicted)
        for row, mask in enumerate(batch.mask.tolist()):
            for turn in oracles.runs_of_ones(mask):
                target = advantages[row, turn[0]] + values[row, turn[0]]
                expected = (values[row, turn] - target) / batch.mask.sum()  # of 1/2 (V - return)², token-mean
                assert torch.allclose(gradient[row, turn], expected, atol=1e-6)
        assert (gradient[batch.mask == 0] == 0).all()


@both
def test_a_turn_that_earned_nothing_is_still_a_turn(estimator):
    # Three one-token turns, the middle one paid 0. δ: 1 + V_2 - V_1, 0 + V_3 - V_2, 2 - V_3, values .1 .2 .4; λ = 0.
    mask, rewards = torch.tensor([[1, 0, 1, 0, 1]]), torch.tensor([[1.0, 0, 0, 0, 2.0]])
    values = torch.tensor([[0.1, 9, 0.2, 9, 0.4]])
    advantages, _ = estimator(rewards, mask, ["q"], values, lam=0.0, whiten=False)
    assert advantages[0].tolist() == pytest.approx([1.1, 0, 0.2, 0, 1.6])


@both
def test_a_constant_critic_and_no_rewards(estimator):
    batch = multi_turn_batch(1)
    nothing = torch.zeros_like(batch.rewards)
    for result in estimator(nothing, batch.mask, batch.index, nothing):
        assert (result == 0).all()
    # V = 1 everywhere and nothing paid, λ = 1: every token is 1 worse than expected; equal advantages whiten to 0.
    raw, returns = estimator(nothing, batch.mask, batch.index, nothing + 1, whiten=False)
    assert torch.allclose(raw, -batch.mask.float(), atol=1e-6)
    assert (estimator(nothing, batch.mask, batch.index, nothing + 1)[0] == 0).all()
    assert torch.allclose(returns, torch.zeros_like(returns), atol=1e-6)


@both
@pytest.mark.parametrize("seed", range(5))
def test_observations_and_padding_change_nothing(estimator, seed):
    batch, values = with_values(multi_turn_batch(seed), seed)
    free = [t for t in range(1, batch.mask.shape[1]) if not (batch.mask[:, t - 1] & batch.mask[:, t]).any()]
    at = [*free, batch.mask.shape[1], batch.mask.shape[1]]
    wide = insert_columns(batch.mask, at)
    inserted = (
        insert_columns(batch.rewards, at, fill=7.0),
        wide,
        batch.index,
        insert_columns(values, at, fill=float("nan")),
    )
    for ours, theirs in zip(
        estimator(*inserted, discount=0.9, lam=0.9),
        estimator(batch.rewards, batch.mask, batch.index, values, discount=0.9, lam=0.9),
        strict=True,
    ):
        assert torch.allclose(ours[wide == 1], theirs[batch.mask == 1], atol=1e-6)
        assert (ours[wide == 0] == 0).all()


@pytest.mark.parametrize(("estimator", "over"), [(turn_gae, "turns"), (bilevel_gae, "tokens")])
def test_whitening_is_over_actions(estimator, over):
    batch, values = with_values(multi_turn_batch(2), 2)
    raw, _ = estimator(batch.rewards, batch.mask, batch.index, values, lam=0.8, whiten=False)
    white, _ = estimator(batch.rewards, batch.mask, batch.index, values, lam=0.8)
    actions = batch.mask == 1 if over == "tokens" else first_tokens(batch.mask)
    of_actions = raw[actions].double()
    expected = (raw.double() - of_actions.mean()) / of_actions.std() * (batch.mask == 1)
    assert torch.allclose(white.double(), expected, atol=1e-4)


def test_the_value_of_a_later_token_of_the_turn_does_not_matter_to_turn_gae():
    batch, values = with_values(multi_turn_batch(4), 4)
    first = first_tokens(batch.mask)
    other = values.where(first, values + 3.0)
    before = turn_gae(batch.rewards, batch.mask, batch.index, values, lam=0.9)[0]
    assert torch.equal(turn_gae(batch.rewards, batch.mask, batch.index, other, lam=0.9)[0], before)
    assert not torch.allclose(bilevel_gae(batch.rewards, batch.mask, batch.index, other, lam=0.9)[0], before, atol=0.1)


@both
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(1, 6)}, r"values has shape \(1, 6\) and response_mask \(1, 7\)"),
        (
            {"values": torch.tensor(VALUES) * float("nan")},
            "NaN, infinite or beyond 1e.12 at 4 generated tokens: the critic has diverged",
        ),
        ({"lam": 1.5}, "lam is 1.5, expected a number from 0 to 1"),
        ({"lam": float("nan")}, "lam is nan"),
        ({"discount": -1.0}, "discount is -1.0"),
    ],
)
def test_bad_input(estimator, change, message):
    arguments = {"values": torch.tensor(VALUES), **change}
    with pytest.raises(CreditInputError, match=message):
        estimator(torch.tensor(REWARDS), torch.tensor(MASK), ["q"], **arguments)


def first_tokens(mask: torch.Tensor) -> torch.Tensor:
    first = torch.zeros_like(mask, dtype=torch.bool)
    for row, values in enumerate(mask.tolist()):
        for turn in oracles.runs_of_ones(values):
            first[row, turn[0]] = True
    return first


def test_first_and_last_tokens_of_turns():
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]])
    turns = segment_turns(mask)
    position = torch.arange(12).view(3, 4)
    assert turns.at_first(position).tolist() == [[0, 3], [0, 0], [9, 0]]
    assert turns.at_last(position).tolist() == [[1, 3], [0, 0], [11, 0]]
