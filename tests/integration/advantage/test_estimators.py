"""Call the registered estimator as verl's trainer does."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.ray_trainer import compute_advantage

from tests.credit.batches import fields_of
from verl_mtgrpo.credit import ESTIMATORS, mt_grpo
from verl_mtgrpo.errors import ConfigError, CreditInputError
from verl_mtgrpo.integration.advantage import estimators
from verl_mtgrpo.integration.advantage.fields import provide
from verl_mtgrpo.lab import PROCESSES, measure
from verl_mtgrpo.lab.verl_estimators import verl_estimators

pytestmark = pytest.mark.imports_verl

REWARDS = torch.tensor([[0.7, 0.0, 1.0], [0.2, 0.0, 0.0]])
MASK = torch.tensor([[1, 0, 1], [1, 0, 1]])
UID = np.array(["q", "q"], dtype=object)


def through_verl(rewards=REWARDS, mask=MASK, uid=UID, name="mt_grpo", **algorithm):
    """Call verl's own dispatch, as the trainer does with its batch."""
    data = DataProto.from_dict(
        tensors={"token_level_rewards": rewards, "response_mask": mask}, non_tensors={"uid": uid}
    )
    config = OmegaConf.create({"adv_estimator": name, "norm_adv_by_std_in_grpo": True, **algorithm})
    return compute_advantage(data, adv_estimator=name, config=config).batch


@pytest.mark.parametrize("name", ESTIMATORS)
def test_verls_dispatch_reaches_every_estimator(name):
    fields = fields_of(name, REWARDS, lambda _: torch.tensor([[0.5, 9.0, 0.2], [0.4, 9.0, 0.1]]))
    if "values_after" in fields:
        fields |= {"values_after": torch.tensor([[0.9, 9.0, 0.6], [0.1, 9.0, 0.3]])}
    if "pair_id" in fields:
        fields |= {"pair_id": ["p", "p"], "pair_side": ["expert", "own"]}
    with provide(fields):  # as our trainers do
        batch = through_verl(name=name)
    advantages, returns = ESTIMATORS[name](REWARDS, MASK, UID, **fields)
    assert torch.equal(batch["advantages"], advantages)
    assert torch.equal(batch["returns"], returns)
    assert advantages.any()


def test_settings_reach_the_equation():
    settings = {"turn_coef": 0.5, "discount": 0.25, "missing_turn": "exclude", "scale": "none"}
    expected, _ = mt_grpo(REWARDS, MASK, UID, **settings)
    assert torch.equal(through_verl(turn=settings)["advantages"], expected)
    centred, _ = mt_grpo(REWARDS, MASK, UID, scale="none")
    assert torch.equal(through_verl(norm_adv_by_std_in_grpo=False)["advantages"], centred)


def test_an_unknown_knob_is_refused():
    with pytest.raises(ConfigError, match=r"unknown keys \['lambda'\]"):
        through_verl(turn={"lambda": 1.0})


def test_an_equation_knows_no_config_and_its_caller_adds_the_key():
    with pytest.raises(
        CreditInputError, match=r"^discount is -1\.0, expected a .* \(set by algorithm\.turn\.discount\)$"
    ):
        through_verl(turn={"discount": -1.0})
    with (
        provide({"values": torch.full((2, 3), torch.nan)}),
        pytest.raises(CreditInputError, match=r"the critic has diverged; .*learning rate is critic\.optim\.lr\)$"),
    ):
        through_verl(name="turn_gae")
    with pytest.raises(CreditInputError, match=r"check the reward function's values for these rollouts$"):
        through_verl(rewards=REWARDS * torch.nan)


def test_group_labels_are_demanded():
    with pytest.raises(CreditInputError, match="no group labels"):
        get_adv_estimator_fn("mt_grpo")(token_level_rewards=REWARDS, response_mask=MASK, config=None)


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(estimators, "_warned", set())
    monkeypatch.setattr(estimators, "_sound", set())
    caplog.set_level(logging.WARNING, logger=estimators.logger.name)
    return caplog


def test_a_batch_without_turn_rewards_warns_once(warnings):
    outcome_only = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    through_verl(rewards=outcome_only)
    through_verl(rewards=outcome_only)
    (record,) = warnings.records
    assert "default_agent_loop=mtgrpo_tool_agent" in record.message


def test_groups_of_one_warn_once(warnings):
    for _ in range(2):
        through_verl(uid=np.array(["a", "b"], dtype=object))
    (record,) = warnings.records
    assert "rollout.n to 2 or more" in record.message


def test_after_a_sound_batch_it_no_longer_looks(warnings):
    through_verl()
    through_verl(uid=np.array(["a", "b"], dtype=object))
    assert not warnings.records


def test_a_sound_batch_does_not_warn(warnings):
    through_verl()
    assert not warnings.records


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
def test_verls_gae_points_the_right_way_in_the_laboratory(process):
    """MT-PPO's estimator with a perfect critic and λ = 1; verl whitens, which changes only the length."""
    found = measure(process, {"gae": verl_estimators()["verl gae, exact values"]}, size=2, groups=30_000)["gae"]
    assert not found.direction_biased, found
    assert found.noise_in_bias / found.scale < 0.07, "the interval is narrow enough to mean something"
