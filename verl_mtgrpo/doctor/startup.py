"""The list of checks of a run: `mtgrpo doctor` prints all findings, the start of a run stops at failures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from verl_mtgrpo.doctor import (
    chat,
    cpus,
    data,
    fit,
    lengths,
    models,
    prompts,
    services,
    tools,
    trial,
    unused,
    values,
)
from verl_mtgrpo.doctor.findings import Finding, any_failed, from_error, one_line
from verl_mtgrpo.doctor.setup import Setup
from verl_mtgrpo.errors import MTGRPOError


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What its line begins with.
        look: Does it. An error of this package that it raises is a failure.
        opens: Whether it opens files, loads the tokenizer or asks services.
    """

    name: str
    look: Callable[[Setup], Iterable[Finding]]
    opens: bool = False


CHECKS = (
    Check("compat", fit.compatible),
    Check("values", values.values),
    Check("parts", fit.parts),
    Check("estimator", fit.estimator),
    Check("rewards", fit.rewards),
    Check("batch", fit.batch),
    Check("turns", fit.turns),
    Check("watch", fit.watch),
    Check("unused", unused.unused),
    Check("engine", fit.engine, opens=True),
    Check("cpus", cpus.cpus, opens=True),
    Check("data", data.data, opens=True),
    Check("tools", tools.tools, opens=True),
    Check("reward", trial.reward_function, opens=True),
    Check("models", models.models, opens=True),
    Check("tokenizer", chat.tokenizer, opens=True),
    Check("chat", chat.chat, opens=True),
    Check("prompts", prompts.prompts, opens=True),
    Check("index", services.index, opens=True),
    Check("lengths", lengths.lengths, opens=True),
    Check("judge", services.judge, opens=True),
)
"""In this order, because some use what others have found."""
_CONFIG = sum(not check.opens for check in CHECKS)
DOCTOR = (*CHECKS[:_CONFIG], Check("verl", fit.verls_own), *CHECKS[_CONFIG:])
"""For `mtgrpo doctor` also what verl checks itself, right after this, when a run starts."""


def examine(setup: Setup, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """What the checks say. One that fails in a way of its own says so, and does not stop a run.

    Where another has failed before, it most likely stumbles over the same, and there is nothing to report.
    """
    found: list[Finding] = []
    for check in checks:
        try:
            found += check.look(setup)
        except MTGRPOError as error:
            failed = from_error(check.name, error)
            # Several checks read the same settings; the last one is the one that they belong to.
            found = [*(one for one in found if one.message != failed.message), failed]
        except Exception as error:
            what = f"{type(error).__name__}: {one_line(str(error))}"
            if any_failed(found):
                message = f"could not be checked before what has failed is repaired ({what})"
                found.append(Finding(check.name, "skip", message))
            else:
                fix = "if the run is fine, please report this"
                found.append(Finding(check.name, "warn", f"could not be checked: {what}", fix))
    return found


def checks_of(level: str) -> tuple[Check, ...]:
    """The checks of a run's start, by ``trainer.turn.preflight``."""
    if level == "off":
        return ()
    return tuple(check for check in CHECKS if level == "full" or not check.opens)
