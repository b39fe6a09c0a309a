"""Offer verl's own estimators to the laboratory, for comparison."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

from verl_mtgrpo.lab import Rollouts
from verl_mtgrpo.lab.measure import Credit


def verl_estimators() -> dict[str, Credit]:
    """Return verl's ``grpo``, ``rloo``, and ``gae`` with the exact values as a perfect critic and λ = γ = 1."""
    return {
        "verl grpo": _outcome("grpo_vectorized"),
        "verl rloo": _outcome("rloo_vectorized"),
        "verl gae, exact values": _gae,
    }


def _outcome(name: str) -> Credit:
    function = get_adv_estimator_fn(name)

    def credit(rollouts: Rollouts) -> Tensor:
        config = SimpleNamespace(norm_adv_by_std_in_grpo=True)
        return function(
            token_level_rewards=rollouts.rewards.clone(),
            response_mask=rollouts.mask,
            index=rollouts.index.numpy(),
            config=config,
        )[0]

    return credit


def _gae(rollouts: Rollouts) -> Tensor:
    return get_adv_estimator_fn("gae")(
        token_level_rewards=rollouts.rewards,
        values=rollouts.values,
        response_mask=rollouts.mask,
        gamma=1.0,
        lam=1.0,
    )[0]
