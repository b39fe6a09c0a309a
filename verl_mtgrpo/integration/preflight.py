"""Cheap checks of a run's config, done before the first rollout."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import AdvantageEstimator

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.settings import TurnRewardSettings, estimator_settings, turn_reward_settings
from verl_mtgrpo.rewards import PRESETS
from verl_mtgrpo.rewards.formats import text_format

JUDGED_BY = "pkg://verl_mtgrpo.rewards.judge"
"""What ``reward.custom_reward_function.path`` says when the judge is verl's own generative reward model."""
WITHOUT_GROUPS = ("turn_reinforce_pp",)
"""Our estimators that do not compare the rollouts of a prompt."""


def check_run(config: Any) -> None:
    """Raise ``ConfigError`` if parts of the run do not fit together.

    Args:
        config: verl's whole config.
    """
    _check_rewards(config)
    rollout = config.actor_rollout_ref.rollout
    estimator = config.algorithm.adv_estimator
    _check_estimator(estimator, config.algorithm)
    if estimator in ESTIMATORS and estimator not in WITHOUT_GROUPS and rollout.n < 2:
        raise ConfigError(
            f"algorithm.adv_estimator={estimator} compares the rollouts of a prompt, but "
            f"actor_rollout_ref.rollout.n={rollout.n}; set it to 2 or more (the paper uses 21)"
        )
    loop = rollout.agent.default_agent_loop
    if loop not in ("mtgrpo_tool_agent", "mtgrpo_raw_agent"):
        raise ConfigError(
            f"reward.reward_manager.name=mtgrpo needs the turns that mtgrpo_tool_agent records, but "
            f"actor_rollout_ref.rollout.agent.default_agent_loop={loop}; set it to mtgrpo_tool_agent"
        )
    sampler = OmegaConf.select(config, "trainer.v1.sampler.custom_sampler.path") or ""
    filtering = OmegaConf.select(config, "algorithm.filter_groups.enable")
    told = OmegaConf.select(config, "trainer.v1.sampler.sampler_kwargs.filter_groups")
    if filtering and sampler.endswith("verl_mtgrpo.integration.sampler") and told is None:
        raise ConfigError(
            "algorithm.filter_groups does nothing here: verl tells custom samplers nothing of it. Take the config "
            "group +mtgrpo=..., or set under trainer.v1.sampler.sampler_kwargs: "
            "+filter_groups='${algorithm.filter_groups}' and +train_batch_size='${data.train_batch_size}'"
        )


def check_tokenizer(tokenizer: Any) -> None:
    """Raise ``ConfigError`` if prompts cannot be rendered with this tokenizer."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError(
            f"the tokenizer of {getattr(tokenizer, 'name_or_path', None) or 'this model'} has no chat template, so "
            "prompts and tool results cannot be rendered; use an instruct model, or give a Jinja template by "
            "actor_rollout_ref.model.custom_chat_template"
        )


def _check_estimator(estimator: str, algorithm: Any) -> None:
    if estimator in ESTIMATORS:
        estimator_settings(estimator, algorithm)
    elif algorithm.get("turn") and estimator in list(AdvantageEstimator):
        raise ConfigError(
            f"algorithm.adv_estimator={estimator} is verl's own and does not read algorithm.turn "
            f"({', '.join(algorithm.turn)}); remove these keys or choose one of {', '.join(ESTIMATORS)}"
        )


def _check_reward_model(config: Any, settings: TurnRewardSettings, own: str | None) -> None:
    if not OmegaConf.select(config, "reward.reward_model.enable"):
        return
    if not own:
        raise ConfigError(
            "reward.reward_model.enable=True without a reward function makes verl use the model as a classifier, and "
            f"the reward manager mtgrpo is never asked. For a judge set reward.custom_reward_function.path={JUDGED_BY} "
            "reward.custom_reward_function.name=scored_by_judge reward.turn.preset=judge; else "
            "reward.reward_model.enable=False"
        )
    if own == JUDGED_BY and settings.preset != "judge":
        raise ConfigError(f"reward.custom_reward_function.path={own} goes with reward.turn.preset=judge only")


def _check_rewards(config: Any) -> None:
    settings = turn_reward_settings(config.reward)
    own = OmegaConf.select(config, "reward.custom_reward_function.path")
    _check_reward_model(config, settings, own)
    if own and settings.outcome == "preset" and own != JUDGED_BY:
        raise ConfigError(
            f"reward.custom_reward_function.path={own} would not be used: the outcome reward comes from the preset "
            f"{settings.preset}; set reward.turn.outcome=compute_score, or remove it"
        )
    spoken = config.actor_rollout_ref.rollout.multi_turn.format
    if settings.preset in PRESETS:
        text_format(spoken)
