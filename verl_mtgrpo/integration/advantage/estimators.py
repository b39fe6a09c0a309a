"""Register the turn-level estimators with verl (``algorithm.adv_estimator=NAME``), your own ones too.

Each is a thin wrapper: the settings come from ``algorithm.turn``, the equation from :mod:`verl_mtgrpo.credit`, and
any fields beyond rewards, mask and group labels from the trainer (:mod:`.fields`).

Register your own estimator (:func:`verl_mtgrpo.credit.register_estimator`) in a module that every process loads with
verl: ``VERL_USE_EXTERNAL_MODULES=my_module``. The module may also register agent loops, and may import anything from
verl before or after that. Fields beyond rewards, mask and group labels need one of our trainer modes, such as
``trainer.v1.trainer_mode=mtgrpo_sync``.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from torch import Tensor
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, register_adv_est

from verl_mtgrpo.credit import ESTIMATORS, Estimator, segment_turns
from verl_mtgrpo.credit.registry import follow_estimators
from verl_mtgrpo.errors import ConfigError, CreditInputError
from verl_mtgrpo.integration.advantage.fields import take, tell
from verl_mtgrpo.integration.settings import estimator_settings

logger = logging.getLogger(__name__)
_warned: set[str] = set()
_sound: set[str] = set()
_OURS = "_mtgrpo_estimator"
"""Attribute that tells our wrappers from verl's own estimators in verl's registry."""


def _register(record: Estimator) -> None:
    """Register a wrapper that looks the estimator up at each call, so that it also works after a reload."""
    name = record.name
    if name in ADV_ESTIMATOR_REGISTRY:
        if not hasattr(ADV_ESTIMATOR_REGISTRY[name], _OURS):
            raise ConfigError(f"verl has an estimator {name} already, which would be hidden", fix="rename the function")
        return

    def estimator(
        token_level_rewards: Tensor,
        response_mask: Tensor,
        index: np.ndarray | None = None,
        config: Any = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        if index is None:
            raise CreditInputError(f"{name} got no group labels (index)", expected="verl's uid, one per rollout")
        settings = estimator_settings(name, config)
        fields = take(name, ESTIMATORS[name].fields)
        try:
            advantages, returns = ESTIMATORS[name](token_level_rewards, response_mask, index, **fields, **settings)
        except CreditInputError as error:
            if key := _key_behind(error.argument, name):
                raise CreditInputError(f"{error} ({key})") from error
            raise
        tell(
            token_level_rewards=token_level_rewards,
            response_mask=response_mask,
            index=index,
            advantages=advantages,
            returns=returns,
        )
        if not getattr(config, "use_kl_in_reward", False):  # a KL penalty looks like a reward for every turn
            _warn_if_pointless(name, token_level_rewards, response_mask, index)
        return advantages, returns

    estimator.__name__ = estimator.__qualname__ = name
    estimator.__doc__ = f"""Compute ``algorithm.adv_estimator={name}``: see :func:`{record.function.__module__}.{name}`.

    Called by verl's trainer with ``(B, T)`` rewards and mask, the ``uid`` of each row and the
    ``algorithm`` config node.
    """
    setattr(estimator, _OURS, True)
    register_adv_est(name)(estimator)


follow_estimators(_register)


def _key_behind(argument: str, name: str) -> str:
    """Return a hint at the config key that sets an argument of the estimator; empty if no key does.

    The estimator itself cannot name the key, because it knows only its arguments.
    """
    if argument in ESTIMATORS[name].knobs:
        return f"set by algorithm.turn.{argument}"
    return "the critic's learning rate is critic.optim.lr" if argument == "values" else ""


def _warn_if_pointless(name: str, token_level_rewards: Tensor, response_mask: Tensor, index: np.ndarray) -> None:
    """Warn once per process and kind of problem if turn-level credit has no effect in this batch.

    After the first sound batch nothing is checked any more, to save the time.
    """
    if name in _sound or not len(index):
        return
    turns = segment_turns(response_mask)
    intermediate = turns.sum_over_turns(token_level_rewards).masked_fill(turns.last_BK, 0.0).any()
    groups = not ESTIMATORS[name].compares_rollouts or len(set(index.tolist())) < len(index)
    if not intermediate:
        _warn_once(
            f"{name}: no rollout of this batch got a turn reward, so {name} sees only outcomes. The "
            "agent loop is probably not mtgrpo_tool_agent, or the reward manager not mtgrpo: set "
            "actor_rollout_ref.rollout.agent.default_agent_loop=mtgrpo_tool_agent and "
            "reward.reward_manager.name=mtgrpo (or the group +mtgrpo=mt_grpo, which sets both)."
        )
    if not groups:
        _warn_once(
            f"{name}: every group has one rollout, so there is no baseline and advantages are raw rewards. "
            "Set actor_rollout_ref.rollout.n to 2 or more (the paper uses 21)."
        )
    if intermediate and groups:
        _sound.add(name)


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        logger.warning(message)
