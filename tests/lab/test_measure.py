"""What the laboratory finds: known answers first, then the claims that the documentation makes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from verl_mtgrpo.credit import bilevel_gae, mt_grpo, turn_gae, turn_rloo, turn_td
from verl_mtgrpo.lab import PROCESSES, Process, Rollouts, measure
from verl_mtgrpo.lab.measure import group_gradients
from verl_mtgrpo.lab.processes import STOPPING, TWO_TURNS


def credit(function, **settings):
    return lambda r: function(r.rewards, r.mask, r.index, **settings)[0]


def critic(function, **settings):
    """The estimator with the exact values, and not whitened: whitening changes the length of the gradient."""
    return lambda r: function(r.rewards, r.mask, r.index, r.values, whiten=False, **settings)[0]


def return_to_go(rollouts: Rollouts) -> torch.Tensor:
    """Plain REINFORCE: unbiased without any baseline."""
    return rollouts.rewards.flip(1).cumsum(1).flip(1) * rollouts.mask


def test_group_gradients_by_a_loop():
    rollouts = STOPPING.sample(5, 3, torch.Generator().manual_seed(0))
    advantages = torch.randn(rollouts.rewards.shape, generator=torch.Generator().manual_seed(1))
    policy = STOPPING.policy
    expected = torch.zeros(5, *policy.shape, dtype=torch.float64)
    for i in range(15):
        for k, state in enumerate(rollouts.state_BK[i].tolist()):
            if state >= 0:
                advantage = advantages[i, rollouts.start_BK[i, k]].double() / 3
                expected[i // 3, state] -= advantage * policy[state]
                expected[i // 3, state, rollouts.action_BK[i, k]] += advantage
    assert torch.allclose(group_gradients(STOPPING, rollouts, advantages), expected.flatten(1))


def test_an_estimator_that_is_right_passes_and_one_that_is_wrong_does_not():
    found = measure(
        STOPPING,
        {
            "reinforce": return_to_go,
            "twice": lambda r: 2 * return_to_go(r),
            "all rewards to the first turn": lambda r: return_to_go(r) * (torch.arange(r.mask.shape[1]) == 0),
        },
        size=2,
        groups=20_000,
    )
    assert not found["reinforce"].biased
    assert not found["reinforce"].direction_biased
    assert found["twice"].biased
    assert found["twice"].scale == pytest.approx(2.0, abs=0.1)
    assert not found["twice"].direction_biased
    assert found["all rewards to the first turn"].direction_biased


def test_two_estimators_that_differ_by_a_factor_have_the_same_noise():
    found = measure(TWO_TURNS, {"a": return_to_go, "b": lambda r: 3 * return_to_go(r)}, size=2, groups=1000)
    assert found["b"].noise == pytest.approx(found["a"].noise)
    assert found["b"].variance == pytest.approx(9 * found["a"].variance)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_turn_rloo_has_no_bias(process: Process):
    found = measure(process, {"turn_rloo": credit(turn_rloo)}, size=2, groups=200_000)["turn_rloo"]
    assert not found.biased, found
    assert found.noise_in_bias < 0.03, "the interval is narrow enough to mean something"


def test_turn_rloo_scaled_is_biased():
    assert measure(STOPPING, {"x": credit(turn_rloo, scale="std")}, size=4, groups=20_000)["x"].direction_biased


def with_a_price_for_every_turn(process: Process) -> Process:
    """The task that mt_grpo (scale none) really improves, for large groups: each turn k costs μ_k, the mean
    intermediate reward among rollouts alive at k. Worked out by enumeration, without the estimator."""
    depth = {process.start: 0}
    for state in process.order:
        for action in process.states[state]:
            if action.next:
                depth[action.next] = depth[state] + 1
    reach = dict.fromkeys(process.order, 0.0)
    reach[process.start] = 1.0
    alive, paid = [0.0] * process.max_turns, [0.0] * process.max_turns
    for n, state in enumerate(process.order):
        alive[depth[state]] += reach[state]
        for a, action in enumerate(process.states[state]):
            share = reach[state] * process.policy[n, a].item()
            if action.next:
                reach[action.next] += share
                paid[depth[state]] += share * action.reward
    price = [p / a for p, a in zip(paid, alive, strict=True)]
    states = {
        state: [replace(action, reward=action.reward - price[depth[state]]) for action in actions]
        for state, actions in process.states.items()
    }
    return replace(process, states=states)


def test_the_bias_of_mt_grpo_under_variable_stopping_is_a_price_on_every_turn():
    found = measure(STOPPING, {"mt_grpo": credit(mt_grpo, scale="none")}, size=8, groups=20_000)["mt_grpo"]
    assert found.direction_biased
    # The same estimator is right about the task with prices; what remains is 1/G from centring (factor 7/8).
    priced = with_a_price_for_every_turn(STOPPING)
    generator = torch.Generator().manual_seed(0)
    rollouts = STOPPING.sample(500, 256, generator)
    advantages = credit(mt_grpo, scale="none")(rollouts)
    mean = group_gradients(STOPPING, rollouts, advantages).mean(dim=0)
    true, claimed = STOPPING.exact_gradient().flatten(), priced.exact_gradient().flatten()
    off_true, off_claimed = (mean - true).norm() / true.norm(), (mean - claimed).norm() / true.norm()
    assert off_claimed < 0.03
    assert off_true > 0.08
    # Searching on is valued too little while a later search would be priced: action 0 of turns 1 and 2.
    assert (claimed.view_as(STOPPING.logits)[:2, 0] < 0.9 * true.view_as(STOPPING.logits)[:2, 0]).all()


def test_with_the_same_number_of_turns_everywhere_mt_grpo_only_scales_without_std():
    found = measure(
        TWO_TURNS, {"centred": credit(mt_grpo, scale="none"), "std": credit(mt_grpo)}, size=4, groups=20_000
    )
    assert found["centred"].scale == pytest.approx(3 / 4, abs=0.03)  # the mean includes the rollout itself
    assert not found["centred"].direction_biased
    assert found["std"].direction_biased  # each reward is divided by its own std: their weights change


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_critics_have_no_bias_at_lambda_one(process: Process):
    found = measure(process, {"turn": critic(turn_gae), "bilevel": critic(bilevel_gae)}, size=2, groups=60_000)
    for name, measured in found.items():
        assert not measured.biased, (name, measured)
        assert measured.noise_in_bias < 0.05, "the interval is narrow enough to mean something"


def test_a_critic_that_is_wrong_biases_nothing_at_lambda_one_and_something_below():
    def of_a_wrong_critic(lam: float):
        def credit(rollouts: Rollouts) -> torch.Tensor:
            wrong = 0.3 + 0.4 * (rollouts.state_BK.clamp(min=0) % 2)  # a value for each turn's state
            values = torch.zeros_like(rollouts.values)
            last = values.shape[1] - 1
            values.scatter_(1, rollouts.start_BK.clamp(max=last), wrong.float() * (rollouts.state_BK >= 0))
            return turn_gae(rollouts.rewards, rollouts.mask, rollouts.index, values, lam=lam, whiten=False)[0]

        return credit

    found = measure(STOPPING, {"one": of_a_wrong_critic(1.0), "half": of_a_wrong_critic(0.5)}, size=2, groups=50_000)
    assert not found["one"].biased
    assert found["half"].direction_biased


def test_a_later_turns_value_lowers_the_noise_below_lambda_one():
    # With exact values GAE is unbiased at every λ; at λ = 0 only the turn's own reward and the next state are noise.
    found = measure(STOPPING, {"one": critic(turn_gae), "zero": critic(turn_gae, lam=0.0)}, size=2, groups=50_000)
    assert not found["zero"].biased
    assert found["zero"].noise < 0.9 * found["one"].noise


def of_turns(wrong_by: float = 0.0):
    """turn_td with the exact values; Q of the turns that lead nowhere else is wrong by a number."""

    def credit(rollouts: Rollouts) -> torch.Tensor:
        after = rollouts.values_after + wrong_by * (rollouts.rewards != 0)
        return turn_td(rollouts.rewards, rollouts.mask, rollouts.index, rollouts.values, after, whiten=False)[0]

    return credit


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_turn_td_with_exact_values_is_unbiased_and_turn_gae_with_lambda_zero(process: Process):
    # These processes have no chance of their own: Q is what the turn was paid plus V of the next state.
    found = measure(process, {"td": of_turns(), "gae": critic(turn_gae, lam=0.0)}, size=2, groups=20_000)
    assert not found["td"].biased, found["td"]
    assert found["td"].noise == pytest.approx(found["gae"].noise, rel=1e-3)


def test_nothing_corrects_a_turn_critic_that_is_wrong():
    found = measure(STOPPING, {"wrong": of_turns(0.4)}, size=2, groups=50_000)
    assert found["wrong"].direction_biased
