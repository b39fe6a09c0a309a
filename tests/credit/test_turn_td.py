"""Compare the turn critic with numbers by hand, a naive loop, solved linear systems and ``turn_gae``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests import oracles
from tests.credit.batches import insert_columns, multi_turn_batch, random_batch
from verl_mtgrpo.credit import segment_turns, turn_gae, turn_td
from verl_mtgrpo.credit.turn_td import conservative, critic_quality, posterior, td_targets, value_targets
from verl_mtgrpo.errors import CreditInputError

# Two turns of two tokens and one, one observation token between them; a search paid 0.5, an answer paid 1.
#                       b1   e1  obs   b2  padding
MASK = torch.tensor([[1, 1, 0, 1, 0]])
REWARDS = torch.tensor([[0.0, 0.5, 0.0, 1.0, 0.0]])
BEFORE = torch.tensor([[0.8, 9.0, 0.7, 0.6, -9.0]])
AFTER = torch.tensor([[9.0, 0.7, 0.6, 0.9, -9.0]])


def critic(seed: int, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A critic's number at each of the T + 1 places of a row: ``values`` and ``values_after``."""
    places = torch.randn(len(mask), mask.shape[1] + 1, generator=torch.Generator().manual_seed(seed))
    return places[:, :-1], places[:, 1:]


def test_by_hand():
    # V_1 = .8, Q_1 = .7 (after token 1), V_2 = .6 (before token 3), Q_2 = .9 (after it).
    advantages, returns = turn_td(REWARDS, MASK, ["q"], BEFORE, AFTER, whiten=False)
    assert advantages[0].tolist() == pytest.approx([-0.1, -0.1, 0, 0.3, 0])
    assert returns[0].tolist() == pytest.approx([0.7, 0.7, 0, 0.9, 0])


def test_whitened_by_hand():
    # -.1 and .3: mean .1, unbiased standard deviation √(.04 + .04) = .282843.
    advantages, _ = turn_td(REWARDS, MASK, ["q"], BEFORE, AFTER)
    assert advantages[0].tolist() == pytest.approx([-0.707107, -0.707107, 0, 0.707107, 0], abs=1e-5)


def test_targets_by_hand():
    # γ = .9. Place 0: V_1 ← Q_1 = .7. Place 2: Q_1 ← .5 + .9 · .6 = 1.04. Place 3: V_2 ← .9. Place 4: Q_2 ← 1.
    targets, learned = value_targets(REWARDS, MASK, BEFORE, AFTER, discount=0.9)
    assert targets[0].tolist() == pytest.approx([0.7, 0, 1.04, 0.9, 1.0, 0])
    assert learned[0].tolist() == [True, False, True, True, True, False]


def test_a_replayed_row_teaches_q_only():
    targets, learned = value_targets(REWARDS, MASK, BEFORE, AFTER, discount=0.9, fresh_B=torch.tensor([False]))
    assert targets[0].tolist() == pytest.approx([0, 0, 1.04, 0, 1.0, 0])
    assert learned[0].tolist() == [False, False, True, False, True, False]


def test_a_turn_that_ends_with_the_row_has_a_place_behind_it():
    mask = torch.tensor([[1, 0, 1]])
    targets, learned = value_targets(torch.tensor([[0, 0, 2.0]]), mask, torch.ones(1, 3), torch.ones(1, 3))
    assert learned[0].tolist() == [True, True, True, True]
    assert targets[0].tolist() == [1.0, 1.0, 1.0, 2.0]


def test_td_targets_ignore_what_follows_the_end():
    found = td_targets(torch.tensor([[0.5, 1.0]]), torch.tensor([[0.6, torch.nan]]), torch.tensor([[False, True]]), 0.5)
    assert found[0].tolist() == pytest.approx([0.8, 1.0])


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_equals_the_naive_loop(gamma):
    for seed in range(40):
        batch = random_batch(seed)
        before, after = critic(seed, batch.mask)
        fresh = torch.rand(len(batch.mask), generator=torch.Generator().manual_seed(seed)) < 0.5
        wanted, at_places = oracles.turn_td(
            *(one.tolist() for one in (batch.rewards.double(), batch.mask, before.double(), after.double())),
            gamma=gamma,
            fresh=fresh.tolist(),
        )
        advantages, returns = turn_td(
            batch.rewards, batch.mask, batch.index, before, after, discount=gamma, whiten=False
        )
        assert torch.allclose(advantages, torch.tensor(wanted), atol=1e-5), f"seed {seed}"
        assert (returns[batch.mask == 0] == 0).all()
        targets, learned = value_targets(batch.rewards, batch.mask, before, after, discount=gamma, fresh_B=fresh)
        found = [dict(zip(range(len(row)), row, strict=True)) for row in targets.tolist()]
        for i, row in enumerate(at_places):
            assert learned[i].nonzero().flatten().tolist() == sorted(row), f"seed {seed}"
            assert [found[i][place] for place in sorted(row)] == pytest.approx(
                [row[place] for place in sorted(row)], abs=1e-5
            )


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("whiten", [True, False])
def test_a_critic_whose_q_is_its_target_is_turn_gae_with_lambda_0(gamma, whiten):
    for seed in range(20):
        batch = multi_turn_batch(seed)
        before, _ = critic(seed, batch.mask)
        turns = segment_turns(batch.mask)
        v_BK = turns.at_first(before)
        v_next_BK = torch.nn.functional.pad(v_BK[:, 1:], (0, 1))
        q_BK = td_targets(turns.sum_over_turns(batch.rewards), v_next_BK, turns.last_BK, gamma)
        known = {"discount": gamma, "whiten": whiten}
        ours, _ = turn_td(batch.rewards, batch.mask, batch.index, before, turns.spread(q_BK), **known)
        theirs, _ = turn_gae(batch.rewards, batch.mask, batch.index, before, lam=0.0, **known)
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_observations_padding_and_what_lies_inside_a_turn_change_nothing():
    batch = multi_turn_batch(3)
    before, after = critic(3, batch.mask)
    ends = [batch.mask.shape[1]] * 2
    wide = [insert_columns(one, ends, fill=7.0) for one in (batch.rewards, before, after)]
    mask = insert_columns(batch.mask, ends)
    result, _ = turn_td(wide[0], mask, batch.index, *wide[1:])
    wanted, _ = turn_td(batch.rewards, batch.mask, batch.index, before, after)
    assert torch.equal(result[:, : batch.mask.shape[1]], wanted)
    turns = segment_turns(batch.mask)
    first = torch.zeros_like(batch.mask).scatter_(1, turns.first_BK, 1) * batch.mask == 1
    noise = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0))
    again, _ = turn_td(batch.rewards, batch.mask, batch.index, before.where(first, noise), after)
    assert torch.equal(again, wanted)


def test_no_place_is_both_a_beginning_and_an_end():
    for seed in range(50):
        batch = random_batch(seed)
        _, learned = value_targets(batch.rewards, batch.mask, *critic(seed, batch.mask))
        assert int(learned.sum()) == 2 * int(segment_turns(batch.mask).count_B.sum())


def test_an_empty_batch_and_rows_without_turns():
    none = torch.zeros(2, 3)
    targets, learned = value_targets(none, torch.zeros(2, 3), none, none)
    assert targets.shape == learned.shape == (2, 4)
    assert not learned.any()
    assert value_targets(none[:0], none[:0], none[:0], none[:0])[0].shape == (0, 4)
    assert critic_quality(none, torch.zeros(2, 3), none, none) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values_after": torch.zeros(1, 4)}, r"values_after has shape \(1, 4\) and response_mask \(1, 5\)"),
        (
            {"values_after": AFTER * torch.nan},
            "values_after is NaN, infinite .* at 3 generated tokens: the critic has diverged",
        ),
        ({"values": BEFORE * torch.inf}, "values is NaN, infinite"),
        ({"discount": -1.0}, "discount is -1.0"),
    ],
)
def test_bad_input(change, message):
    known = {"values": BEFORE, "values_after": AFTER, **change}
    with pytest.raises(CreditInputError, match=message):
        turn_td(REWARDS, MASK, ["q"], **known)
    with pytest.raises(CreditInputError, match=message):
        value_targets(REWARDS, MASK, **known)


# ---- a chain of states with two actions each: the fixed point is the solution of a linear system

STATES, GAMMA = 5, 0.9
POLICY = torch.tensor([0.3, 0.5, 0.6, 0.2, 0.9], dtype=torch.float64)  # of action 1, which walks on by one state
PAID = torch.tensor([[0.2, -0.1], [0.0, 0.4], [0.3, 0.1], [0.5, 0.0], [-0.2, 1.0]], dtype=torch.float64)


def solved() -> tuple[Tensor, Tensor]:
    """V = Π (R + γ P V) by Gaussian elimination; Q = R + γ P V. Action 0 jumps two states; beyond the last: the end."""
    pi = torch.stack([1 - POLICY, POLICY], dim=1)
    step = torch.zeros(STATES, 2, STATES, dtype=torch.float64)
    for s in range(STATES):
        for a, to in ((0, s + 2), (1, s + 1)):
            if to < STATES:
                step[s, a, to] = 1.0
    under = torch.einsum("sa,sat->st", pi, step)
    v = torch.linalg.solve(torch.eye(STATES, dtype=torch.float64) - GAMMA * under, (pi * PAID).sum(1))
    return v, PAID + GAMMA * step @ v


def walks(count: int, policy: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rollouts from state 0: one token per turn and one observation; the states and actions of each turn, -1: none."""
    draw = torch.Generator().manual_seed(seed)
    states, actions = torch.full((2, count, STATES), -1)
    here = torch.zeros(count, dtype=torch.long)
    for k in range(STATES):
        alive = here < STATES
        taken = (torch.rand(count, generator=draw) < policy[here.clamp(max=STATES - 1)]).long()
        states[:, k], actions[:, k] = here.where(alive, -1), taken.where(alive, -1)
        here = here + torch.where(taken == 1, 1, 2)
    alive = states >= 0
    mask, rewards = torch.zeros(count, 2 * STATES, dtype=torch.long), torch.zeros(count, 2 * STATES)
    mask[:, ::2] = alive.long()
    rewards[:, ::2] = (PAID[states, actions] * alive).float()
    return rewards, mask, states, actions


def learn(seed: int, steps: int, behaviour: Tensor, *, fresh: bool) -> tuple[Tensor, Tensor]:
    """A table V and a table Q, fitted again and again to the mean of the targets of one large batch."""
    rewards, mask, states, actions = walks(8_000, behaviour, seed)
    v, q = torch.zeros(STATES), torch.zeros(STATES, 2)
    alive = states >= 0
    pi = torch.stack([1 - POLICY, POLICY], dim=1).float()
    for _ in range(steps):
        before, after = torch.zeros(2, *mask.shape)
        before[:, ::2], after[:, ::2] = v[states] * alive, q[states, actions] * alive
        fresh_B = torch.full((len(mask),), fresh)
        targets, learned = value_targets(rewards, mask, before, after, discount=GAMMA, fresh_B=fresh_B)
        at_v, at_q = targets[:, :-1:2], targets[:, 1::2]
        assert torch.equal(learned[:, :-1:2], alive & fresh)
        sums = torch.zeros(STATES * 2).index_add_(0, (states * 2 + actions)[alive], at_q[alive])
        q_new = (
            sums / torch.zeros(STATES * 2).index_add_(0, (states * 2 + actions)[alive], alive[alive].float())
        ).view(STATES, 2)
        if fresh:
            counts = torch.zeros(STATES).index_add_(0, states[alive], alive[alive].float())
            v = torch.zeros(STATES).index_add_(0, states[alive], at_v[alive]) / counts
        else:  # V is taught by the policy's own actions, which rows of another policy do not have
            v = (pi * q).sum(1)
        q = q_new
    return v, q


def test_the_fixed_point_is_the_solution_of_the_linear_system():
    v, q = learn(0, 2 * STATES + 2, POLICY.float(), fresh=True)
    wanted_v, wanted_q = solved()
    assert torch.allclose(q.double(), wanted_q, atol=0.02)
    assert torch.allclose(v.double(), wanted_v, atol=0.03)


def test_rows_of_another_policy_teach_q_the_same():
    _, q = learn(1, 2 * STATES + 2, 1 - POLICY.float() * 0.7, fresh=False)
    assert torch.allclose(q.double(), solved()[1], atol=1e-3)


def test_v_of_another_policys_rows_would_be_wrong():
    """Why replayed rows do not teach V."""
    v, _ = learn(1, 2 * STATES + 2, 1 - POLICY.float() * 0.7, fresh=True)
    assert (v.double() - solved()[0]).abs().max() > 0.1


# ---- how good a critic is


def test_critic_quality_by_hand():
    # Targets of Q: .5 + .6 = 1.1 and 1; Q .7 and .9: √((.16 + .01) / 2) = .291548. Earned: 1.5 and 1, variance .125.
    # V .8, .6: errors .7, .4, variance .045: 1 - .36 = .64. Q: errors .8, .1, variance .245: 1 - 1.96 = -.96.
    found = critic_quality(REWARDS, MASK, BEFORE, AFTER)
    assert found == {
        "critic/td_error": pytest.approx(0.291548, abs=1e-5),
        "critic/v_explained_variance": pytest.approx(0.64, abs=1e-5),
        "critic/q_explained_variance": pytest.approx(-0.96, abs=1e-5),
    }


def test_a_critic_that_agrees_with_itself_only_explains_nothing():
    batch = multi_turn_batch(0)
    said = torch.full_like(batch.rewards, 0.3)
    found = critic_quality(batch.rewards, batch.mask, said, said)
    assert found["critic/v_explained_variance"] == pytest.approx(0.0, abs=1e-6)
    assert found["critic/q_explained_variance"] == pytest.approx(0.0, abs=1e-6)


# ---- proposals


def test_posterior_by_hand():
    found = posterior(torch.tensor([1.0, 2.0, 0.0]), 1.0)
    assert found.tolist() == pytest.approx([0.2447, 0.6652, 0.0900], abs=1e-4)


def test_posterior_at_its_limits():
    q = torch.tensor([[1.0, 2.0, 0.0], [-5.0, -5.0, 3e6]])
    assert torch.equal(posterior(q, 1e-8), torch.tensor([[0.0, 1, 0], [0, 0, 1]]))
    assert torch.allclose(posterior(q, math.inf), torch.full((2, 3), 1 / 3))
    assert posterior(torch.tensor([7.0]), 0.1).tolist() == [1.0]
    missing = posterior(torch.tensor([1.0, -torch.inf, 1.0]), math.inf)
    assert missing.tolist() == [0.5, 0.0, 0.5]


def test_posterior_is_the_policy_times_exp_q():
    """Proposals drawn from π and one of them by softmax(Q / α): π exp(Q / α) / Z, as k grows."""
    pi, q, alpha = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.0, 1.0, 2.0]), 0.8
    draw = torch.Generator().manual_seed(0)
    proposed = torch.multinomial(pi, 4_000 * 100, replacement=True, generator=draw).view(4_000, 100)
    weights = posterior(q[proposed], alpha)
    found = torch.stack([(weights * (proposed == a)).sum(1).mean() for a in range(3)])
    wanted = pi * (q / alpha).exp()
    assert torch.allclose(found, wanted / wanted.sum(), atol=0.02)


def test_conservative_by_hand():
    # ln(e + e² + 1) = 2.407606; minus Q of the turn taken, 2.
    assert float(conservative(torch.tensor([1.0, 2.0, 0.0]), torch.tensor(2.0))) == pytest.approx(0.4076, abs=1e-4)


def test_conservative_pulls_up_what_was_taken_and_pushes_down_the_rest():
    q = torch.tensor([[0.3, -1.0, 2.0]], requires_grad=True)
    conservative(q, q[:, 0]).sum().backward()
    assert q.grad is not None
    wanted = posterior(q.detach(), 1.0) - torch.tensor([[1.0, 0, 0]])
    assert torch.allclose(q.grad, wanted, atol=1e-6)


def test_one_proposal_costs_nothing():
    q = torch.tensor([[0.3], [-4.0]])
    assert conservative(q, q[:, 0]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: posterior(torch.zeros(0), 1.0), "expected one or more proposals"),
        (lambda: posterior(torch.zeros(3), 0.0), "alpha is 0.0, expected a number above 0"),
        (lambda: posterior(torch.tensor([1.0, torch.nan]), 1.0), "holds NaN"),
        (lambda: posterior(torch.full((2, 2), -torch.inf), 1.0), "without any proposal"),
        (lambda: conservative(torch.zeros(2, 3), torch.zeros(3)), r"q_taken has shape \(3,\) and q_all \(2, 3\)"),
    ],
)
def test_bad_proposals(call, message):
    with pytest.raises(CreditInputError, match=message):
        call()
