"""List every check once: `mtgrpo doctor` prints what they find, the start of a run stops at failures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from verl_mtgrpo.doctor import (
    chat,
    cpus,
    data,
    deciders,
    dense,
    environment,
    fit,
    lengths,
    models,
    prompts,
    roles,
    services,
    tokenizer,
    tools,
    trees,
    trial,
    unused,
    values,
)
from verl_mtgrpo.doctor.findings import Finding, any_failed, from_error, one_line
from verl_mtgrpo.doctor.setup import Setup
from verl_mtgrpo.errors import AbsentError, MTGRPOError


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: The name that its lines begin with.
        look: Yields its findings. If it raises an error of this package, that is a failure too.
        needs: ``config``: nothing else; ``machine``: also files, packages or services, which this machine may lack and
            another machine of the run may have.
        at_start: True if it also runs at the start of a training run.
    """

    name: str
    look: Callable[[Setup], Iterable[Finding]]
    needs: Literal["config", "machine"] = "config"
    at_start: bool = True


CHECKS = (
    Check("compat", fit.compatible),
    Check("values", values.values),
    Check("parts", fit.parts),
    Check("estimator", fit.estimator),
    Check("rewards", fit.rewards),
    Check("batch", fit.batch),
    Check("turns", fit.turns),
    Check("trees", trees.trees),
    Check("roles", roles.roles),
    Check("dense", dense.dense),
    Check("deciders", deciders.deciders, needs="machine"),
    Check("watch", fit.watch),
    Check("unused", unused.unused),
    Check("verl", fit.verls_own, at_start=False),  # verl runs these checks itself right afterwards
    Check("engine", fit.engine, needs="machine"),
    Check("cpus", cpus.cpus, needs="machine"),
    Check("data", data.data, needs="machine"),
    Check("tools", tools.tools, needs="machine"),
    Check("environment", environment.environment, needs="machine"),
    Check("reward", trial.reward_function, needs="machine"),
    Check("models", models.models, needs="machine"),
    Check("tokenizer", tokenizer.tokenizer, needs="machine"),
    Check("chat", chat.chat, needs="machine"),
    Check("prompts", prompts.prompts, needs="machine"),
    Check("index", services.index, needs="machine"),
    Check("lengths", lengths.lengths, needs="machine"),
    Check("judge", services.judge, needs="machine"),
)
"""The checks in the order of their output; they may run in any order."""

_OWN = {
    "trainer.turn.branch": "trees",
    "trainer.turn.roles": "roles",
    "trainer.turn.dense": "dense",
    "trainer.turn.decide": "deciders",
}
"""Settings that other checks read too, and the check that they belong to."""


def named(*names: str) -> list[Check]:
    """Return the checks with these names."""
    return [check for check in CHECKS if check.name in names]


def checks_at_start(level: str = "full") -> list[Check]:
    """Return the checks at the start of a run for ``trainer.turn.preflight``: ``off``, ``config`` or ``full``."""
    asked = {"off": (), "config": ("config",), "full": ("config", "machine")}[level]
    return [check for check in CHECKS if check.at_start and check.needs in asked]


def examine(setup: Setup, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Return the findings of the checks, in the order of the table. A check that crashes does not stop a run."""
    looked = {check.name: _look(check, setup) for check in checks}
    failed = any(any_failed(findings) for findings, _ in looked.values())
    found: list[Finding] = []
    for check in CHECKS:
        findings, stumbled = looked.get(check.name, ([], None))
        found += findings
        if stumbled is not None:
            found.append(_stumbled(check, stumbled, failed))
    return list(_each_failure_once(found))


def _each_failure_once(found: Sequence[Finding]) -> Iterator[Finding]:
    """Yield the findings; of several checks that fail on a setting, that of the last one or of the setting's own."""
    kept: dict[str, Finding] = {}
    for finding in found:
        before = kept.get(finding.message)
        if finding.status == "fail" and not (before and before.check == _own_check(finding.message)):
            kept[finding.message] = finding
    yield from (finding for finding in found if finding is kept.get(finding.message, finding))


def _own_check(message: str) -> str:
    """Return the check of the setting that a message begins with; empty if any check may read it."""
    return next((check for key, check in _OWN.items() if message.startswith(key)), "")


def _look(check: Check, setup: Setup) -> tuple[list[Finding], Exception | None]:
    """Return a check's findings, and the error if it crashed with one that is not of this package."""
    found: list[Finding] = []
    try:
        found.extend(check.look(setup))
    except AbsentError as error:
        missing = from_error(check.name, error)
        found.append(setup.absent(check.name, missing.message, missing.fix))
    except MTGRPOError as error:
        found.append(from_error(check.name, error))
    except Exception as error:
        return found, error
    return found, None


def _stumbled(check: Check, error: Exception, failed: bool) -> Finding:
    """Return the finding for a check that crashed; if another check failed, the reason is probably the same."""
    what = f"{type(error).__name__}: {one_line(str(error))}"
    if failed:
        return Finding(check.name, "skip", f"could not be checked until the failures above are fixed ({what})")
    return Finding(check.name, "warn", f"could not be checked: {what}", "if the run is fine, please report this")
