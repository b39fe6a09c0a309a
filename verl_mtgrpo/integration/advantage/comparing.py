"""Which estimators have the other rollouts of a prompt as their baseline, ours and verl's."""

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
    """Return whether an estimator, ours or verl's, has other rollouts of the prompt as its baseline."""
    return ESTIMATORS[estimator].compares_rollouts if estimator in ESTIMATORS else estimator in VERLS_COMPARING
