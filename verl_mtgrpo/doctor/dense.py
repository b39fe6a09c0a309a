"""Check that a run can compute the dense rewards that it asks for, and that they do what they seem to."""

from __future__ import annotations

from collections.abc import Iterator

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.credit.dense import ANSWER
from verl_mtgrpo.doctor.findings import Finding
from verl_mtgrpo.doctor.setup import Setup
from verl_mtgrpo.integration.advantage.kl_in_reward import VERLS_DIVIDING
from verl_mtgrpo.integration.dense import KEY, Chosen, check_dense, chosen_dense
from verl_mtgrpo.integration.settings import ProbeSettings, estimator_settings, trainer_turn_settings


def dense(setup: Setup) -> Iterator[Finding]:
    """Yield what does not fit, and which dense rewards are added; nothing in a run without any."""
    chosen = chosen_dense(setup.config)
    yield from _unread_probe(setup, chosen)
    check_dense(setup.config)
    if not chosen:
        return
    problems = [*_against_kl(setup, chosen), *_divided(setup, chosen)]
    yield from problems
    if not problems:
        names = ", ".join(f"{one.record.name} times {one.settings['weight']:g}" for one in chosen)
        yield Finding("dense", "ok", f"added to what turns are paid: {names}")


def _unread_probe(setup: Setup, chosen: tuple[Chosen, ...]) -> Iterator[Finding]:
    """Warn of settings of the probe that nothing reads."""
    settings = trainer_turn_settings(setup.get("trainer")).probe
    if settings != ProbeSettings() and not any(ANSWER in one.record.fields for one in chosen):
        message = f"trainer.turn.probe is not read: no dense reward of {KEY} measures the gold answer"
        yield Finding("dense", "warn", message, f"add '+{KEY}.information_gain.weight=1.0', or leave it alone")


def _against_kl(setup: Setup, chosen: tuple[Chosen, ...]) -> Iterator[Finding]:
    """Warn if the reward contains the same log ratio twice, with opposite signs."""
    if setup.get("algorithm.use_kl_in_reward") and any(one.record.name == "implicit" for one in chosen):
        message = f"{KEY}.implicit pays the log ratio that algorithm.use_kl_in_reward=True takes away"
        fix = "set algorithm.use_kl_in_reward=False (actor_rollout_ref.actor.use_kl_loss=True keeps the reference)"
        yield Finding("dense", "warn", message, fix)


def _divided(setup: Setup, chosen: tuple[Chosen, ...]) -> Iterator[Finding]:
    """Warn if the estimator gives differences of a dense reward the same size, however small they are."""
    name = str(setup.get("algorithm.adv_estimator"))
    if name in ESTIMATORS:
        divides = ESTIMATORS[name].divides(estimator_settings(name, setup.get("algorithm")))
    else:
        divides = name in VERLS_DIVIDING and setup.get("algorithm.norm_adv_by_std_in_grpo") is not False
    if divides:
        names = ", ".join(one.record.name for one in chosen)
        message = (
            f"algorithm.adv_estimator={name} divides by the standard deviation of a group: where rollouts were paid "
            f"the same, differences in {names} alone become advantages of size 1, whatever their weight"
        )
        fix = "use an estimator that only centres (+mtgrpo=turn_rloo, or algorithm.turn.scale=none)"
        yield Finding("dense", "warn", message, f"{fix}; if it is intended, leave it")
