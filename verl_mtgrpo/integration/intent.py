"""Refuse settings that would work but are probably a mistake, unless ``trainer.turn.on_purpose`` names the key.

The most common mistake is a leftover. A value on the command line wins over a config group, so ``+mtgrpo=mt_ppo`` at
the end of an old recipe with ``algorithm.adv_estimator=grpo`` would train GRPO on merged rewards, with a critic that is
never used. Each group therefore writes its name into ``trainer.turn.preset``, and we compare the run's settings with
those of the packaged file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.core_algos import AdvantageEstimator

from verl_mtgrpo.config import group_names, packaged
from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.advantage.knobs import is_ours
from verl_mtgrpo.integration.parts import pays_turns
from verl_mtgrpo.integration.settings import (
    PAY,
    TurnRewardSettings,
    trainer_turn_settings,
    turn_reward_settings,
)

_SAME = {"grpo_vectorized": "grpo"}
"""Estimators of verl that compute the same as another one."""
_ESTIMATOR, _CRITIC, _PAY = "algorithm.adv_estimator", "critic.enable", "reward.turn.pay"


@dataclass(frozen=True)
class Override:
    """A value of a group that was replaced by another one.

    Attributes:
        key: The setting.
        wanted: The group's value, or verl's default if the group sets none.
        got: The run's value.
        why: The consequence.
    """

    key: str
    wanted: Any
    got: Any
    why: str


def check_preset(config: Any) -> None:
    """Raise ``ConfigError`` if an essential setting of the config group was overridden, and not on purpose.

    Args:
        config: verl's whole config.
    """
    settings = trainer_turn_settings(OmegaConf.select(config, "trainer"))
    for one in overridden(config):
        name = settings.preset
        here = {_ESTIMATOR: OmegaConf.select(config, _ESTIMATOR), one.key: one.got}
        others = [
            group for group in group_names() if all(_value(packaged(group), key) == got for key, got in here.items())
        ]
        instead = f", or use the group that goes with it (+mtgrpo={' or '.join(others)})" if others else ""
        raise ConfigError(
            f"+mtgrpo={name} stands for {one.key}={one.wanted}, but {one.key}={one.got} on the command line (or in "
            f"your config) overrides the group: {one.why}",
            fix=f"remove {one.key}={one.got}{instead}. If it is intended, add 'trainer.turn.on_purpose=[{one.key}]'",
        )


def check_signs(config: Any) -> None:
    """Raise ``ConfigError`` for a weight below 0, which reverses the meaning of a reward, unless it is on purpose."""
    meant = trainer_turn_settings(OmegaConf.select(config, "trainer")).on_purpose
    coef = OmegaConf.select(config, "algorithm.turn.turn_coef")
    penalty = turn_reward_settings(OmegaConf.select(config, "reward")).repeat_penalty
    weights = {
        "algorithm.turn.turn_coef": (coef, "turns that earned more than others would be made less likely"),
        "reward.turn.repeat_penalty": (penalty, "a search that repeats an earlier one would be paid for"),
    }
    for key, (weight, effect) in weights.items():
        if isinstance(weight, int | float) and weight < 0 and key not in meant:
            raise ConfigError(
                f"{key}={weight} is below 0: {effect}",
                fix=(
                    f"set it to 0 or more. If it is intended, add 'trainer.turn.on_purpose=[{key}]' (with + in front "
                    "if no config group is used)"
                ),
            )


def overridden(config: Any) -> list[Override]:
    """Return the settings that differ from the run's config group without being declared as intended."""
    settings = trainer_turn_settings(OmegaConf.select(config, "trainer"))
    if settings.preset not in group_names():  # everything is set by hand, or by a custom group with another name
        return []
    found = _differences(config, packaged(settings.preset), settings.preset)
    return [one for one in found if one.key not in settings.on_purpose]


def _differences(config: Any, group: DictConfig, name: str) -> Iterator[Override]:
    estimator, wanted = OmegaConf.select(config, _ESTIMATOR), _value(group, _ESTIMATOR)
    leftover = estimator in list(AdvantageEstimator) or (estimator in ESTIMATORS and is_ours(estimator))
    if leftover and _SAME.get(estimator, estimator) != wanted:  # an estimator of the user's is no leftover
        why = f"it would train {estimator} with the rewards and settings of {name}"
        yield Override(_ESTIMATOR, wanted, estimator, why)
    pay = OmegaConf.select(config, _PAY) or TurnRewardSettings().pay  # the default, if the node was removed
    # A value that does not exist is refused where it is read.
    if pays_turns(config) and pay in PAY and pay != _value(group, _PAY):
        yield Override(_PAY, _value(group, _PAY), pay, f"the rewards paid would not be those that {name} learns from")
    critic, has = _value(group, _CRITIC), OmegaConf.select(config, _CRITIC)
    needs = "values" in ESTIMATORS[str(estimator)].fields if estimator in ESTIMATORS else critic
    if has and not needs and not critic and (estimator in ESTIMATORS or estimator == wanted):
        yield Override(_CRITIC, needs, has, "a critic would be trained but not used")


def _value(group: DictConfig, key: str) -> Any:
    found = OmegaConf.select(group, key)
    if key == _CRITIC and found is None:  # verl then decides by the estimator
        return OmegaConf.select(group, _ESTIMATOR) == "gae"
    return found
