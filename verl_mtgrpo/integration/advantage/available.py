"""Say which of the fields that verl computes only in some runs a run has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import OmegaConf
from verl.trainer.ppo.utils import need_critic, need_reference_policy

COMPUTED: dict[str, Callable[[Any], bool]] = {
    "values": need_critic,
    "values_after": need_critic,
    "ref_log_prob": need_reference_policy,
    "rollout_log_probs": lambda config: config.actor_rollout_ref.rollout.calculate_log_probs,
    "entropies": lambda config: not OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode"),
}
"""Fields that verl computes only in some runs -> a function that says whether it does in this one."""
