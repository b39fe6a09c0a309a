"""Which fields an estimator may ask for beyond rewards, mask and group labels, and how they reach it.

verl calls a registered estimator with rewards, mask, config and group labels, whatever else its trainer has fetched.
Our trainers (:mod:`verl_mtgrpo.integration.trainer`) fetch what the estimator names as a parameter and leave it here
for the time of that one call; :mod:`.estimators` takes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from verl_mtgrpo.errors import CompatibilityError, ConfigError

TOKEN_FIELDS = {
    "values": "values",
    "old_log_probs": "old_log_probs",
    "entropies": "entropy",
    "ref_log_prob": "ref_log_prob",
    "rollout_log_probs": "rollout_log_probs",
}
"""Parameter of an estimator -> verl's name of the field, one number per response token, ``(B, T)`` float.

Any other name is a field of each rollout, of the agent loop's ``extra_fields`` (``transcript``) or else of the reward
manager's ``reward_extra_info`` (``turn_rewards``, ``reward_extra_info`` itself); it comes as an object array ``(B,)``,
None for a rollout without it."""

PREFIX = "mtgrpo_"
"""What stands before verl's name of a trainer mode in ours."""
MODES = {PREFIX + mode: mode for mode in ("sync", "colocate_async", "separate_async")}
"""Our trainer modes -> verl's mode that each extends."""

_SOURCE = {
    "values": "critic.enable=True",
    "ref_log_prob": "actor_rollout_ref.actor.use_kl_loss=True or algorithm.use_kl_in_reward=True",
    "rollout_log_probs": "actor_rollout_ref.rollout.calculate_log_probs=True",
    "entropies": "algorithm.rollout_correction.bypass_mode=False",
}


class Provided:
    """The fields of one call, and what the estimator saw and returned.

    Attributes:
        fields: By name, what the estimator may take.
        taken: Whether it did.
        credit: ``token_level_rewards``, ``response_mask``, ``index``, ``advantages`` and ``returns`` of the call; None
            if no estimator of ours was called.
    """

    def __init__(self, fields: Mapping[str, Any]):
        self.fields = fields
        self.taken = False
        self.credit: dict[str, Any] | None = None


_provided: ContextVar[Provided | None] = ContextVar("mtgrpo_fields", default=None)


@contextmanager
def provide(fields: Mapping[str, Any]) -> Iterator[Provided]:
    """Let the estimator that is called inside take these fields, and say what it made of the batch.

    Raises:
        CompatibilityError: nothing was taken, so this verl did not call the estimator where it was expected to.
    """
    provided = Provided(fields)
    token = _provided.set(provided)
    try:
        yield provided
    finally:
        _provided.reset(token)
    if fields and not provided.taken:
        raise CompatibilityError(
            f"verl did not call the estimator that needs {', '.join(fields)} while it computed advantages; this "
            "version of verl is not one that verl_mtgrpo was tested with: install verl 0.9.1"
        )


def take(estimator: str, names: Sequence[str]) -> dict[str, Any]:
    """The fields that an estimator needs, in a call from one of our trainers; ``ConfigError`` from another one."""
    if not names:
        return {}
    provided = _provided.get()
    if provided is None:
        raise ConfigError(needs_our_trainer(estimator, names, "this one"))
    provided.taken = True
    return {name: provided.fields[name] for name in names}


def tell(**credit: Any) -> None:
    """Keep what an estimator saw and returned for the trainer, which would have to fetch it from the queue again."""
    if (provided := _provided.get()) is not None:
        provided.credit = credit


def needs_our_trainer(estimator: str, names: Sequence[str], mode: str) -> str:
    """What to say to somebody who runs ``estimator`` under one of verl's own trainers."""
    ours = f"trainer.v1.trainer_mode={PREFIX}{mode}" if PREFIX + mode in MODES else f"one of {', '.join(MODES)}"
    return (
        f"algorithm.adv_estimator={estimator} needs {', '.join(names)}, which verl's own trainers give to no "
        f"registered estimator (trainer mode: {mode}); set {ours}, verl's trainer of that mode that passes "
        "them on; the config groups +mtgrpo=turn_gae and +mtgrpo=bilevel_gae do"
    )


def source_of(name: str) -> str:
    """What makes a field exist, for error messages."""
    if name in TOKEN_FIELDS:
        return f"set {_SOURCE[name]}" if name in _SOURCE else "verl's trainer computes it in every step"
    return "it would come from each rollout's reward_extra_info (reward function) or extra_fields (agent loop)"
