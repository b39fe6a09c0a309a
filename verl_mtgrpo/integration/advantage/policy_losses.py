"""Register turn-level policy losses with verl, for ``actor_rollout_ref.actor.policy_loss.loss_mode``."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss
from verl.utils.torch_functional import masked_mean

from verl_mtgrpo.credit.policy_loss import turn_gspo_loss, turn_rema_loss
from verl_mtgrpo.errors import ConfigError, CreditInputError

_KEYS = {
    "clip_low": "actor_rollout_ref.actor.clip_ratio_low or actor_rollout_ref.actor.clip_ratio",
    "clip_high": "actor_rollout_ref.actor.clip_ratio_high or actor_rollout_ref.actor.clip_ratio",
    "dual_clip": "actor_rollout_ref.actor.clip_ratio_c",
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
    clips = _clips("turn_gspo", config)
    with _by_its_key():
        loss, clipped = turn_gspo_loss(log_prob, old_log_prob, advantages, response_mask, **clips)
    total = _total(loss, response_mask, loss_agg_mode, config, rollout_is_weights)
    return total, _metrics(clipped, torch.zeros_like(clipped), old_log_prob - log_prob, response_mask)


@register_policy_loss("turn_rema")
def turn_rema(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Compute ReMA's loss, a mean over turns (:func:`~verl_mtgrpo.credit.policy_loss.turn_rema_loss`).

    ``clip_ratio``, ``clip_ratio_low``, ``clip_ratio_high`` and ``clip_ratio_c``, the dual clip, are the actor's
    settings; verl's defaults of 0.2 and 3 are ReMA's. ``loss_agg_mode`` has to be ``seq-mean-token-sum``: the weights
    of turns are in the loss.
    """
    clips = _clips("turn_rema", config)
    if loss_agg_mode != "seq-mean-token-sum":
        raise ConfigError(
            f"actor_rollout_ref.actor.loss_agg_mode is {loss_agg_mode}, and turn_rema weighs turns itself",
            fix="set actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum",
        )
    with _by_its_key():
        loss, clipped, bounded = turn_rema_loss(
            log_prob, old_log_prob, advantages, response_mask, dual_clip=config.clip_ratio_c, **clips
        )
    total = _total(loss, response_mask, loss_agg_mode, config, rollout_is_weights)
    return total, _metrics(clipped, bounded, old_log_prob - log_prob, response_mask)


def _clips(name: str, config: Any) -> dict[str, float]:
    if config is None:
        raise ConfigError(f"the policy loss {name} got no actor config", expected="verl's ActorConfig as config")
    return {
        "clip_low": config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low,
        "clip_high": config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high,
    }


@contextlib.contextmanager
def _by_its_key() -> Generator[None]:
    """Name the key that set an argument which is refused."""
    try:
        yield
    except CreditInputError as error:
        if key := _KEYS.get(error.argument):
            raise ConfigError(f"{key}: {error}") from error
        raise


def _total(loss: Tensor, mask: Tensor, loss_agg_mode: str, config: Any, weights: Tensor | None) -> Tensor:
    """Return the loss weighted by verl's rollout correction, if there is one, and aggregated over the whole batch."""
    weighted = loss if weights is None else loss * weights
    return agg_loss(loss_mat=weighted, loss_mask=mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info)


def _metrics(clipped: Tensor, bounded: Tensor, log_ratio: Tensor, mask: Tensor) -> dict[str, Any]:
    return {
        "actor/pg_clipfrac": masked_mean(clipped.float(), mask).item(),
        "actor/ppo_kl": masked_mean(log_ratio.detach(), mask).item(),
        "actor/pg_clipfrac_lower": masked_mean(bounded.float(), mask).item(),
    }
