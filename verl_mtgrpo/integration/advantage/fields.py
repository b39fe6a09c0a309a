"""Pass an estimator the fields that it asks for beyond rewards, mask and group labels.

verl calls a registered estimator with rewards, mask, config and group labels only, even if its trainer has fetched
more. Our trainers (:mod:`verl_mtgrpo.integration.trainer`) fetch the fields that the estimator names as parameters and
keep them here during that one call, so that :mod:`.estimators` can pick them up.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from omegaconf import OmegaConf

from verl_mtgrpo.errors import CompatibilityError, ConfigError
from verl_mtgrpo.installed import TESTED_VERL

TOKEN_FIELDS = {
    "values": "values",
    "values_after": "values_after",
    "old_log_probs": "old_log_probs",
    "entropies": "entropy",
    "ref_log_prob": "ref_log_prob",
    "rollout_log_probs": "rollout_log_probs",
}
"""Parameter of an estimator -> verl's name of the field, one number per response token, ``(B, T)`` float.

Any other name is a field of each rollout: one of the agent loop's ``extra_fields`` (``transcript``), or else one of the
reward manager's ``reward_extra_info`` (``turn_rewards``, or ``reward_extra_info`` itself). The estimator gets it as an
object array ``(B,)``, with None for a rollout that does not have it."""

PREFIX = "mtgrpo_"
"""Our trainer modes are called this prefix followed by verl's name."""
MODES = {PREFIX + mode: mode for mode in ("sync", "colocate_async", "separate_async")}
"""Our trainer modes -> the mode of verl that each extends."""


def builds_our_buffer(config: Any) -> bool:
    """Return True if a run uses our replay buffer: in one of our trainer modes, and without a custom sampler."""
    custom = OmegaConf.select(config, "trainer.v1.sampler.custom_sampler") or {}
    ours = OmegaConf.select(config, "trainer.v1.trainer_mode") in MODES
    return ours and not (custom.get("path") and custom.get("name"))


_SOURCE = {
    "values": "critic.enable=True",
    "values_after": "critic.enable=True",
    "ref_log_prob": "actor_rollout_ref.actor.use_kl_loss=True or algorithm.use_kl_in_reward=True",
    "rollout_log_probs": "actor_rollout_ref.rollout.calculate_log_probs=True",
    "entropies": "algorithm.rollout_correction.bypass_mode=False",
}


class Provided:
    """The fields that one call may take, and what the estimator saw and returned.

    Attributes:
        fields: What the estimator may take, by name.
        taken: True if it took them.
        credit: ``token_level_rewards``, ``response_mask``, ``index``, ``advantages`` and ``returns`` of the call; None
            if none of our estimators was called.
    """

    def __init__(self, fields: Mapping[str, Any]):
        self.fields = fields
        self.taken = False
        self.credit: dict[str, Any] | None = None


_provided: ContextVar[Provided | None] = ContextVar("mtgrpo_fields", default=None)


@contextmanager
def provide(fields: Mapping[str, Any]) -> Generator[Provided]:
    """Offer these fields to the estimator that is called inside the context, and collect its result.

    Raises:
        CompatibilityError: Nothing was taken, so this version of verl does not call the estimator where we expect it.
    """
    provided = Provided(fields)
    token = _provided.set(provided)
    try:
        yield provided
    finally:
        _provided.reset(token)
    if fields and not provided.taken:
        raise CompatibilityError(
            f"verl computed advantages without a call of the estimator that needs {', '.join(fields)}",
            fix=f"verl_mtgrpo was not tested with this version of verl: install verl {TESTED_VERL}",
        )


def take(estimator: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the fields that an estimator needs; raise ``ConfigError`` if the trainer is not one of ours."""
    if not names:
        return {}
    provided = _provided.get()
    if provided is None:
        raise needs_our_trainer(estimator, names, "this one")
    provided.taken = True
    return {name: provided.fields[name] for name in names}


def tell(**credit: Any) -> None:
    """Keep an estimator's input and output, so that the trainer does not have to fetch them from the queue again."""
    if (provided := _provided.get()) is not None:
        provided.credit = credit


def needs_our_trainer(estimator: str, names: Sequence[str], mode: str) -> ConfigError:
    """Return the error for running ``estimator`` under one of verl's own trainers."""
    ours = f"trainer.v1.trainer_mode={PREFIX}{mode}" if PREFIX + mode in MODES else f"one of {', '.join(MODES)}"
    return ConfigError(
        f"algorithm.adv_estimator={estimator} needs {', '.join(names)}, which verl's trainers pass to no "
        f"registered estimator (trainer mode: {mode})",
        fix=(
            f"set {ours}, the trainer of that mode that passes them on, as our config groups of such estimators do "
            "(+mtgrpo=turn_gae, for example)"
        ),
    )


def source_of(name: str) -> str:
    """Return how to get a field, for error messages."""
    if name in TOKEN_FIELDS:
        return f"set {_SOURCE[name]}" if name in _SOURCE else "verl's trainer computes it in each step"
    return "it would come from each rollout's reward_extra_info (reward function) or extra_fields (agent loop)"
