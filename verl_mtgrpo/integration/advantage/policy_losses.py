"""Register the turn-level policy loss with verl: ``actor_rollout_ref.actor.policy_loss.loss_mode=turn_gspo``."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss
from verl.utils.torch_functional import masked_mean

from verl_mtgrpo.credit.policy_loss import turn_gspo_loss
from verl_mtgrpo.errors import ConfigError, CreditInputError

_KEYS = {
    "clip_low": "actor_rollout_ref.actor.clip_ratio_low or actor_rollout_ref.actor.clip_ratio",
    "clip_high": "actor_rollout_ref.actor.clip_ratio_high or actor_rollout_ref.actor.clip_ratio",
}


@register_policy_loss("turn_gspo")
def turn_gspo(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Compute GSPO with a ratio per turn (:func:`~verl_mtgrpo.credit.policy_loss.turn_gspo_loss`), aggregated by verl.

    ``clip_ratio``, ``clip_ratio_low`` and ``clip_ratio_high`` are the actor's settings. GSPO clips at a few 1e-4 (3e-4
    and 4e-4 in its paper), because a geometric mean moves far less than the ratio of one token; with verl's default of
    0.2, hardly anything is ever clipped. ``loss_agg_mode`` is the actor's setting as well; GSPO's paper uses
    ``seq-mean-token-mean``.
    """
    if config is None:
        raise ConfigError("the policy loss turn_gspo got no actor config", expected="verl's ActorConfig as config")
    low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    try:
        loss, clipped = turn_gspo_loss(log_prob, old_log_prob, advantages, response_mask, clip_low=low, clip_high=high)
    except CreditInputError as error:
        if key := _KEYS.get(error.argument):
            raise ConfigError(f"{key}: {error}") from error
        raise
    if rollout_is_weights is not None:
        loss = loss * rollout_is_weights
    total = agg_loss(loss_mat=loss, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info)
    metrics = {
        "actor/pg_clipfrac": masked_mean(clipped.float(), response_mask).item(),
        "actor/ppo_kl": masked_mean((old_log_prob - log_prob).detach(), response_mask).item(),
        "actor/pg_clipfrac_lower": 0.0,
    }
    return total, metrics
