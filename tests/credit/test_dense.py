"""Dense rewards: numbers by hand, verl's own KL penalty, sums, and what holds for all of them."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

from tests.credit.batches import multi_turn_batch
from verl_mtgrpo.credit import segment_turns
from verl_mtgrpo.credit.dense import DENSE, Dense, dense_rewards, implicit, information_gain, pay_last, register_dense
from verl_mtgrpo.errors import ConfigError, CreditInputError

MASK = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
every = pytest.mark.parametrize("name", DENSE)


def fields_of(mask: torch.Tensor, seed: int = 0) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    old, ref = (-torch.rand(mask.shape, generator=made) for _ in range(2))
    turns = int(segment_turns(mask).count_B.max())
    return {
        "old_log_probs": old,
        "ref_log_prob": ref,
        "answer_log_probs": -torch.rand((len(mask), turns), generator=made),
        "values_after": torch.randn(mask.shape, generator=made),
    }


def test_implicit_by_hand():
    old = torch.tensor([[-1.0, -0.5, 9.0, 9.0, -2.0, 9.0], [9.0, -1.0, -1.0, -1.0, 9.0, 9.0], [9.0] * 6])
    ref = torch.tensor([[-1.5, -0.7, 0.0, 0.0, -1.0, 0.0], [0.0, -1.0, -2.0, -0.5, 0.0, 0.0], [0.0] * 6])
    # turn 1: 0.5 + 0.2; turn 2: -1; the other rollout: 0 + 1 - 0.5
    expected = torch.tensor([[0.07, -0.1], [0.05, 0.0], [0.0, 0.0]])
    assert torch.allclose(implicit(MASK, old, ref, beta=0.1), expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_implicit_sums_to_beta_times_the_log_ratio_of_the_sequence(seed):
    mask = multi_turn_batch(seed).mask
    fields = fields_of(mask, seed)
    total = implicit(mask, fields["old_log_probs"], fields["ref_log_prob"], beta=0.3).sum(dim=1)
    ratio = ((fields["old_log_probs"] - fields["ref_log_prob"]) * mask).sum(dim=1)
    assert torch.allclose(total, 0.3 * ratio, atol=1e-5)


def test_information_gain_by_hand():
    mask = torch.tensor([[1, 0, 1, 0, 1], [1, 0, 1, 0, 0], [1, 0, 0, 0, 0]])
    likely = torch.tensor([[0.1, 0.5, 0.4], [0.2, 0.9, 0.7], [0.3, 0.6, 0.6]])  # beyond the last turn: ignored
    gain = information_gain(mask, likely.log())
    assert torch.allclose(gain, torch.tensor([[0.4, -0.1, 0.0], [0.7, 0.0, 0.0], [0.0, 0.0, 0.0]]), atol=1e-6)
    logs = information_gain(mask, likely.log(), of="log_probability")
    expected = torch.tensor([[math.log(5), math.log(0.8), 0.0], [math.log(4.5), 0.0, 0.0], [0.0] * 3])
    assert torch.allclose(logs, expected, atol=1e-6)


@pytest.mark.parametrize("of", ["probability", "log_probability"])
def test_information_gain_sums_to_what_the_answer_gained_from_the_first_turn_to_the_last(of):
    mask = multi_turn_batch(3).mask
    given = fields_of(mask)["answer_log_probs"]
    likely = given.exp() if of == "probability" else given
    last = segment_turns(mask).count_B - 1
    rows = torch.arange(len(mask))
    expected = likely[rows, last] - likely[:, 0]
    assert torch.allclose(information_gain(mask, given, of=of).sum(dim=1), expected, atol=1e-5)


@every
@pytest.mark.parametrize("seed", range(3))
def test_rows_are_computed_by_themselves(name, seed):
    mask = multi_turn_batch(seed).mask
    fields = fields_of(mask, seed)
    whole = dense_rewards(DENSE[name], mask, fields)
    exactly = name != "discriminator"  # softplus of a table of another shape may differ in the last digit
    for rows in (slice(0, 7), slice(7, 24)):
        part = {key: value[rows] for key, value in fields.items()}
        turns = int(segment_turns(mask[rows]).count_B.max())
        part["answer_log_probs"] = part["answer_log_probs"][:, :turns]
        alone = dense_rewards(DENSE[name], mask[rows], part)
        close = torch.equal if exactly else torch.allclose
        assert close(alone, whole[rows, :turns]) and not whole[rows, turns:].any()


@every
def test_masked_tokens_do_not_matter(name):
    mask = multi_turn_batch(1).mask
    fields = fields_of(mask)
    noisy = {**fields, "old_log_probs": fields["old_log_probs"].masked_fill(mask == 0, -7.0)}
    assert torch.equal(dense_rewards(DENSE[name], mask, noisy), dense_rewards(DENSE[name], mask, fields))


def test_weight_comes_after_the_clip():
    record = Dense(lambda response_mask: torch.tensor([[0.3, -2.0], [0.0, 0.0], [0.0, 0.0]]), "")
    reward = dense_rewards(record, MASK, {}, weight=-2.0, clip=0.5)
    assert reward[0].tolist() == pytest.approx([-0.6, 1.0])


def test_paid_on_the_last_generated_token_of_each_turn():
    tokens = pay_last(segment_turns(MASK), torch.tensor([[0.5, 0.25], [2.0, 9.0], [9.0, 9.0]]))
    assert tokens.tolist() == [[0, 0.5, 0, 0, 0.25, 0], [0, 0, 0, 2.0, 0, 0], [0] * 6]


@pytest.mark.skipif(importlib.util.find_spec("verl") is None, reason="verl is not installed")
@pytest.mark.imports_verl
@pytest.mark.parametrize("seed", range(3))
def test_with_a_negative_beta_it_is_verls_kl_penalty_summed_per_turn(seed):
    from tensordict import TensorDict
    from verl import DataProto
    from verl.trainer.ppo.core_algos import FixedKLController
    from verl.trainer.ppo.ray_trainer import apply_kl_penalty

    batch = multi_turn_batch(seed)
    fields = fields_of(batch.mask, seed)
    tensors = {
        **{name: fields[name] for name in ("old_log_probs", "ref_log_prob")},
        "token_level_scores": batch.rewards,
        "response_mask": batch.mask,
    }
    data = DataProto(batch=TensorDict(tensors, batch_size=len(batch.mask)))
    penalised, _ = apply_kl_penalty(data, FixedKLController(0.02), kl_penalty="kl")
    turns = segment_turns(batch.mask)
    expected = turns.sum_over_turns(penalised.batch["token_level_rewards"])
    ours = implicit(batch.mask, fields["old_log_probs"], fields["ref_log_prob"], beta=-0.02)
    assert torch.allclose(turns.sum_over_turns(batch.rewards) + ours, expected, atol=1e-5)
    assert ours.abs().max() > 1e-3


def of_shape(response_mask, *, wide=1):
    return torch.zeros(len(response_mask), wide)


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        (of_shape, {"wide": 3}, "shape"),
        (lambda response_mask: torch.full((3, 2), math.nan), {}, "NaN or infinite in 2 of 3"),
        (of_shape, {"wide": 2, "weight": math.inf}, "weight is inf"),
        (of_shape, {"wide": 2, "clip": -1.0}, "clip is -1"),
    ],
)
def test_what_is_refused(function, settings, message):
    with pytest.raises(CreditInputError, match=message):
        dense_rewards(Dense(function, ""), MASK, {}, **settings)


def test_inputs_that_are_refused():
    with pytest.raises(CreditInputError, match="ref_log_prob has shape"):
        implicit(MASK, torch.zeros(3, 6), torch.zeros(3, 5))
    with pytest.raises(CreditInputError, match="beta is nan"):
        implicit(MASK, torch.zeros(3, 6), torch.zeros(3, 6), beta=math.nan)
    with pytest.raises(CreditInputError, match="answer_log_probs has shape"):
        information_gain(MASK, torch.zeros(3, 3))
    with pytest.raises(CreditInputError, match="of is 'odds'"):
        information_gain(MASK, torch.zeros(3, 2), of="odds")


def test_one_of_your_own(monkeypatch):
    monkeypatch.setattr("verl_mtgrpo.credit.dense.DENSE", known := {})

    @register_dense(words="how sure it was")
    def confidence(response_mask, old_log_probs, *, scale=0.1):
        return scale * segment_turns(response_mask).sum_over_turns(old_log_probs)

    record = known["confidence"]
    assert (record.name, record.fields, dict(record.knobs)) == ("confidence", ("old_log_probs",), {"scale": 0.1})
    reward = dense_rewards(record, MASK, {"old_log_probs": torch.full((3, 6), -1.0)}, scale=0.5)
    assert reward.tolist() == [[-1.0, -0.5], [-1.5, 0.0], [0.0, 0.0]]
    register_dense(confidence)  # as a reload does
    with pytest.raises(ConfigError, match="response_mask first"):
        register_dense(lambda old_log_probs: old_log_probs)
    with pytest.raises(ConfigError, match="knob clip, which all have"):
        register_dense(lambda response_mask, *, clip=1: response_mask)
    confidence.__module__ = "elsewhere"
    known["confidence"] = Dense(confidence, "")
    with pytest.raises(ConfigError, match="a dense reward confidence already"):

        @register_dense
        def confidence(response_mask):
            return response_mask
