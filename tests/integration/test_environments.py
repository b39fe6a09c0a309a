"""The group ``mtgrpo_env`` with verl's config and every method, and what cannot go with an environment."""

from __future__ import annotations

import pytest

pytest.importorskip("verl")

from omegaconf import OmegaConf

from tests.composed import composed
from verl_mtgrpo.config import group_names
from verl_mtgrpo.doctor.checks import checks_at_start, examine
from verl_mtgrpo.doctor.setup import Setup
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.environments import environment_settings
from verl_mtgrpo.integration.parts import check_parts
from verl_mtgrpo.integration.preflight import check_run

pytestmark = pytest.mark.compose

NAME = "trainer.turn.environment.name=tests.environments.counting:Counting"
TURNS = "actor_rollout_ref.rollout.multi_turn"
TREES = [name for name in group_names() if name in ("arpo", "at2po", "tree_grpo") or name.endswith("_tree")]


def run(*overrides: str, preset: str = "mt_grpo"):
    made = composed("+mtgrpo_env=default", "actor_rollout_ref.rollout.n=4", *overrides, preset=preset)
    OmegaConf.resolve(made)
    return made


@pytest.mark.parametrize("preset", sorted(set(group_names()) - set(TREES) - {"mhgpo_search", "rema", "pair_rloo"}))
def test_it_goes_with_every_method(preset):
    made = run(NAME, preset=preset)
    check_run(made)
    findings = examine(Setup(made), checks_at_start("config"))
    # Without roles, an estimator that compares within roles is verl's grpo: the doctor says so.
    warned = [finding.check for finding in findings if finding.status != "ok"]
    assert warned == (["roles"] if preset == "mhgpo" else []), findings
    assert made.actor_rollout_ref.rollout.agent.default_agent_loop == "mtgrpo_env_agent"
    assert (made.reward.turn.preset, made.actor_rollout_ref.rollout.multi_turn.tool_config_path) == ("env", None)


def test_options_are_keyword_arguments():
    one = environment_settings(run(NAME, "+trainer.turn.environment.options.goal=7"))
    both = environment_settings(run(NAME, "+trainer.turn.environment.options={goal: 7, at: 2}"))
    assert (one.options, both.options, one.role) == ({"goal": 7}, {"goal": 7, "at": 2}, "user")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "mtgrpo_env_agent has no environment; set trainer.turn.environment.name to a packaged one"),
        ([NAME, f"{TURNS}.function_tool_path=tools.py"], "function_tool_path=tools.py, but in an environment each"),
        ([NAME, f"{TURNS}.format=search_r1"], "format=search_r1 cuts turns at its own tags.*format=hermes"),
        ([NAME, "actor_rollout_ref.rollout.agent.default_agent_loop=mtgrpo_tool_agent",
          f"{TURNS}.tool_config_path=x.yaml"], "plays no environment; add .mtgrpo_env=default after"),
        ([NAME, f"{TURNS}.enable=False"], "enable=False, but an agent needs turns"),
        ([NAME, "trainer.turn.environment.timeout_s=0"], "timeout_s is 0, expected more than 0"),
        ([NAME, "trainer.turn.environment.role=system"], "role is 'system', expected one of .*user.*tool"),
        ([NAME, "+trainer.turn.environment.option=1"], r"unknown keys \['option'\].*did you mean options"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_parts(run(*overrides))


@pytest.mark.parametrize("preset", ["mhgpo_search", "rema"])
def test_roles_do_not_play_in_an_environment(preset):
    with pytest.raises(ConfigError, match=r"trainer.turn.roles names roles, but .*mtgrpo_env_agent plays none"):
        check_parts(run(NAME, preset=preset))


@pytest.mark.parametrize("preset", TREES)
def test_trees_do_not_grow_in_an_environment(preset):
    with pytest.raises(ConfigError, match="mtgrpo_env_agent grows no trees"):
        check_parts(run(NAME, preset=preset))
