"""The loss with one ratio per turn: by hand, and what it reduces to, which is verl's own."""

from __future__ import annotations

import math
from types import MappingProxyType

import pytest
import torch

from tests.credit.batches import insert_columns, multi_turn_batch
from verl_mtgrpo.credit.policy_loss import turn_gspo_loss, turn_rema_loss
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


class TestReMA:
    """relatives.md 3.3, by hand and against the formula written as loops."""

    CLIPS = MappingProxyType({"clip_low": 0.2, "clip_high": 0.2})

    def test_by_hand(self):
        # Turn 1: mean of .1 and .3, ratio 1.2214, clipped at 1.2. Turn 2: ratio .8187. The rollout: -(1.2 + .8187) / 2.
        log_prob = torch.tensor([[0.1, 0.3, 9.0, -0.2]])
        mask, ones = torch.tensor([[1, 1, 0, 1]]), torch.ones(1, 4)
        loss, clipped, bounded = turn_rema_loss(log_prob, torch.zeros(1, 4), ones, mask, **self.CLIPS)
        assert (loss * mask).sum().item() == pytest.approx(-1.00937, abs=1e-5)
        assert loss[0, 0] == loss[0, 1] == pytest.approx(-1.2 / 4)
        assert clipped[0].tolist() == [True, True, False, False]
        assert not bounded.any()

    def test_cut_off_and_dual_clip(self):
        # Mean log ratio 4, cut off at 3: e^3 = 20.1; with A = -1 the dual clip bounds the loss at 3.
        log_prob, mask = torch.tensor([[5.0, 3.0]], requires_grad=True), torch.tensor([[1, 1]])
        for dual_clip, expected in ((3.0, 3.0), (None, math.exp(3)), (50.0, math.exp(3))):
            loss, _, bounded = turn_rema_loss(
                log_prob, torch.zeros(1, 2), -torch.ones(1, 2), mask, dual_clip=dual_clip, **self.CLIPS
            )
            assert loss.sum().item() == pytest.approx(expected)
            assert bounded.all() == (dual_clip == 3.0)
            assert not torch.autograd.grad(loss.sum(), log_prob)[0].any(), "no gradient beyond either bound"

    def written(self, log_prob, old, advantages, mask, dual_clip):
        """The formula for one rollout, turn by turn."""
        terms, at = [], 0
        while at < len(mask):
            end = at
            while end < len(mask) and mask[end]:
                end += 1
            if end > at:
                ratio = (log_prob[at:end] - old[at:end]).mean().clamp(max=3.0).exp()
                advantage = advantages[at:end].mean()
                term = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.9, 1.3))
                terms.append(torch.minimum(term, -dual_clip * advantage) if advantage < 0 else term)
            at = max(end, at + 1)
        return torch.stack(terms).mean()

    def test_value_and_gradient_are_those_of_the_formula_however_the_batch_is_cut(self):
        batch = multi_turn_batch(3)
        rows = batch.mask.any(dim=1)
        mask = batch.mask[rows]
        generator = torch.Generator().manual_seed(0)
        old, change, advantages = torch.randn(3, *mask.shape, generator=generator)
        log_prob = (old + 1.5 * change).requires_grad_()
        expected = torch.stack(
            [self.written(*row, dual_clip=1.5) for row in zip(log_prob, old, advantages, mask, strict=True)]
        ).mean()
        (expected_gradient,) = torch.autograd.grad(expected, log_prob)
        for size in (1, 2, len(mask)):
            total = sum(
                (turn_rema_loss(*part, clip_low=0.1, clip_high=0.3, dual_clip=1.5)[0] * part[-1]).sum()
                for part in zip(*(x.split(size) for x in (log_prob, old, advantages, mask)), strict=True)
            ) / len(mask)
            (gradient,) = torch.autograd.grad(total, log_prob)
            assert total.item() == pytest.approx(expected.item(), abs=1e-6)
            assert torch.allclose(gradient, expected_gradient, atol=1e-7)

    def test_an_empty_rollout_has_no_loss_and_bad_input_is_refused(self):
        zeros = torch.zeros(2, 3)
        mask = torch.tensor([[0, 0, 0], [1, 0, 1]])
        loss, _, _ = turn_rema_loss(zeros, zeros, torch.ones(2, 3), mask, **self.CLIPS)
        assert (loss * mask).sum(dim=1).tolist() == [0.0, -1.0]
        with pytest.raises(CreditInputError, match=r"dual_clip is 1\.0, expected a number above 1, or None"):
            turn_rema_loss(zeros, zeros, zeros, mask, dual_clip=1.0, **self.CLIPS)


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

    def compare(
        self, name: str, mask: torch.Tensor, mode: str, spread: float, weights=None, ours="turn_gspo", **config
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        old, change, advantages = torch.randn(3, *mask.shape, generator=generator)
        if ours == "turn_rema":  # which has one advantage per turn
            advantages = advantages[:, :1].expand_as(mask).clone()
        results = []
        modes = {ours: "seq-mean-token-sum"} if ours == "turn_rema" else {}
        for loss_mode in (ours, name):
            log_prob = (old + spread * change).requires_grad_()
            loss, metrics = self.core_algos.get_policy_loss_fn(loss_mode)(
                old_log_prob=old,
                log_prob=log_prob,
                advantages=advantages,
                response_mask=mask.bool(),
                loss_agg_mode=modes.get(loss_mode, mode),
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

    def test_rema_with_one_turn_is_gspo_averaged_over_tokens(self):
        mask = (torch.arange(9) < torch.tensor([[9], [1], [4], [6], [2], [3]])).long()
        weights = torch.rand(6, 1, generator=torch.Generator().manual_seed(1)).expand(6, 9)
        for given in (None, weights):
            self.compare("gspo", mask, "seq-mean-token-mean", 0.8, given, ours="turn_rema", clip_ratio_c=1e6)

    def test_rema_with_one_token_per_turn_is_ppo_averaged_over_tokens(self):
        mask = torch.tensor([[1, 0, 1, 0, 1], [0, 0, 1, 0, 0], [1, 0, 0, 0, 1]])
        self.compare("vanilla", mask, "seq-mean-token-mean", 0.5, ours="turn_rema", clip_ratio_c=1.2)

    def test_rema_is_not_averaged_in_another_way(self):
        mask = torch.tensor([[1, 0, 1]])
        function = self.core_algos.get_policy_loss_fn("turn_rema")
        with pytest.raises(ConfigError, match=r"loss_agg_mode is token-mean.* set .*=seq-mean-token-sum"):
            function(*torch.zeros(3, 1, 3), mask, "token-mean", self.config())

    def test_a_wrong_clip_range_is_refused_by_its_key(self):
        mask = torch.tensor([[1, 0, 1]])
        with pytest.raises(ConfigError, match=r"^actor_rollout_ref\.actor\.clip_ratio_low or .*: clip_low is -0\.1"):
            self.compare("gspo", mask, "token-mean", spread=0.5, clip_ratio_low=-0.1)

    def test_several_turns_are_neither(self):
        mask = torch.tensor([[1, 1, 0, 1, 1]] * 4)
        for name in ("gspo", "vanilla"):
            with pytest.raises(AssertionError):
                self.compare(name, mask, "token-mean", spread=0.5, clip_ratio_c=1e6)
