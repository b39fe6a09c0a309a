"""Compose the config groups with verl's real configs: every method and both engines; every key has a comment."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("verl")

from hydra.errors import MissingConfigException
from omegaconf import OmegaConf
from verl.trainer.ppo.utils import need_critic

import verl_mtgrpo.config
from tests.composed import composed
from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.doctor.checks import checks_at_start, examine
from verl_mtgrpo.doctor.setup import Setup
from verl_mtgrpo.integration.preflight import check_run
from verl_mtgrpo.integration.settings import estimator_settings

pytestmark = pytest.mark.compose

CONFIG = Path(verl_mtgrpo.config.__path__[0])
PRESETS = sorted(path.stem for path in (CONFIG / "mtgrpo").glob("[!_]*.yaml"))

OURS = {"primary": "mtgrpo_trainer", "module": "verl_mtgrpo.config"}


def resolved(*overrides: str, **how: str):
    run = composed(*overrides, "actor_rollout_ref.rollout.n=4", **how)
    OmegaConf.resolve(run)
    return run


def test_there_is_a_preset_for_every_method():
    baselines = {"grpo_or", "grpo_mr", "mt_ppo", "ppo_or", "ppo_mr", "mhgpo_search", "rema", "archer"}
    assert set(PRESETS) == baselines | set(ESTIMATORS)


METHODS = [
    ("grpo_or", "grpo", "outcome"),
    ("grpo_mr", "grpo", "merged"),
    ("mt_ppo", "gae", "turns"),
    ("ppo_or", "gae", "outcome"),
    ("ppo_mr", "gae", "merged"),
    ("archer", "turn_td", "turns"),
    *((name, name, "turns") for name in ESTIMATORS if name != "mhgpo"),  # which has no roles of its own
    ("mhgpo_search", "mhgpo", "turns"),
    ("rema", "mhgpo", "turns"),
]


@pytest.mark.parametrize(("preset", "estimator", "pay"), METHODS)
def test_every_preset_composes_with_verls_config(preset, estimator, pay):
    run = resolved(preset=preset)
    assert (run.algorithm.adv_estimator, run.reward.turn.pay) == (estimator, pay)
    fields = ESTIMATORS[estimator].fields if estimator in ESTIMATORS else ()
    kinds = {"node_path": "tree", "role": "roles", "pair_side": "pairs"}
    loop = next((kind for field, kind in kinds.items() if field in fields), "tool")
    assert run.actor_rollout_ref.rollout.agent.default_agent_loop == f"mtgrpo_{loop}_agent"
    check_run(run)
    findings = examine(Setup(run), checks_at_start("config"))
    assert {finding.status for finding in findings} == {"ok"}, findings
    critic = estimator == "gae" or "values" in fields or preset == "pair_rloo"  # whose critic is a discriminator
    assert need_critic(run) == critic
    if critic:
        assert run.critic.model.path == run.actor_rollout_ref.model.path
    if estimator in ESTIMATORS:
        assert set(run.algorithm.turn) == set(estimator_settings(estimator, None)), "every knob is there"


TOOLS = "actor_rollout_ref.rollout.multi_turn.function_tool_path=examples/own_tool/tools.py"


@pytest.mark.parametrize(
    ("overrides", "tool", "rewards"),
    [
        ([], "search_tool.yaml", "paper_v1"),
        ([TOOLS], "None", "tool_use"),
        ([TOOLS, "reward.turn.preset=judge"], "None", "judge"),
    ],
)
def test_a_run_with_tools_of_its_own_neither_searches_nor_is_paid_for_searching(overrides, tool, rewards):
    run = resolved(*overrides, preset="mt_grpo")
    assert str(run.actor_rollout_ref.rollout.multi_turn.tool_config_path).endswith(tool)
    assert run.reward.turn.preset == rewards


@pytest.mark.parametrize("preset", PRESETS)
def test_the_primary_config_is_verls_own_with_the_group(preset):
    assert resolved(f"mtgrpo={preset}", **OURS) == resolved(preset=preset)


@pytest.mark.parametrize("preset", PRESETS)
def test_with_megatron(preset):
    # one with no roles of its own is not complete without
    own = ("+trainer.turn.roles.names.solver={}",) if preset == "mhgpo" else ()
    run = resolved(*own, preset=preset, primary="ppo_megatron_trainer")
    loss = {"policy_loss.loss_mode": "turn_rema", "loss_agg_mode": "seq-mean-token-sum"} if preset == "rema" else {}
    losses = (f"actor_rollout_ref.actor.{key}={value}" for key, value in loss.items())
    stock = resolved(*losses, primary="ppo_megatron_trainer")
    check_run(run)
    assert {engine.strategy for engine in (run.actor_rollout_ref.actor, run.actor_rollout_ref.ref, run.critic)} == {
        "megatron"
    }
    if preset == "pair_dpo":  # a loss of its own, on any engine
        for key in ("use_kl_loss", "kl_loss_coef", "loss_agg_mode"):
            stock.actor_rollout_ref.actor[key] = run.actor_rollout_ref.actor[key]
    for part in ("critic.megatron", "critic.optim", "actor_rollout_ref.actor", "actor_rollout_ref.ref"):
        assert OmegaConf.select(run, part) == OmegaConf.select(stock, part), "the engine's own settings are not touched"
    if need_critic(run):
        assert run.critic.model.path == run.actor_rollout_ref.model.path


def test_the_primary_config_with_megatron():
    ours = resolved("mtgrpo=mt_ppo", "model_engine=megatron", **OURS)
    assert ours == resolved(preset="mt_ppo", primary="ppo_megatron_trainer")


def test_a_misspelt_method_lists_the_known_ones():
    with pytest.raises(MissingConfigException, match=r"Available options in 'mtgrpo':(.|\n)*turn_rloo"):
        composed(preset="mt_gpro")


def leaves(lines: list[str]) -> list[tuple[str, bool]]:
    """Yield every ``key: value`` line, and True if there is a comment above it or at its end."""
    found = []
    for number, line in enumerate(lines):
        key, colon, value = line.partition(":")
        if not colon or line.lstrip().startswith(("#", "-")):
            continue
        if value.strip() and not value.strip().startswith(("#", "&")):
            above = number > 0 and lines[number - 1].lstrip().startswith("#")
            found.append((key.strip(), above or " # " in value))
    return found


@pytest.mark.parametrize("file", sorted(CONFIG.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_has_a_comment(file):
    text = file.read_text()
    keys = leaves(text.split("tool_schema:")[0].splitlines())
    without = [key for key, commented in keys if not commented]
    assert not without
    assert keys


def test_the_test_above_can_fail():
    assert leaves(["a: 1", "b: 2  # two", "# three", "c: 3", "d:", "  e: 4"]) == [
        ("a", False),
        ("b", True),
        ("c", True),
        ("e", False),
    ]
