"""Refuse a KL penalty in the reward (``algorithm.use_kl_in_reward``) for estimators that would distort it.

An estimator that divides by the standard deviation of a *group* turns any difference between its rollouts, however
small, into advantages of about 1. Often all rollouts of a group earn the same, especially at a single turn. Then they
differ only in the KL penalty, or in rounding between actor and reference: with a coefficient of 1e-3, eight equal
rollouts get advantages of ±0.7 to ±1.3 from that alone. The penalty also loses its weight, because it is divided by
the same standard deviation as the reward.

RLHF keeps the two apart (Ziegler et al., arXiv 1909.08593, and Ouyang et al., arXiv 2203.02155: the reward is
normalised first, the KL penalty keeps its own coefficient), and so does GRPO (arXiv 2402.03300, equation 3: the KL is a
term of the loss, outside the normalised advantage). verl has that term: ``actor_rollout_ref.actor.use_kl_loss``.
The KL may be in the reward if the estimator does not divide (``turn_rloo``, ``mt_grpo`` with ``scale=none``), divides
by the standard deviation of the whole batch (``turn_reinforce_pp``), or has a critic.
"""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.settings import estimator_settings

VERLS_DIVIDING = ("grpo", "grpo_vectorized")
"""verl's estimators that divide by the standard deviation of a group's totals, unless
``norm_adv_by_std_in_grpo=False``."""

INSTEAD = (
    "set algorithm.use_kl_in_reward=False and actor_rollout_ref.actor.use_kl_loss=True with "
    "actor_rollout_ref.actor.kl_loss_coef, as in GRPO, where the KL keeps its weight"
)


def check_kl(config: Any) -> None:
    """Raise ``ConfigError`` if one of our estimators would divide the KL penalty by a group's standard deviation.

    Args:
        config: verl's whole config.
    """
    estimator = config.algorithm.adv_estimator
    if not OmegaConf.select(config, "algorithm.use_kl_in_reward") or estimator not in ESTIMATORS:
        return
    settings = estimator_settings(estimator, config.algorithm)
    if ESTIMATORS[estimator].divides(settings):
        centred = ", or algorithm.turn.scale=none, which only centres" if "scale" in settings else ""
        raise ConfigError(
            f"algorithm.use_kl_in_reward=True with algorithm.adv_estimator={estimator}, which divides by the standard "
            "deviation of a group: if all rollouts of a prompt earned the same, differences in the KL alone would "
            "become advantages of size 1",
            fix=f"{INSTEAD}{centred}",
        )


def kl_noise_of_verls(config: Any) -> str | None:
    """Return a warning if one of *verl's* estimators divides the KL penalty in this way, else None.

    This is not an error: verl allows it and the user may want it. It also matters less here, because the totals of
    whole rollouts are equal less often than the rewards of one turn.
    """
    algorithm = config.algorithm
    divides = algorithm.adv_estimator in VERLS_DIVIDING and algorithm.get("norm_adv_by_std_in_grpo", True)
    if not divides or not OmegaConf.select(config, "algorithm.use_kl_in_reward"):
        return None
    return (
        f"verl's {algorithm.adv_estimator} divides the KL in the reward by the standard deviation of a group: if "
        "all rollouts of a prompt earned the same, the KL alone becomes advantages of size 1"
    )
