"""Warn when the run is alive but no longer learning what it should.

A guard looks at the metrics of a step (:func:`~verl_mtgrpo.watch.diagnostics.credit_health` and those of the rollouts)
and fires when its condition has held for several steps in a row, or at once if the condition is never right. It logs
one line, and logs again only if the condition clears and returns. The numbers it looks at are logged anyway.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from verl_mtgrpo.settings import Number, Settings

Metrics = Mapping[str, float]

_ROUNDING = 1e-4
"""Two means of the same rewards may differ by this much: one was added up in float32."""


class GuardSettings(Settings):
    """When a guard fires. Beyond 0 and 1 a share always or never fires its guard."""

    enable: bool = True
    """False: numbers are logged, no guard fires."""
    steps: int = Field(default=3, ge=1)
    """For how many steps in a row a condition has to hold. Wrong advantages are reported at once."""
    zero_variance: Number = 0.9
    """Fires at this share of groups whose rollouts all earned the same at every turn."""
    tool_failures: Number = 0.5
    """Fires at this share of tool calls that failed, the model's own mistakes included."""
    tool_use: Number = 0.05
    """Fires if no more than this share of the rollouts uses a tool."""
    tool_use_fall: Number = 0.5
    """Fires if tool use is below this share of the best step so far."""
    outcome_fall: Number = 0.5
    """Fires if the outcome is below this share of its best, while the rest of what is paid has risen."""


@dataclass(frozen=True)
class _Guard:
    """One condition.

    Attributes:
        name: Its name in metrics and messages.
        holds: True if the condition holds in a step, None if the step does not have the metrics to tell.
        says: Returns what is wrong and what to do, with the numbers of the step.
        at_once: True if one step is enough to fire.
    """

    name: str
    holds: Callable[[Metrics], bool | None]
    says: Callable[[Metrics], str]
    at_once: bool = False


class Guards:
    """The guards of one run, which look at its metrics once per step.

    Args:
        settings: When to fire.
        turn_rewards: True if turns are paid, so that a step without any turn reward is suspicious.
        masked_advantages: True if an advantage on a token that the model did not write is an error. verl's own ``gae``
            leaves some there, and its losses mask them.
        keys: For each guard by name, the config keys that may change what it warns of; its message lists them.
    """

    def __init__(
        self,
        settings: GuardSettings,
        *,
        turn_rewards: bool,
        masked_advantages: bool,
        keys: Mapping[str, Sequence[str]],
    ) -> None:
        self._settings, self._keys = settings, keys
        self._best_use = 0.0
        # Outcome and the rest of what was paid: of the last steps, and their means where the outcome was best.
        self._paid: deque[tuple[float, float]] = deque(maxlen=settings.steps)
        self._best_paid: tuple[float, float] | None = None
        self._streak: dict[str, int] = {}
        self._guards = self._all()
        if not turn_rewards:
            self._guards.pop("turn_rewards")
        if not masked_advantages:
            self._guards.pop("masked_advantages")

    def look(self, metrics: Metrics) -> tuple[dict[str, float], list[str]]:
        """Look at one step.

        Args:
            metrics: The metrics of the step.

        Returns:
            ``guard/<name>``, 1.0 while a guard fires and else 0.0, for each guard that had the metrics to tell; and one
            message for each guard that has just begun to fire.
        """
        if not self._settings.enable:
            return {}, []
        if (paid := _paid(metrics)) is not None:
            self._paid.append(paid)
        fired: dict[str, float] = {}
        messages: list[str] = []
        for name, guard in self._guards.items():
            holds = guard.holds(metrics)
            if holds is None:
                continue
            streak = self._streak[name] = self._streak.get(name, 0) + 1 if holds else 0
            needed = 1 if guard.at_once else self._settings.steps
            fired[f"guard/{name}"] = float(streak >= needed)
            if streak == needed:
                since = "" if needed == 1 else f"for {needed} steps: "
                keys = f" (settings: {', '.join(self._keys[name])})" if self._keys.get(name) else ""
                messages.append(f"guard {name}: {since}{guard.says(metrics)}{keys}")
        self._best_use = max(self._best_use, metrics.get("tool/used", 0.0))
        now = self._paid_now()
        if now is not None and (self._best_paid is None or now[0] > self._best_paid[0]):
            self._best_paid = now
        return fired, messages

    def _all(self) -> dict[str, _Guard]:
        at = self._settings
        guards = [
            _Guard("turn_rewards", lambda m: _compare(m, "guard/turn_rewarded", lambda x: x == 0), _no_turn_rewards),
            _Guard(
                "zero_variance",
                lambda m: _compare(m, "guard/zero_variance_groups", lambda x: x >= at.zero_variance),
                _no_variance,
            ),
            _Guard(
                "bad_advantages",
                lambda m: _compare(m, "guard/bad_advantage_tokens", bool),
                _bad_advantages,
                at_once=True,
            ),
            _Guard(
                "masked_advantages",
                lambda m: _compare(m, "guard/masked_advantage_tokens", bool),
                _masked_advantages,
                at_once=True,
            ),
            _Guard("tool_failures", self._tools_fail, _tool_failures),
            _Guard("tool_use", self._tools_unused, self._tool_use),
            _Guard("outcome", self._outcome_fell, self._outcome),
        ]
        return {guard.name: guard for guard in guards}

    def _tools_fail(self, metrics: Metrics) -> bool | None:
        share = failed_calls(metrics)
        return None if share is None else share >= self._settings.tool_failures

    def _tools_unused(self, metrics: Metrics) -> bool | None:
        few, fall = self._settings.tool_use, self._settings.tool_use_fall * self._best_use
        return _compare(metrics, "tool/used", lambda used: used <= few or used < fall)

    def _tool_use(self, metrics: Metrics) -> str:
        return (
            f"{metrics['tool/used']:.0%} of the rollouts use a tool ({self._best_use:.0%} at best, "
            f"{metrics.get('turn/count', math.nan):.1f} turns per rollout now): the policy no longer calls the tool, "
            "or never did, or its calls fail (a call that the tool reports as failed is no use; tool/calls counts "
            "every attempt). Look at rollouts (mtgrpo report). If they contain calls that were not parsed, set the "
            "format that the model writes; otherwise reward calls that work, or start from a model that calls tools"
        )

    def _paid_now(self) -> tuple[float, float] | None:
        """Return the means over the last steps of the outcome and of the rest of what was paid; None before that."""
        if len(self._paid) < self._settings.steps:
            return None
        outcomes, others = zip(*self._paid, strict=True)
        return sum(outcomes) / len(outcomes), sum(others) / len(others)

    def _outcome_fell(self, metrics: Metrics) -> bool | None:
        now, best = self._paid_now(), self._best_paid
        if now is None or best is None or _paid(metrics) is None:
            return None
        return best[0] > 0 and now[0] < self._settings.outcome_fall * best[0] and now[1] > best[1] + _ROUNDING

    def _outcome(self, metrics: Metrics) -> str:
        now, best = self._paid_now(), self._best_paid
        assert now is not None and best is not None
        return (
            f"the outcome fell to {now[0]:.2f} from {best[0]:.2f} at best, while the rest of what is paid rose from "
            f"{best[1]:.2f} to {now[1]:.2f}. This is normal for a while if the policy learns to call a tool whose "
            "results it cannot use yet. It is not if it is paid for what does not help, such as searches that find "
            "nothing: see whether tool/hit rises, and look at rollouts (mtgrpo report). Pay less for the call itself, "
            "or more for what it finds"
        )


def _paid(metrics: Metrics) -> tuple[float, float] | None:
    """Return the outcome and the rest of what is paid; None if the step does not have both."""
    outcome, paid = (metrics.get(name, math.nan) for name in ("outcome/reward", "guard/paid"))
    return None if math.isnan(outcome) or math.isnan(paid) else (outcome, paid - outcome)


def failed_calls(metrics: Metrics) -> float | None:
    """Return the share of a step's tool calls that failed; None without calls, or without these metrics."""
    calls, failures = metrics.get("tool/calls"), metrics.get("tool/failures")
    return failures / calls if calls and failures is not None else None


def _compare(metrics: Metrics, name: str, test: Callable[[float], bool]) -> bool | None:
    value = metrics.get(name)
    return None if value is None or math.isnan(value) else test(value)


def _no_turn_rewards(metrics: Metrics) -> str:
    return (
        "no rollout earned anything before its last turn, so there is no turn-level credit, only outcomes. Either no "
        f"rollout has more than one turn ({metrics.get('turn/count', math.nan):.1f} on average), or the turn rewards "
        "are not what you expect: look at rollouts (mtgrpo report), and at the components of the reward"
    )


def _no_variance(metrics: Metrics) -> str:
    return (
        f"in {metrics['guard/zero_variance_groups']:.0%} of the groups all rollouts earned the same at every turn, so "
        "there is nothing to learn from them: the questions are too easy or too hard for the policy, the sampling "
        "temperature is too low, or the reward is too coarse; more rollouts per prompt or leaving such groups out help"
    )


def _bad_advantages(metrics: Metrics) -> str:
    return (
        f"{metrics['guard/bad_advantage_tokens']:.0f} generated tokens have an advantage that is NaN or infinite: "
        "either the update is skipped, or the policy is lost. Look at the rewards (turn/<k>/reward_total), the "
        "critic's values and the estimator, and resume from the last checkpoint"
    )


def _masked_advantages(metrics: Metrics) -> str:
    return (
        f"{metrics['guard/masked_advantage_tokens']:.0f} tokens that the model did not write (tool results, padding) "
        "have an advantage; a loss that does not mask them would train on them. Fix the estimator: "
        "advantages have to be 0 where response_mask is 0"
    )


def _tool_failures(metrics: Metrics) -> str:
    worst = sorted(
        ((value, name) for name, value in metrics.items() if name.startswith("tool/errors/") and value), reverse=True
    )
    kinds = ", ".join(f"{name.removeprefix('tool/errors/')} {value:.2g}" for value, name in worst[:3])
    return (
        f"{failed_calls(metrics) or 0.0:.0%} of the tool calls fail (per rollout: {kinds or 'of unknown kind'}); "
        "timeout, unreachable, busy and server_error are failures of the search, not_carried_out are calls beyond the "
        "number that may run at once, and the others are mistakes of the model"
    )
