"""Settings, assets and run folders that ``mtgrpo demo`` and ``mtgrpo compare`` share."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

from verl_mtgrpo.cpu import ROLLOUT_NAME
from verl_mtgrpo.demo.runs import Assets, RunPlan
from verl_mtgrpo.demo.training import DemoSettings
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.launch.progress import format_duration


def settings_from(steps: int | None) -> DemoSettings:
    """Return the demo's settings; ``--steps`` overrides DEMO_STEPS, which overrides the default.

    Raises:
        ConfigError: The number of steps is not positive.
    """
    asked = steps if steps is not None else os.environ.get("DEMO_STEPS") or DemoSettings.steps
    try:
        count = int(asked)
    except ValueError:
        count = 0
    if count < 1:
        raise ConfigError(f"the number of training steps is {asked!r}", fix="set --steps or DEMO_STEPS to 1 or more")
    return dataclasses.replace(DemoSettings(), steps=count)


def prepare_assets(out: Path, *, seed: int) -> Assets:
    """Return the seed's world, index and policy below ``out``; make them if they do not exist."""
    # OpenMP reads these when torch loads it. Spinning threads took three times the CPU time of
    # sleeping threads, on cores that do other work as well.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    from verl_mtgrpo.demo.assets import prepare_demo

    started = time.monotonic()
    assets = prepare_demo(out / f"assets-seed{seed}", seed=seed, progress=True)
    took = format_duration(time.monotonic() - started)
    print(f"world, index and policy of seed {seed} ready after {took}: {assets.policy.parent}", flush=True)
    return assets


def plan_run(
    out: Path, assets: Assets, *, preset: str, seed: int, settings: DemoSettings, rollout: str = ROLLOUT_NAME
) -> RunPlan:
    """Return the plan of a run in its usual folder below ``out``, which the demo and the comparison share."""
    folder = out / f"{preset}{suffix(rollout)}-seed{seed}"
    return RunPlan(folder=folder, preset=preset, seed=seed, assets=assets, settings=settings, rollout=rollout)


def suffix(rollout: str) -> str:
    """Return the suffix for files of a rollout engine other than the default."""
    return "" if rollout == ROLLOUT_NAME else f"-{rollout}"
