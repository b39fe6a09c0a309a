"""The discriminator of an expert's turns and the policy's own: by hand, against autograd, and what it pays."""

from __future__ import annotations

import math

import pytest
import torch

from tests.credit.batches import multi_turn_batch
from verl_mtgrpo.credit import pair_rloo, segment_turns, turn_rloo
from verl_mtgrpo.credit.dense import discriminator
from verl_mtgrpo.credit.discriminator import classification_loss, discriminator_quality, discriminator_targets
from verl_mtgrpo.errors import CreditInputError

MASK = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
SIDES = ["expert", "own", "equal", "expert", None]


def test_what_is_learnt_where_by_hand():
    """Row 0 ends its turns with tokens 1 and 3, so at places 2 and 4; row 3 has no turn, row 4 no pair."""
    expert, weight = discriminator_targets(MASK, SIDES)
    wanted = torch.zeros(2, 5, 5)
    wanted[0, 0, 2] = wanted[0, 0, 4] = wanted[1, 0, 2] = wanted[1, 0, 4] = 1.0
    wanted[1, 1, 3] = 1.0
    wanted[0, 2, 2], wanted[1, 2, 2] = 0.5, 2.0
    assert torch.equal(expert, wanted[0]) and torch.equal(weight, wanted[1])


def test_the_loss_and_its_gradient_are_those_of_the_written_formula():
    torch.manual_seed(0)
    logits = torch.randn(40, dtype=torch.float64, requires_grad=True)
    expert = torch.randint(0, 3, (40,)).double() / 2
    d = 1 / (1 + torch.exp(-logits))
    written = -(expert * torch.log(d) + (1 - expert) * torch.log(1 - d))
    ours = classification_loss(logits, expert)
    assert torch.allclose(ours, written)
    (wanted,) = torch.autograd.grad(written.sum(), logits)
    (got,) = torch.autograd.grad(ours.sum(), logits)
    assert torch.allclose(got, wanted)
    # By hand: D = 0.8 at log 4, so an expert's action costs -log 0.8 and one of the policy's own -log 0.2.
    four = torch.tensor([math.log(4.0)] * 2)
    assert classification_loss(four, torch.tensor([1.0, 0.0])).tolist() == pytest.approx([0.22314, 1.60944], abs=1e-5)


def test_an_action_that_both_wrote_counts_as_one_of_each():
    logit = torch.tensor([0.7])
    (e,), (w,) = (one[one > 0] for one in discriminator_targets(torch.ones(1, 1, dtype=torch.long), ["equal"]))
    twice = classification_loss(logit, torch.ones(1)) + classification_loss(logit, torch.zeros(1))
    assert w * classification_loss(logit, e) == pytest.approx(float(twice))


def test_on_actions_that_cannot_be_told_apart_the_best_logit_is_0():
    """The same action, as often the expert's as the policy's own."""
    logit = torch.tensor(2.0, requires_grad=True)
    optimiser = torch.optim.SGD([logit], lr=1.0)
    for _ in range(200):
        optimiser.zero_grad()
        classification_loss(logit.expand(2), torch.tensor([1.0, 0.0])).mean().backward()
        optimiser.step()
    assert float(logit.detach()) == pytest.approx(0.0, abs=1e-3)


FORMS = [("gail", [1.60944, 0.69315]), ("log", [-0.22314, -0.69315]), ("log_odds", [1.38629, 0.0])]


@pytest.mark.parametrize(("form", "paid"), FORMS)
def test_what_turns_are_paid_by_hand(form: str, paid: list[float]):
    """D = 0.8 after turn 1, which ends with token 1, and D = 0.5 after turn 2; other logits are not read."""
    logits = torch.tensor([[99.0, math.log(4.0), 99.0, 0.0]])
    assert discriminator(MASK[:1], logits, form=form)[0].tolist() == pytest.approx(paid, abs=1e-5)


def test_quality_by_hand():
    """The expert's turns at logits 1 and -1, the policy's own at -2."""
    logits = torch.zeros(5, 4)
    logits[0, 1], logits[0, 3], logits[1, 2] = 1.0, -1.0, -2.0
    found = discriminator_quality(logits, MASK, SIDES)
    sigma = 1 / (1 + math.exp(2.0))
    assert found == pytest.approx(
        {"discriminator/expert": 0.5, "discriminator/own": sigma, "discriminator/accuracy": 2 / 3}
    )
    assert discriminator_quality(logits, MASK, [None] * 5) == {}


@pytest.mark.parametrize(
    ("sides", "said"), [(["mine"] * 5, "pair_side is 'mine'"), ([None] * 5, "no row is of a pair")]
)
def test_rows_to_learn_from_are_needed(sides: list, said: str):
    with pytest.raises(CreditInputError, match=said):
        discriminator_targets(MASK, sides)


@pytest.mark.parametrize("seed", range(5))
def test_pair_rloo_is_turn_rloo_of_the_policys_own_rows(seed: int):
    batch = multi_turn_batch(seed)
    rows = len(batch.mask)
    sides = [("expert", "own", "equal", None)[(row + seed) % 4] for row in range(rows)]
    advantages, _ = pair_rloo(batch.rewards, batch.mask, batch.index, sides)
    own = [row for row, side in enumerate(sides) if side != "expert"]
    alone, _ = turn_rloo(batch.rewards[own], batch.mask[own], [batch.index[row] for row in own])
    assert torch.allclose(advantages[own], alone, atol=1e-6)
    assert not advantages[[row for row in range(rows) if row not in own]].any()
    everything, _ = turn_rloo(batch.rewards, batch.mask, batch.index)
    assert not torch.allclose(advantages, everything), "the experts' rows would move the baseline"


def test_each_turn_is_read_after_its_last_token():
    batch = multi_turn_batch(1)
    turns = segment_turns(batch.mask)
    logits = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0))
    paid = discriminator(batch.mask, logits, form="log_odds")
    for row, mask in enumerate(batch.mask.tolist()):
        ends = [t for t, on in enumerate(mask) if on and (t + 1 == len(mask) or not mask[t + 1])]
        assert paid[row, : len(ends)].tolist() == logits[row, ends].tolist()
        assert not paid[row, len(ends) :].any()
    assert int(turns.count_B.max()) > 1
