"""Registers the turn-level estimators in verl's registry (``algorithm.adv_estimator=...``).

Each is a thin wrapper: settings from ``algorithm.turn``, the equation from ``verl_mtgrpo.credit``.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

from verl_mtgrpo.credit import mt_grpo_credit
from verl_mtgrpo.credit.mt_grpo import TurnCredit
from verl_mtgrpo.errors import CreditInputError
from verl_mtgrpo.integration.settings import turn_credit_settings

logger = logging.getLogger(__name__)
_warned: set[str] = set()


@register_adv_est("mt_grpo")
def mt_grpo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: np.ndarray | None = None,
    config: Any = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """``algorithm.adv_estimator=mt_grpo``: see :func:`verl_mtgrpo.credit.mt_grpo`.

    Called by verl's trainer with ``(B, T)`` rewards and mask, the ``uid`` of each row and the
    ``algorithm`` config node.
    """
    if index is None:
        raise CreditInputError("mt_grpo got no group labels (index); expected verl's uid, one per rollout")
    settings = turn_credit_settings(config)
    credit = mt_grpo_credit(token_level_rewards, response_mask, index, **settings.__dict__)
    _warn_if_pointless("mt_grpo", credit, index)
    advantages = credit.turns.spread(credit.advantage_BK)
    return advantages, advantages


def _warn_if_pointless(name: str, credit: TurnCredit, index: np.ndarray) -> None:
    """Warn, once per process and kind, about batches in which turn-level credit cannot do anything."""
    intermediate = credit.reward_BK.masked_fill(credit.turns.last_BK, 0.0)
    if not intermediate.any():
        _warn_once(
            f"{name}: no rollout of this batch got a turn reward, so {name} only sees outcomes. The agent "
            "loop is probably not mtgrpo_tool_agent or the reward manager not mtgrpo: set "
            "actor_rollout_ref.rollout.agent.default_agent_loop=mtgrpo_tool_agent and "
            "reward.reward_manager.name=mtgrpo (or the group +mtgrpo=mt_grpo, which sets both)."
        )
    if len(set(index.tolist())) == len(index):
        _warn_once(
            f"{name}: every group has one rollout, so there is no baseline and advantages are raw rewards. "
            "Set actor_rollout_ref.rollout.n to 2 or more (the paper uses 21)."
        )


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        logger.warning(message)
