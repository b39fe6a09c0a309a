"""Check that verl finds the plugin, and the other modules that it is told to import."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points

from verl_mtgrpo.doctor.findings import Finding, from_error
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.external_modules import MODULES, load_external_modules

GROUP, TARGET = "verl.plugins", "verl_mtgrpo.plugin"
POLICY = "VERL_USE_EXTERNAL_PLUGINS"


def entry_point() -> Iterator[Finding]:
    """Yield whether verl's plugin entry point leads to this package, and whether verl loads entry points at all.

    This reads metadata and the environment; nothing is imported.
    """
    if TARGET in os.environ.get(MODULES, "").split(","):
        yield Finding("plugin", "ok", f"{MODULES} names {TARGET}")
        return
    points = [point for point in entry_points(group=GROUP) if point.value == TARGET]
    policy = os.environ.get(POLICY, "auto").strip().lower()
    if not points:
        message = f"no installed package has an entry point of the group {GROUP} for {TARGET}, so verl does not load it"
        fix = f"{sys.executable} -m pip install verl-mtgrpo (for a checkout: pip install -e .)"
        yield Finding("plugin", "fail", message, fix)
    elif policy != "auto" and not {point.name for point in points} & set(policy.replace(" ", "").split(",")):
        message = f"the environment variable {POLICY}={policy} keeps verl from loading the entry point {points[0].name}"
        more = "" if policy == "none" else f", or add {points[0].name} to it"
        yield Finding("plugin", "fail", message, f"unset {POLICY}{more}")
    else:
        yield Finding("plugin", "ok", f"entry point {GROUP}: {points[0].name} = {TARGET}")


def external_modules() -> Iterator[Finding]:
    """Yield a failure if a module of the user's, which ``import verl`` would import, cannot be imported."""
    try:
        load_external_modules()
    except ConfigError as error:
        yield from_error("plugin", error)
