"""Forget a part of a run: its start stops with a fix, in verl's own main and with its configs."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("verl")

from omegaconf import OmegaConf

from tests.composed import composed
from tests.doctor.setups import main_ppo
from verl_mtgrpo.doctor.start_check import StartCheck
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.parts import check_parts, check_tool_file, uses_turns

pytestmark = pytest.mark.compose

ROLLOUT = "actor_rollout_ref.rollout"
LOOP, TOOL = f"{ROLLOUT}.agent.default_agent_loop", f"{ROLLOUT}.multi_turn.tool_config_path"
BY_HAND = (
    "algorithm.adv_estimator=mt_grpo",
    f"{LOOP}=mtgrpo_tool_agent",
    "reward.reward_manager.name=mtgrpo",
    f"{ROLLOUT}.multi_turn.enable=True",
    f"{TOOL}=${{mtgrpo_asset:tools/search_tool.yaml}}",
    f"{ROLLOUT}.n=4",
    "+trainer.turn.preflight=config",  # model and questions are those of verl's examples, which are not on this machine
)


@pytest.fixture(scope="module")
def by_hand():
    return composed(*BY_HAND)


@pytest.fixture(scope="module")
def stock():
    return composed()


def changed(run, *settings: str):
    run = OmegaConf.create(run)
    OmegaConf.set_struct(run, False)
    return OmegaConf.merge(run, OmegaConf.from_dotlist(list(settings)))


def test_stock_verl_is_none_of_our_business(stock):
    for more in ((), (f"{LOOP}=tool_agent", "algorithm.adv_estimator=grpo"), ("algorithm.adv_estimator=rloo",)):
        assert not uses_turns(changed(stock, *more))
    StartCheck().on_job_start(config=stock)
    StartCheck().on_job_start(config=OmegaConf.create({"another": "program"}))


def test_everything_set_by_hand_is_complete(by_hand):
    assert uses_turns(by_hand)
    StartCheck().on_job_start(config=by_hand)


@pytest.mark.parametrize("setting", BY_HAND[:3])
def test_each_part_alone_is_noticed(stock, setting):
    alone = changed(stock, setting)
    assert uses_turns(alone)
    with pytest.raises(ConfigError):
        check_parts(alone)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([f"{LOOP}=tool_agent"], rf"needs the turns that mtgrpo_tool_agent records, but {LOOP}=tool_agent; set it to"),
        (
            [f"{LOOP}=tool_agent", "reward.reward_manager.name=naive"],
            r"adv_estimator=mt_grpo gives each turn its own advantage, but .*=tool_agent pays one reward at the end",
        ),
        (
            ["reward.reward_manager.name=naive"],
            r"reward_manager.name=naive returns one number .*; set .*=mtgrpo",
        ),
        ([f"{ROLLOUT}.multi_turn.enable=False"], r"multi_turn.enable=False, but an agent needs turns; set it to True"),
        ([f"{TOOL}=null"], r"the agent has no tool, so every rollout would have one turn; set .*tool_config_path"),
        (["mtgrpo=mt_grpo"], r"mtgrpo=mt_grpo was added as a plain key: .*'hydra.searchpath=\[pkg://verl_mtgrpo"),
        (["trainer.use_v1=False"], r"verl's old trainer, which puts the sum .*; leave it True"),
        (["mtgrpo_cpu=default"], r"mtgrpo_cpu=default was added as a plain key"),
        (["mtgrpo_recipe=default"], r"mtgrpo_recipe=default was added as a plain key"),
    ],
)
def test_what_is_forgotten_is_named_with_what_to_do(by_hand, settings, message):
    with pytest.raises(ConfigError, match=message):
        check_parts(changed(by_hand, *settings))
    with pytest.raises(SystemExit, match=r"^verl_mtgrpo\.errors\.ConfigError: "):
        StartCheck().on_job_start(config=changed(by_hand, *settings))


@pytest.mark.parametrize(
    ("preset", "loop"),
    [("arpo", "mtgrpo_tree_agent"), ("mhgpo", "mtgrpo_roles_agent"), ("pair_dpo", "mtgrpo_pairs_agent")],
)
def test_a_forgotten_loop_is_named_as_the_group_has_it(preset, loop):
    for manager in ("mtgrpo", "naive"):
        with pytest.raises(ConfigError) as refused:
            check_parts(composed(f"{LOOP}=tool_agent", f"reward.reward_manager.name={manager}", preset=preset))
        assert loop in str(refused.value) and "mtgrpo_tool_agent" not in str(refused.value)


def test_turn_rewards_without_the_manager(stock):
    run = changed(stock, "reward.turn.pay=merged", "algorithm.adv_estimator=grpo")
    with pytest.raises(ConfigError, match=r"reward.turn is read by .*=mtgrpo only, but it is naive"):
        check_parts(run)


def test_parts_of_ones_own_are_not_refused(by_hand):
    check_parts(changed(by_hand, f"{LOOP}=my_loop", "reward.reward_manager.name=naive"))
    own = ["reward.reward_manager.source=importlib", "reward.reward_manager.name=MyManager"]
    check_parts(changed(by_hand, *own))
    check_parts(changed(by_hand, f"{TOOL}=null", f"{ROLLOUT}.multi_turn.function_tool_path=my_tools.py"))


def test_the_tool_config_is_there(by_hand):
    check_tool_file(by_hand)
    with pytest.raises(ConfigError, match=r"tool_config_path=/no/tool.yaml does not exist; set the path"):
        check_tool_file(changed(by_hand, f"{TOOL}=/no/tool.yaml"))
    with pytest.raises(ConfigError, match=r"no-such-tool.yaml does not exist"):
        check_tool_file(changed(by_hand, f"{TOOL}=no-such-tool.yaml"))


@pytest.mark.verl
def test_where_the_plugin_is_missing_the_documented_commands_stop(tmp_path: Path):
    """Without the group nothing of ours runs, and Hydra refuses a key without + that only our group has."""
    result = main_ppo(
        tmp_path,
        "+mtgrpo=mt_grpo",
        "reward.turn.preset=paper_v1",
        f"{ROLLOUT}.name=vllm",
        VERL_USE_EXTERNAL_PLUGINS="none",
    )
    assert result.returncode == 1
    assert "Key 'turn' is not in struct" in result.stderr
