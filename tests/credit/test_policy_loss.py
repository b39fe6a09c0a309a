"""The loss with one ratio per turn: by hand, and what it reduces to, which is verl's own."""

from __future__ import annotations

import math

import pytest
import torch

from tests.credit.batches import insert_columns, multi_turn_batch
from verl_mtgrpo.credit.policy_loss import turn_gspo_loss
from verl_mtgrpo.errors import ConfigError, CreditInputError

MASK = torch.tensor([[1, 1, 0, 1, 1]])
ADVANTAGES = torch.tensor([[2.0, 2.0, 0.0, -1.0, -1.0]])


def test_by_hand():
    # Turn 1: token ratios 2 and 1/2, geometric mean 1: not clipped, though each token's ratio would be.
    # Turn 2: ratios 4 and 1, geometric mean 2, A = -1: the unclipped 2 is the larger loss.
    log_prob = torch.tensor([[math.log(2), -math.log(2), 5.0, math.log(4), 0.0]], requires_grad=True)
    loss, clipped = turn_gspo_loss(log_prob, torch.zeros(1, 5), ADVANTAGES, MASK, clip_low=0.2, clip_high=0.2)
    assert loss[MASK == 1].tolist() == pytest.approx([-2, -2, 2, 2])
    assert not clipped[MASK == 1].any()
    # d loss_t / d log π_t = -A s_k, on its own token only.
    (gradient,) = torch.autograd.grad((loss * MASK).sum(), log_prob)
    assert gradient[0].tolist() == pytest.approx([-2, -2, 0, 2, 2])


def test_a_turn_is_clipped_as_a_whole_and_then_has_no_gradient():
    # Turn 1: ratios 4 and 1, mean 2 > 1.2, A = 2: loss -2 · 1.2. Turn 2: mean 1/2 < .8, A = -1: loss .8.
    log_prob = torch.tensor([[math.log(4), 0.0, 0.0, -math.log(4), 0.0]], requires_grad=True)
    loss, clipped = turn_gspo_loss(log_prob, torch.zeros(1, 5), ADVANTAGES, MASK, clip_low=0.2, clip_high=0.2)
    assert loss[MASK == 1].tolist() == pytest.approx([-2.4, -2.4, 0.8, 0.8])
    assert clipped[MASK == 1].all()
    (gradient,) = torch.autograd.grad((loss * MASK).sum(), log_prob)
    assert (gradient == 0).all()


def test_observations_and_the_other_turn_do_not_move_a_ratio():
    batch = multi_turn_batch(0)
    log_prob, old, advantages = torch.randn(3, *batch.mask.shape, generator=torch.Generator().manual_seed(0))
    clips = {"clip_low": 0.1, "clip_high": 0.3}
    before, _ = turn_gspo_loss(log_prob, old, advantages, batch.mask, **clips)
    at = [t for t in range(1, batch.mask.shape[1]) if not (batch.mask[:, t - 1] & batch.mask[:, t]).any()]
    wide = [insert_columns(x, at, fill=fill) for x, fill in ((log_prob, 50.0), (old, -50.0), (advantages, 9.0))]
    mask = insert_columns(batch.mask, at)
    after, _ = turn_gspo_loss(*wide, mask, **clips)
    assert torch.allclose(after[mask == 1], before[batch.mask == 1])
    first = batch.mask.cumprod(dim=1).bool()
    moved, _ = turn_gspo_loss(log_prob + 0.7 * first, old, advantages, batch.mask, **clips)
    later = (batch.mask == 1) & ~first
    assert torch.equal(moved[later], before[later])
    assert not torch.allclose(moved[first], before[first])


def test_bad_input():
    zeros = torch.zeros(1, 5)
    with pytest.raises(CreditInputError, match=r"shapes \(1, 4\), \(1, 5\), \(1, 5\) and \(1, 5\), expected the same"):
        turn_gspo_loss(zeros[:, :4], zeros, zeros, MASK, clip_low=0.2, clip_high=0.2)
    with pytest.raises(CreditInputError, match=r"clip_low is -0\.1"):
        turn_gspo_loss(zeros, zeros, zeros, MASK, clip_low=-0.1, clip_high=0.2)


@pytest.mark.imports_verl
class TestAgainstVerl:
    """The registered function against verl's: loss, gradient and metrics."""

    @pytest.fixture(autouse=True)
    def verl(self):
        self.core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")

    def config(self, **values):
        from verl.workers.config import ActorConfig

        settings = {"clip_ratio": 0.2, "clip_ratio_low": 0.1, "clip_ratio_high": 0.3, **values}
        return ActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **settings)

    def compare(self, name: str, mask: torch.Tensor, mode: str, spread: float, weights=None, **config) -> None:
        generator = torch.Generator().manual_seed(0)
        old, change, advantages = torch.randn(3, *mask.shape, generator=generator)
        results = []
        for loss_mode in ("turn_gspo", name):
            log_prob = (old + spread * change).requires_grad_()
            loss, metrics = self.core_algos.get_policy_loss_fn(loss_mode)(
                old_log_prob=old,
                log_prob=log_prob,
                advantages=advantages,
                response_mask=mask.bool(),
                loss_agg_mode=mode,
                config=self.config(**config),
                rollout_is_weights=weights,
            )
            (gradient,) = torch.autograd.grad(loss, log_prob)
            results.append((loss.detach(), gradient, metrics))
        (loss, gradient, metrics), (expected_loss, expected_gradient, expected_metrics) = results
        assert torch.allclose(loss, expected_loss, atol=1e-6)
        assert torch.allclose(gradient, expected_gradient, atol=1e-6)
        assert gradient.any()
        assert metrics == pytest.approx(expected_metrics, abs=1e-6)
        assert 0 < metrics["actor/pg_clipfrac"] < 1, "some tokens are clipped and some are not"

    MODES = pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])

    @MODES
    def test_one_turn_is_gspo(self, mode):
        mask = (torch.arange(9) < torch.tensor([[9], [1], [4], [6], [2], [3]])).long()
        self.compare("gspo", mask, mode, spread=0.8)

    @MODES
    def test_one_turn_with_rollout_weights_is_gspo(self, mode):
        mask = (torch.arange(9) < torch.tensor([[9], [1], [4], [6], [2], [3]])).long()
        weights = torch.rand(6, 9, generator=torch.Generator().manual_seed(1))
        self.compare("gspo", mask, mode, spread=0.8, weights=weights, clip_ratio_low=None, clip_ratio_high=None)

    @MODES
    def test_one_token_turns_are_ppo(self, mode):
        mask = torch.tensor([[1, 0, 1, 0, 1], [0, 0, 1, 0, 0], [1, 0, 0, 0, 1]])
        self.compare("vanilla", mask, mode, spread=0.5, clip_ratio_c=1e6)

    def test_a_wrong_clip_range_is_refused_by_its_key(self):
        mask = torch.tensor([[1, 0, 1]])
        with pytest.raises(ConfigError, match=r"^actor_rollout_ref\.actor\.clip_ratio_low or .*: clip_low is -0\.1"):
            self.compare("gspo", mask, "token-mean", spread=0.5, clip_ratio_low=-0.1)

    def test_several_turns_are_neither(self):
        mask = torch.tensor([[1, 1, 0, 1, 1]] * 4)
        for name in ("gspo", "vanilla"):
            with pytest.raises(AssertionError):
                self.compare(name, mask, "token-mean", spread=0.5, clip_ratio_c=1e6)
