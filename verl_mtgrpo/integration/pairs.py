"""What a run with ``mtgrpo_pairs_agent`` needs beyond the loop: an estimator that learns from pairs."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.several import refuse_teacher

PAIRS = "mtgrpo_pairs_agent"
"""The agent loop that returns an expert's action beside the policy's own."""
EXPERT = "expert"
"""Column of a row that holds the expert's action at the state that the row's prompt is."""
PAIR_ID, PAIR_SIDE = "pair_id", "pair_side"
"""Fields by which the two rows of a pair find each other."""

_CORRECTIONS = tuple(f"algorithm.rollout_correction.{name}" for name in ("bypass_mode", "rollout_is", "rollout_rs"))
_LOOP = "actor_rollout_ref.rollout.agent.default_agent_loop"


def learns_from_pairs(estimator: str) -> bool:
    """Return True if an estimator knows pairs."""
    return estimator in ESTIMATORS and PAIR_SIDE in ESTIMATORS[estimator].fields


def check_pairs(config: Any) -> None:
    """Raise ``ConfigError`` if pairs are made and something in the run would take each row for a rollout of its own.

    Args:
        config: verl's whole config.
    """
    estimator, loop = str(OmegaConf.select(config, "algorithm.adv_estimator")), OmegaConf.select(config, _LOOP)
    if loop == PAIRS and estimator in ESTIMATORS and not learns_from_pairs(estimator):
        raise ConfigError(
            f"{_LOOP}={PAIRS} returns an expert's action beside the policy's own, and "
            f"algorithm.adv_estimator={estimator} would take each for a rollout",
            fix=f"use an estimator that names {PAIR_SIDE} ({', '.join(filter(learns_from_pairs, ESTIMATORS))})",
        )
    if loop != PAIRS:
        return
    refuse_teacher(config, f"{PAIRS} has two, the expert's action and the policy's own")
    for key in _CORRECTIONS:
        if value := OmegaConf.select(config, key):
            raise ConfigError(
                f"{key}={value} corrects by the log-probs of the rollout engine, which has none of the expert's action",
                fix=f"leave it unset with {_LOOP}={PAIRS}",
            )
