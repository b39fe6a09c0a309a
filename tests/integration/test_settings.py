from dataclasses import dataclass

import pytest
from omegaconf import OmegaConf

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.credit.registry import Estimator
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.settings import (
    TurnRewardSettings,
    estimator_settings,
    trainer_turn_settings,
    turn_reward_settings,
)
from verl_mtgrpo.rewards.judge_client import JudgeSettings


def algorithm(**values):
    return OmegaConf.create({"adv_estimator": "mt_grpo", "norm_adv_by_std_in_grpo": True, **values})


DEFAULTS = {
    "mt_grpo": {"turn_coef": 1.0, "discount": 1.0, "missing_turn": "zero", "scale": "std", "epsilon": 1e-6},
    "mt_grpo_v1": {"turn_coef": 1.0, "epsilon": 1e-4},
    "turn_rloo": {"discount": 1.0, "scale": "none", "epsilon": 1e-6},
    "gtpo": {"discount": 1.0, "epsilon": 1e-6},
    "turn_reinforce_pp": {"discount": 1.0},
    "turn_gae": {"discount": 1.0, "lam": 1.0, "whiten": True},
    "bilevel_gae": {"discount": 1.0, "token_discount": 1.0, "lam": 1.0, "whiten": True},
    "turn_td": {"discount": 1.0, "whiten": True},
}


@pytest.mark.parametrize("node", [None, {}, algorithm(), algorithm(turn=None), algorithm(turn={})])
@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name, node):
    assert estimator_settings(name, node) == DEFAULTS[name]


def test_values_are_read_and_numbers_may_be_ints_or_strings():
    turn = {"turn_coef": 2, "discount": "0.9", "missing_turn": "exclude"}
    settings = estimator_settings("mt_grpo", algorithm(turn=turn))
    assert settings == DEFAULTS["mt_grpo"] | {"turn_coef": 2.0, "discount": 0.9, "missing_turn": "exclude"}


def test_verls_switch_for_the_standard_deviation_is_heeded():
    assert estimator_settings("mt_grpo", algorithm(norm_adv_by_std_in_grpo=False))["scale"] == "none"
    with pytest.raises(ConfigError, match="gtpo divides by a standard deviation by definition"):
        estimator_settings("gtpo", algorithm(norm_adv_by_std_in_grpo=False))


def test_whitening_is_turned_off_by_its_own_name():
    assert estimator_settings("turn_gae", algorithm(turn={"whiten": False}))["whiten"] is False
    with pytest.raises(ConfigError, match=r"says nothing about turn_gae; .*algorithm.turn.whiten=False"):
        estimator_settings("turn_gae", algorithm(norm_adv_by_std_in_grpo=False))
    with pytest.raises(ConfigError, match="whiten of turn_gae is 0, expected True or False"):
        estimator_settings("turn_gae", algorithm(turn={"whiten": 0}))


def test_a_dataclass_config_works_too():
    @dataclass
    class Algorithm:
        norm_adv_by_std_in_grpo: bool = False

    assert estimator_settings("turn_rloo", Algorithm())["scale"] == "none"


def test_an_unknown_key_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown keys \['gama'\]; known keys .*discount \(1.0\)"):
        estimator_settings("mt_grpo", algorithm(turn={"gama": 0.9}))


def test_a_knob_of_another_estimator_is_refused():
    with pytest.raises(ConfigError, match=r"of turn_rloo has unknown keys \['missing_turn'\]; known .*scale \(none\)"):
        estimator_settings("turn_rloo", algorithm(turn={"missing_turn": "exclude"}))


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"discount": "much"}, "algorithm.turn.discount of mt_grpo is 'much', expected a number like 1.0"),
        ({"discount": True}, "discount of mt_grpo is True"),
        ({"missing_turn": 0}, "missing_turn of mt_grpo is 0, expected a text like 'zero'"),
    ],
)
def test_values_of_the_wrong_type(turn, message):
    with pytest.raises(ConfigError, match=message):
        estimator_settings("mt_grpo", algorithm(turn=turn))


def test_a_node_that_is_no_mapping():
    with pytest.raises(ConfigError, match=r"algorithm.turn of mt_grpo is 'mt_grpo', expected a mapping"):
        estimator_settings("mt_grpo", {"turn": "mt_grpo"})


def test_reward_settings():
    assert turn_reward_settings(OmegaConf.create({"turn": {"pay": "merged"}})) == TurnRewardSettings(
        pay="merged", outcome="preset"
    )
    assert turn_reward_settings(None) == TurnRewardSettings(
        preset="paper_v1", outcome="preset", pay="turns", repeat_penalty=0.0, judge=JudgeSettings()
    )
    judge = turn_reward_settings({"turn": {"preset": "judge", "judge": {"model": "m", "retries": 2}}}).judge
    assert judge == JudgeSettings(model="m", retries=2)


@pytest.mark.parametrize(
    ("read", "turn", "message"),
    [
        (
            turn_reward_settings,
            {"judge": {"modle": "m"}},
            r"reward.turn.judge has unknown keys \['modle'\]; .*mean model",
        ),
        (
            turn_reward_settings,
            {"judge": "m"},
            "reward.turn.judge is 'm', expected a mapping of settings; set single keys instead, such as "
            "reward.turn.judge.api_key_env=OPENAI_API_KEY$",
        ),
        (turn_reward_settings, {"judge": {"timeout_s": 0}}, "judge.timeout_s is 0, expected more than 0$"),
        (turn_reward_settings, {"judge": {"retries": -1}}, "judge.retries is -1, expected at least 0$"),
        (turn_reward_settings, {"judge": {"model": None}}, "reward.turn.judge.model is null, expected a text$"),
        (
            turn_reward_settings,
            {"pay": "turn"},
            r"pay is 'turn', expected one of \('turns', .*\(did you mean turns\?\)$",
        ),
        (
            turn_reward_settings,
            {3: 4, "pays": 5},
            r"turn has unknown keys \['3', 'pays'\]; .*, judge\.\*, .*mean pay\?",
        ),
        (trainer_turn_settings, {"guards": {"steps": 0}}, "trainer.turn.guards.steps is 0, expected at least 1$"),
        (trainer_turn_settings, {"guards": {"tool_use": "few"}}, "tool_use is 'few', expected a number like 0.05$"),
        (trainer_turn_settings, {"dump": {"groups": 1.5}}, "dump.groups is 1.5, expected a whole number like 16$"),
        (trainer_turn_settings, {"dump": {"documents": "no"}}, "dump.documents is 'no', expected True or False$"),
    ],
)
def test_what_does_not_fit_is_said_with_its_whole_key(read, turn, message):
    with pytest.raises(ConfigError, match=message):
        read(OmegaConf.create({"turn": turn}))


def test_a_list_of_yaml_is_the_tuple_of_a_knob(monkeypatch):
    def of_lists(token_level_rewards, response_mask, index, *, weights=(1.0,), limit=float("inf")):
        raise NotImplementedError

    monkeypatch.setitem(ESTIMATORS, "of_lists", Estimator(of_lists, "", "", True, False))
    given = OmegaConf.create({"turn": {"weights": [0.5, 2]}})
    assert estimator_settings("of_lists", given) == {"weights": (0.5, 2), "limit": float("inf")}
