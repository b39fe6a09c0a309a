"""``pair_dpo``: numbers by hand, and its policy gradient against autograd of DPO's loss."""

from __future__ import annotations

import math

import pytest
import torch

from tests.credit.batches import multi_turn_batch
from verl_mtgrpo.credit import pair_dpo
from verl_mtgrpo.errors import CreditInputError

MASK = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
ZERO = torch.zeros(3, 3)
# log ratios: the expert's row 2, the policy's own row -1
OLD = torch.tensor([[1.5, 0.5, 7.0], [-0.5, -0.25, -0.25], [3.0, 0.0, 0.0]])


def estimate(old=OLD, mask=MASK, pairs=("p", "p", None), sides=("expert", "own", None), **knobs):
    ref = torch.zeros_like(old)
    return pair_dpo(torch.zeros(mask.shape), mask, ["q"] * len(mask), old, ref, pairs, sides, **knobs)[0]


def test_by_hand():
    # D = 0.1 (2 + 1) = 0.3, and 0.1 σ(-0.3) = 0.1 / (1 + e^0.3) = 0.042556
    weight = 0.1 / (1 + math.exp(0.3))
    assert weight == pytest.approx(0.042556, abs=1e-6)
    result = estimate(beta=0.1)
    assert torch.allclose(result, torch.tensor([[weight, weight, 0], [-weight] * 3, [0.0] * 3]), atol=1e-6)


def log_probs(logits, tokens):
    return logits.log_softmax(dim=-1).gather(-1, tokens[..., None]).squeeze(-1)


@pytest.mark.parametrize("seed", range(5))
def test_its_policy_gradient_is_that_of_dpos_loss(seed):
    """One update with tokens summed per row and rows averaged, at ratio 1; the naive loss is written from the paper."""
    made = torch.Generator().manual_seed(seed)
    pairs, length, beta = 4, 7, 0.3
    rows = 2 * pairs
    lengths = torch.randint(1, length + 1, (rows,), generator=made)
    mask = (torch.arange(length) < lengths[:, None]).long()
    tokens = torch.randint(0, 5, (rows, length), generator=made)
    logits = torch.randn(rows, length, 5, generator=made, dtype=torch.float64, requires_grad=True)
    ref = log_probs(torch.randn(rows, length, 5, generator=made, dtype=torch.float64), tokens)
    order = torch.randperm(rows, generator=made).tolist()
    expert, own = order[:pairs], order[pairs:]
    names: list = [None] * rows
    sides: list = [None] * rows
    for number, (a, b) in enumerate(zip(expert, own, strict=True)):
        names[a] = names[b] = f"pair-{number}"
        sides[a], sides[b] = "expert", "own"

    now = log_probs(logits, tokens)
    losses = []
    for a, b in zip(expert, own, strict=True):
        ratios = [((now[row] - ref[row]) * mask[row]).sum() for row in (a, b)]
        losses.append(-torch.log(torch.sigmoid(beta * (ratios[0] - ratios[1]))))
    (expected,) = torch.autograd.grad(sum(losses) / rows, logits, retain_graph=True)

    old = now.detach()
    advantages, _ = pair_dpo(torch.zeros(rows, length), mask, ["q"] * rows, old, ref, names, sides, beta=beta)
    policy_loss = -((now - old).exp() * advantages * mask).sum(dim=1).mean()
    (ours,) = torch.autograd.grad(policy_loss, logits)
    assert torch.allclose(ours, expected, atol=1e-6) and ours.abs().max() > 1e-3


def test_several_turns_of_a_row_are_one_action():
    mask = torch.tensor([[1, 0, 1], [1, 0, 1]])
    old = torch.tensor([[1.0, 9.0, 1.0], [-0.5, 9.0, -0.5]])
    result = estimate(old, mask, ("p", "p"), ("expert", "own"), beta=0.1)
    assert result[0].tolist() == pytest.approx([0.042556, 0, 0.042556], abs=1e-6)


def test_a_row_without_its_partner_gets_nothing():
    pairs, sides = ("p", "p", "alone"), ("expert", "own", "own")
    assert (estimate(pairs=pairs, sides=sides)[2] == 0).all()
    dropped = MASK.clone()
    dropped[1] = 0
    more = torch.cat([dropped, MASK[:2]])
    names, sides = (*"pp", None, *"rr"), ("expert", "own", "", "expert", "own")
    result = estimate(torch.cat([OLD, OLD[:2]]), more, names, sides)
    assert (result[:3] == 0).all() and (result[3, 0] > 0 > result[4, 0])


def test_the_experts_own_action_gets_nothing_even_if_all_rows_are_that():
    assert torch.equal(estimate(pairs=("p", "p", "r"), sides=("expert", "own", "equal")), estimate())
    assert not estimate(pairs=("p", "r", "s"), sides=("equal",) * 3).any()


def test_the_order_of_rows_does_not_matter():
    order = [1, 2, 0]
    sides = ("expert", "own", None)
    shuffled = estimate(OLD[order], MASK[order], ("p", None, "p"), tuple(sides[row] for row in order))
    assert torch.equal(shuffled, estimate()[order])


def test_rewards_play_no_part():
    batch = multi_turn_batch(0)
    rows = len(batch.mask)
    given = (torch.zeros_like(batch.rewards), torch.full_like(batch.rewards, -0.1))
    names, sides = [f"{row // 2}" for row in range(rows)], ["expert", "own"] * (rows // 2)
    with_rewards, _ = pair_dpo(batch.rewards, batch.mask, batch.index, *given, names, sides)
    without, _ = pair_dpo(torch.zeros_like(batch.rewards), batch.mask, batch.index, *given, names, sides)
    assert torch.equal(with_rewards, without) and with_rewards.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sides": ("expert", "teacher", None)}, "pair_side is 'teacher' in row 1"),
        ({"sides": ("expert", "expert", None)}, "two rows of the side expert"),
        ({"pairs": ("p", "r", None)}, "none of 2 pairs has both"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"beta": math.inf}, "beta is inf"),
        ({"old": torch.full((3, 3), math.nan)}, "NaN or infinite"),
        ({"old": torch.zeros(3, 2)}, "old_log_probs has shape"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(CreditInputError, match=message):
        estimate(**change)
