"""List the estimators, ours and verl's, whose baseline is the other rollouts of the prompt."""

from __future__ import annotations

from verl_mtgrpo.credit import ESTIMATORS

VERLS_COMPARING = (
    "gdpo",
    "gpg",
    "grpo",
    "grpo_passk",
    "grpo_vectorized",
    "opo",
    "optimal_token_baseline",
    "reinforce_plus_plus_baseline",
    "rloo",
    "rloo_vectorized",
    "tir_optimal_token_baseline",
)
"""verl's own estimators whose baseline is the other rollouts of the prompt."""


def compares(estimator: str) -> bool:
    """Return True if an estimator, ours or verl's, uses other rollouts of the prompt as its baseline."""
    return ESTIMATORS[estimator].compares_rollouts if estimator in ESTIMATORS else estimator in VERLS_COMPARING
