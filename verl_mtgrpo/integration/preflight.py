"""Check a run's config before the first rollout, without opening anything."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import AdvantageEstimator

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.advantage.available import COMPUTED
from verl_mtgrpo.integration.advantage.comparing import compares
from verl_mtgrpo.integration.advantage.fields import MODES, needs_our_trainer, source_of
from verl_mtgrpo.integration.advantage.kl_in_reward import check_kl
from verl_mtgrpo.integration.advantage.knobs import is_ours, try_knobs
from verl_mtgrpo.integration.dense import check_dense
from verl_mtgrpo.integration.intent import check_preset, check_signs, overridden
from verl_mtgrpo.integration.parts import check_parts
from verl_mtgrpo.integration.settings import (
    JUDGED_BY,
    TurnRewardSettings,
    estimator_settings,
    turn_reward_settings,
)
from verl_mtgrpo.rewards import JUDGES, NEED_RULES, load_preset
from verl_mtgrpo.rewards.any_tool.settings import ToolUseSettings
from verl_mtgrpo.rewards.formats import text_format
from verl_mtgrpo.rewards.judge_client import check_judge_settings, check_rubrics


def only_validates(config: Any) -> bool:
    """Return True if the run ends after the validation before its first step, so that it neither compares nor learns.

    verl reads ``trainer.val_only`` only in that validation, so without ``val_before_train`` it trains.
    """
    select = OmegaConf.select
    return bool(select(config, "trainer.val_only") and select(config, "trainer.val_before_train"))


def group_of_one(config: Any) -> ConfigError | None:
    """Return an error if the estimator compares rollouts but there is only one per prompt, in a run that trains."""
    estimator, n = config.algorithm.adv_estimator, config.actor_rollout_ref.rollout.n
    if not compares(estimator) or n >= 2 or only_validates(config):
        return None
    return ConfigError(
        f"algorithm.adv_estimator={estimator} compares the rollouts of a prompt, but actor_rollout_ref.rollout.n={n}",
        fix="set it to 2 or more (the paper uses 21)",
    )


def check_group_size(config: Any) -> None:
    """Raise ``ConfigError`` if one of our estimators has nothing to compare; verl accepts that for its own."""
    problem = group_of_one(config)
    if problem and config.algorithm.adv_estimator in ESTIMATORS:
        raise problem


def check_filtering(config: Any) -> None:
    """Raise ``ConfigError`` if ``algorithm.filter_groups`` is on without a metric."""
    select = OmegaConf.select
    if select(config, "algorithm.filter_groups.enable") and not select(config, "algorithm.filter_groups.metric"):
        raise ConfigError(
            "algorithm.filter_groups.enable=True without a metric",
            fix=(
                "set algorithm.filter_groups.metric to turn_pattern (what each turn was paid), reward (the total), or "
                "a name that the reward gives for every rollout, such as outcome/em"
            ),
        )


def check_tokenizer(tokenizer: Any) -> None:
    """Raise ``ConfigError`` if prompts cannot be rendered with this tokenizer."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError(
            f"the tokenizer of {getattr(tokenizer, 'name_or_path', None) or 'this model'} has no chat template, so "
            "prompts and tool results cannot be rendered",
            fix="use an instruct model, or set actor_rollout_ref.model.custom_chat_template to a Jinja template",
        )


def check_estimator(config: Any) -> None:
    """Raise ``ConfigError`` if the estimator's settings are wrong, or if this run lacks something that it needs.

    Args:
        config: verl's whole config.
    """
    algorithm = config.algorithm
    estimator = algorithm.adv_estimator
    if estimator in ESTIMATORS:
        settings = estimator_settings(estimator, algorithm)
        if is_ours(estimator):  # one of the user's may have side effects
            try_knobs(estimator, settings)
        check_kl(config)
        _check_fields(estimator, ESTIMATORS[estimator].fields, config)
        _check_rejection(estimator, config)
    elif estimator == AdvantageEstimator.GAE and config.critic.enable is False:
        raise ConfigError(
            "algorithm.adv_estimator=gae learns from a critic, but critic.enable=False",
            fix="set critic.enable=True, or use an estimator without a critic, such as +mtgrpo=mt_grpo",
        )
    elif algorithm.get("turn") and estimator in list(AdvantageEstimator) and not overridden(config):
        raise ConfigError(
            f"algorithm.adv_estimator={estimator} is one of verl's and does not read algorithm.turn "
            f"({', '.join(algorithm.turn)})",
            fix=(
                "remove these keys ('~algorithm.turn' removes those of a group) or choose one of "
                f"{', '.join(ESTIMATORS)}"
            ),
        )


def _check_fields(estimator: str, names: tuple[str, ...], config: Any) -> None:
    """Raise ``ConfigError`` if the trainer cannot give the estimator the fields that it asks for."""
    mode = config.trainer.v1.trainer_mode
    if names and mode not in MODES:
        raise needs_our_trainer(estimator, names, mode)
    for name in names:
        if name in COMPUTED and not COMPUTED[name](config):
            raise ConfigError(
                f"algorithm.adv_estimator={estimator} needs {name}, which this run does not have",
                fix=source_of(name),
            )
    if "values" in names and (config.algorithm.gamma, config.algorithm.lam) != (1.0, 1.0):
        raise ConfigError(
            f"algorithm.gamma={config.algorithm.gamma} and algorithm.lam={config.algorithm.lam} are read by verl's "
            "gae only",
            fix=(
                f"{estimator} counts turns: set algorithm.turn.discount and algorithm.turn.lam instead, and leave "
                "these at 1.0"
            ),
        )


def _check_rejection(estimator: str, config: Any) -> None:
    """Raise ``ConfigError`` if rejected tokens would be removed from the mask in which the estimator finds turns.

    verl's rollout correction removes rejected tokens from ``response_mask`` before it computes advantages (but not in
    bypass mode). A token removed from the middle of a turn splits the turn in two; the last token takes the turn's
    reward with it. Rejecting whole rollouts (``seq_…``) is harmless: they are treated like dropped ones.
    """
    rejecting = str(OmegaConf.select(config, "algorithm.rollout_correction.rollout_rs") or "")
    bypassed = OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode")
    by_token = [one.strip() for one in rejecting.split(",") if one.strip().startswith("token")]
    if by_token and not bypassed:
        raise ConfigError(
            f"algorithm.rollout_correction.rollout_rs={rejecting} removes single tokens from response_mask, from "
            f"which {estimator} reads the turns",
            fix=(
                "reject whole rollouts instead (seq_mean_k1, ...), or correct by weights "
                "(algorithm.rollout_correction.rollout_is)"
            ),
        )


def _check_reward_model(config: Any, settings: TurnRewardSettings, own: str | None) -> None:
    if not OmegaConf.select(config, "reward.reward_model.enable"):
        return
    if not own:
        raise ConfigError(
            "reward.reward_model.enable=True without a reward function makes verl use the model as a classifier, so "
            "the reward manager mtgrpo is never called",
            fix=(
                f"for a judge set reward.custom_reward_function.path={JUDGED_BY} "
                "reward.custom_reward_function.name=scored_by_judge reward.turn.preset=judge (or judge_paper), else "
                "reward.reward_model.enable=False"
            ),
        )
    if own == JUDGED_BY and settings.preset not in JUDGES:
        raise ConfigError(
            f"reward.custom_reward_function.path={own} is never called without a judge",
            fix="set reward.turn.preset=judge or judge_paper, or remove it",
        )
    # This holds for every preset: verl then scores a batch after sampling, from prompts and responses alone.
    if not OmegaConf.select(config, "reward.reward_model.enable_resource_pool"):
        raise ConfigError(
            "reward.reward_model.enable_resource_pool=False shares the policy's GPUs with the reward model, so verl "
            "calls it after sampling, without the turns that the reward manager mtgrpo scores",
            fix=(
                "give it separate GPUs (reward.reward_model.enable_resource_pool=True with "
                "reward.reward_model.n_gpus_per_node and nnodes), or serve the judge outside the run "
                "(reward.reward_model.enable=False and reward.turn.judge.base_url=...)"
            ),
        )


def check_rewards(config: Any) -> None:
    """Raise ``ConfigError`` if the settings under ``reward`` do not fit together."""
    settings = turn_reward_settings(config.reward)
    own = OmegaConf.select(config, "reward.custom_reward_function.path")
    _check_reward_model(config, settings, own)
    if settings.preset in JUDGES:
        check_rubrics(settings.judge, settings.preset)
        if not OmegaConf.select(config, "reward.reward_model.enable"):
            check_judge_settings(settings.judge, settings.preset)
    elif ":" not in settings.preset:
        load_preset(settings.preset)
    if own and settings.outcome == "preset" and own != JUDGED_BY:
        raise ConfigError(
            f"reward.custom_reward_function.path={own} would not be used: the outcome reward comes from the preset "
            f"{settings.preset}",
            fix="set reward.turn.outcome=auto, or remove it",
        )
    if own == JUDGED_BY and settings.outcome == "compute_score":
        raise ConfigError(
            f"reward.turn.outcome=compute_score calls reward.custom_reward_function.path={own}, which only stands in "
            "for the judge and scores nothing",
            fix="set reward.turn.outcome=preset: the judge scores the outcome too",
        )
    if settings.solution != "turns" and settings.outcome != "compute_score":
        raise ConfigError(
            f"reward.turn.solution={settings.solution} would not be used: the outcome reward comes from the preset "
            f"{settings.preset}",
            fix="set reward.turn.outcome=compute_score, or leave it at turns",
        )
    _check_tool_use(settings)
    spoken = config.actor_rollout_ref.rollout.multi_turn.format
    if settings.preset in NEED_RULES:
        text_format(spoken)


def _check_tool_use(settings: TurnRewardSettings) -> None:
    own = settings.preset == "tool_use"
    changed = [name for name, value in settings.tool_use if value != getattr(ToolUseSettings(), name)]
    if changed and not own:
        raise ConfigError(
            f"reward.turn.tool_use.{changed[0]} would not be used: the turn rewards come from the preset "
            f"{settings.preset}",
            fix="set reward.turn.preset=tool_use, or leave reward.turn.tool_use alone",
        )
    if own and settings.repeat_penalty:
        raise ConfigError(
            f"reward.turn.repeat_penalty={settings.repeat_penalty:g} counts repeated searches only, and the preset "
            "tool_use has a price of its own for repeated calls of any tool",
            fix="set reward.turn.tool_use.repeat_price instead, and reward.turn.repeat_penalty=0",
        )


OF_ESTIMATOR = (check_preset, check_signs, check_estimator, check_group_size, check_filtering)
"""The checks of an estimator. If the first one fails, the others may complain about settings of another estimator."""


def check_run(config: Any) -> None:
    """Raise ``ConfigError`` if parts of the run do not fit together.

    Args:
        config: verl's whole config.
    """
    check_parts(config)
    for check in OF_ESTIMATOR:
        check(config)
    check_dense(config)
    if config.reward.reward_manager.name == "mtgrpo":
        check_rewards(config)
