"""Read which dense rewards a run asks for (``trainer.turn.dense``), and check that it can compute them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verl.trainer.ppo.utils import need_reference_policy

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.credit.dense import ANSWER, DENSE, Dense, dense_rewards
from verl_mtgrpo.errors import ConfigError, CreditInputError
from verl_mtgrpo.integration.advantage.available import COMPUTED
from verl_mtgrpo.integration.advantage.fields import MODES, PREFIX, TOKEN_FIELDS, source_of
from verl_mtgrpo.integration.pairs import PAIRS
from verl_mtgrpo.integration.settings import read_knobs, run_turn_settings
from verl_mtgrpo.settings import Number, did_you_mean

_NUMBER: Any = Number
KEY = "trainer.turn.dense"
ONLY_REFERENCE = (
    "set actor_rollout_ref.actor.use_kl_loss=True (with actor_rollout_ref.actor.kl_loss_coef=0 if no KL is to be in "
    "the loss), which makes verl keep a reference policy"
)


@dataclass(frozen=True)
class Chosen:
    """A dense reward that a run asks for, and its settings."""

    record: Dense
    settings: Mapping[str, Any]

    def compute(self, response_mask: Any, fields: Mapping[str, Any]) -> Any:
        """Return what it adds to each turn, ``(B, K)``; an error names the config key behind a setting."""
        try:
            return dense_rewards(self.record, response_mask, fields, **self.settings)
        except CreditInputError as error:
            if error.argument in self.settings:
                raise ConfigError(f"{KEY}.{self.record.name}.{error.argument}: {error}") from error
            raise


def chosen_dense(config: Any) -> tuple[Chosen, ...]:
    """Return the dense rewards that a run asks for; raise ``ConfigError`` for an unknown name or setting.

    Args:
        config: verl's whole config.
    """
    asked = run_turn_settings(config).dense
    for name in asked:
        if name not in DENSE:
            raise ConfigError(
                f"{KEY} has unknown names {[name]}",
                fix=f"known ones: {', '.join(DENSE)}{did_you_mean(name, DENSE)}; register your own with register_dense",
            )
    return tuple(Chosen(DENSE[name], _settings(DENSE[name], values)) for name, values in asked.items())


def _settings(record: Dense, values: Any) -> dict[str, Any]:
    more: Any = {"weight": (Number, 1.0), "clip": (_NUMBER | None, None)}
    return read_knobs(record.name, record.knobs, values, f"{KEY}.{record.name}", **more)


def check_dense(config: Any) -> None:
    """Raise ``ConfigError`` if this run cannot compute the dense rewards that it asks for.

    Args:
        config: verl's whole config.
    """
    chosen = chosen_dense(config)
    if not chosen:
        return
    names = ", ".join(one.record.name for one in chosen)
    mode = config.trainer.v1.trainer_mode
    if mode not in MODES:
        ours = f"trainer.v1.trainer_mode={PREFIX}{mode}" if PREFIX + mode in MODES else f"one of {', '.join(MODES)}"
        raise ConfigError(
            f"{KEY} asks for {names}, which verl's own trainers do not compute (trainer mode: {mode})",
            fix=f"set {ours}, or leave {KEY} empty",
        )
    for one in chosen:
        _check_fields(one.record, config)
        if one.record.name == "discriminator":
            _check_discriminator(config)


def _check_discriminator(config: Any) -> None:
    """Raise ``ConfigError`` if the discriminator would have nothing to learn from, or its critic another task."""
    estimator, loop = str(config.algorithm.adv_estimator), config.actor_rollout_ref.rollout.agent.default_agent_loop
    if loop != PAIRS:
        raise ConfigError(
            f"{KEY}.discriminator learns from an expert's turns beside the policy's own, and the agent loop {loop} has "
            "none of an expert",
            fix=f"set actor_rollout_ref.rollout.agent.default_agent_loop={PAIRS}, or use +mtgrpo=pair_rloo",
        )
    fields = ESTIMATORS[estimator].fields if estimator in ESTIMATORS else ()
    if estimator == "gae" or {"values", "values_after"} & set(fields):
        raise ConfigError(
            f"{KEY}.discriminator makes the critic a classifier, and algorithm.adv_estimator={estimator} needs a "
            "critic that knows values",
            fix="set algorithm.adv_estimator=pair_rloo, or use +mtgrpo=pair_rloo",
        )


def _check_fields(record: Dense, config: Any) -> None:
    for name in record.fields:
        if name in COMPUTED and not COMPUTED[name](config):
            raise ConfigError(
                f"{KEY}.{record.name} needs {name}, which this run does not have",
                fix=ONLY_REFERENCE if name == "ref_log_prob" else source_of(name),
            )
        if name == ANSWER:
            _check_probe(record, config)
        elif name not in TOKEN_FIELDS:
            raise ConfigError(
                f"the dense reward {record.name} asks for {name}",
                expected=f"some of {', '.join([*TOKEN_FIELDS, ANSWER])}",
            )


def _check_probe(record: Dense, config: Any) -> None:
    probe = run_turn_settings(config).probe
    if probe.by == "reference" and not need_reference_policy(config):
        raise ConfigError(
            f"{KEY}.{record.name} with trainer.turn.probe.by=reference needs a reference policy, which this run does "
            "not have",
            fix=f"{ONLY_REFERENCE}; or set trainer.turn.probe.by=policy",
        )
