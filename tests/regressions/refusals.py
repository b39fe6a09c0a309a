"""Run single checks of the doctor on a set-up with one change."""

from __future__ import annotations

from collections.abc import Iterable

from tests.doctor.setups import Healthy
from verl_mtgrpo.doctor.checks import examine, named
from verl_mtgrpo.doctor.compose import CommandLine, compose_config
from verl_mtgrpo.doctor.findings import Finding
from verl_mtgrpo.doctor.setup import Setup

GROUPS = ("hydra.searchpath=[pkg://verl_mtgrpo.config]", "+mtgrpo=mt_grpo", "+mtgrpo_cpu=default")


def look(healthy: Healthy, *overrides: str, checks: Iterable[str]) -> list[Finding]:
    """Return the findings of these checks for the set-up with these overrides."""
    config = compose_config(CommandLine((*GROUPS, *healthy.overrides, *overrides)))
    return examine(Setup(config), named(*checks))


def status(found: list[Finding], check: str) -> str:
    """Return the worst status of a check."""
    order = ("fail", "warn", "skip", "ok")
    return min((one.status for one in found if one.check == check), key=order.index, default="nothing")
