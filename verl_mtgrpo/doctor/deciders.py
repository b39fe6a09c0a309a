"""Check that turns are decided as they are meant to be, and say what the update learns from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from verl_mtgrpo.deciders import KEY, make_decider
from verl_mtgrpo.deciders.settings import DecideSettings
from verl_mtgrpo.doctor.findings import Finding
from verl_mtgrpo.doctor.setup import Setup
from verl_mtgrpo.integration.decide import check_decide, decide_settings
from verl_mtgrpo.launch.command import hydra_value
from verl_mtgrpo.own_code import load_own, misfit

_SCORED = ("when", "score")
READS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "best": (*_SCORED, "candidates"),
    "posterior": (*_SCORED, "candidates", "alpha", "seed"),
    "retry": (*_SCORED, "threshold", "retries", "feedback", "rejected", "penalty"),
}
"""``trainer.turn.decide.by`` -> the other keys of ``trainer.turn.decide`` that it reads."""


def deciders(setup: Setup) -> Iterator[Finding]:
    """Yield what does not fit, and how turns are decided; nothing in a run without any of it."""
    settings = decide_settings(setup.config)
    yield from _unread(settings)
    check_decide(setup.config)
    if settings.by == "none":
        return
    make_decider(settings, _asks_nobody)  # loads a scorer or a class of the user's
    if problem := _misfit(settings):
        yield problem
        return
    yield from _learns_from_accepted(settings)
    scored = f", scored by {settings.score}" if settings.score else ""
    yield Finding("deciders", "ok", f"turns are decided by {settings.by}{scored}, in {_where(settings)}")


def _asks_nobody(*_: Any) -> Any:
    return _asks_nobody


def _where(settings: DecideSettings) -> str:
    return "training and validation" if settings.when == "always" else settings.when


def _unread(settings: DecideSettings) -> Iterator[Finding]:
    """Warn of settings that this decider does not read."""
    read = {*READS.get(settings.by, DecideSettings.model_fields), "by"}
    for key, field in DecideSettings.model_fields.items():
        value: Any = getattr(settings, key)
        if key not in read and value != field.default:
            message = f"{KEY}.{key}={value} is not read with {KEY}.by={settings.by}"
            readers = ", ".join(by for by, keys in READS.items() if key in keys) or "a class of your own"
            fix = f"leave it at {hydra_value(field.default)}, or set by to {readers}"
            yield Finding("deciders", "warn", message, fix)


def _misfit(settings: DecideSettings) -> Finding | None:
    """Return what is wrong if the user's scorer cannot take what it is given; it is not called: it may cost money."""
    if ":" not in settings.score:
        return None
    problem = misfit(load_own(settings.score, f"{KEY}.score", "function"), None, None)
    fix = "make it take the transcript so far and the proposed turn"
    return Finding("deciders", "fail", f"{KEY}.score={settings.score} {problem}", fix) if problem else None


def _learns_from_accepted(settings: DecideSettings) -> Iterator[Finding]:
    """Warn if the update sees accepted attempts alone."""
    masks = settings.by == "retry" and settings.threshold is not None and settings.rejected == "mask"
    if masks and settings.when != "validation":
        message = f"{KEY}.rejected=mask: the update learns from attempts that were good enough alone, which favours "
        message += "what the scorer accepts, whatever was paid"
        fix = f"set {KEY}.rejected=train, which is an unbiased update; if it is intended, leave it"
        yield Finding("deciders", "warn", message, fix)
