from dataclasses import dataclass

import pytest
from omegaconf import OmegaConf

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.settings import (
    TurnCreditSettings,
    TurnRewardSettings,
    turn_credit_settings,
    turn_reward_settings,
)


def algorithm(**values):
    return OmegaConf.create({"adv_estimator": "mt_grpo", "norm_adv_by_std_in_grpo": True, **values})


@pytest.mark.parametrize("node", [None, {}, algorithm(), algorithm(turn=None), algorithm(turn={})])
def test_defaults(node):
    assert turn_credit_settings(node) == TurnCreditSettings(1.0, 1.0, "zero", "std", 1e-6)


def test_values_are_read_and_numbers_may_be_ints_or_strings():
    settings = turn_credit_settings(algorithm(turn={"turn_coef": 2, "discount": "0.9", "missing_turn": "exclude"}))
    assert settings == TurnCreditSettings(turn_coef=2.0, discount=0.9, missing_turn="exclude")


def test_verls_switch_for_the_standard_deviation_is_heeded():
    assert turn_credit_settings(algorithm(norm_adv_by_std_in_grpo=False)).scale == "none"


def test_a_dataclass_config_works_too():
    @dataclass
    class Algorithm:
        norm_adv_by_std_in_grpo: bool = False

    assert turn_credit_settings(Algorithm()).scale == "none"


def test_an_unknown_key_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown keys \['gama'\]; known keys .*discount \(1.0\)"):
        turn_credit_settings(algorithm(turn={"gama": 0.9}))


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"discount": "much"}, "algorithm.turn.discount is 'much', expected a float like 1.0"),
        ({"discount": True}, "algorithm.turn.discount is True"),
        ({"missing_turn": 0}, "algorithm.turn.missing_turn is 0, expected a str like 'zero'"),
    ],
)
def test_values_of_the_wrong_type(turn, message):
    with pytest.raises(ConfigError, match=message):
        turn_credit_settings(algorithm(turn=turn))


def test_a_node_that_is_no_mapping():
    with pytest.raises(ConfigError, match=r"algorithm.turn is 'mt_grpo', expected a mapping"):
        turn_credit_settings({"turn": "mt_grpo"})


def test_reward_settings():
    assert turn_reward_settings(OmegaConf.create({"turn": {"pay": "merged"}})) == TurnRewardSettings(pay="merged")
    assert turn_reward_settings(None) == TurnRewardSettings("paper_v1", "turns")
    with pytest.raises(ConfigError, match=r"reward.turn.pay is 'never', expected one of"):
        turn_reward_settings({"turn": {"pay": "never"}})
