"""Settings, assets and run folders that ``mtgrpo demo`` and ``mtgrpo compare`` share."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path

from verl_mtgrpo.cpu import ROLLOUT_NAME
from verl_mtgrpo.demo.runs import Assets, RunPlan
from verl_mtgrpo.demo.training import DemoSettings
from verl_mtgrpo.demo.worlds import PAPER, WORLDS
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.launch.progress import format_duration


def add_world(parser: argparse.ArgumentParser) -> None:
    """Declare ``--world``."""
    about = "; ".join(f"{name}: {world.about}" for name, world in WORLDS.items())
    parser.add_argument("--world", choices=WORLDS, default=PAPER, help=f"{about} (default: %(default)s)")


def settings_from(steps: int | None, world: str = PAPER, lr: float | None = None) -> DemoSettings:
    """Return the world's settings; ``--steps`` goes before DEMO_STEPS goes before the world's own number.

    Args:
        steps: Training steps, if the user asked for a number.
        world: The world to train in.
        lr: Learning rate of the policy, if the user asked for one.

    Raises:
        ConfigError: The number of steps or the learning rate is not positive.
    """
    settings = WORLDS[world].training
    asked = steps if steps is not None else os.environ.get("DEMO_STEPS") or settings.steps
    try:
        count = int(asked)
    except ValueError:
        count = 0
    if count < 1:
        raise ConfigError(f"the number of training steps is {asked!r}", fix="set --steps or DEMO_STEPS to 1 or more")
    if lr is not None and not 0 < lr < float("inf"):
        raise ConfigError(f"the learning rate is {lr}", fix="set --lr to a positive number")
    return dataclasses.replace(settings, steps=count, **({} if lr is None else {"lr": lr}))


def prepare_assets(out: Path, *, seed: int, world: str = PAPER) -> Assets:
    """Return the seed's world, index and policy below ``out``, made unless they exist."""
    # OpenMP reads these when torch loads it. Spinning threads took three times the CPU time of
    # sleeping threads, on cores that do other work as well.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    from verl_mtgrpo.demo.assets import prepare_demo
    from verl_mtgrpo.demo.lake import LakeSettings, prepare_lake

    started = time.monotonic()
    folder = out / f"assets{suffix(world=world)}-seed{seed}"
    settings, turns = WORLDS[world].assets, WORLDS[world].training.assistant_turns
    if isinstance(settings, LakeSettings):
        assets = prepare_lake(folder, seed=seed, progress=True, settings=settings, turns=turns)
    else:
        assets = prepare_demo(folder, seed=seed, progress=True, settings=settings)
    took = format_duration(time.monotonic() - started)
    print(f"world and policy of seed {seed} ready after {took}: {assets.policy.parent}", flush=True)
    return assets


def plan_run(
    out: Path,
    assets: Assets,
    *,
    preset: str,
    seed: int,
    settings: DemoSettings,
    rollout: str = ROLLOUT_NAME,
    world: str = PAPER,
) -> RunPlan:
    """Return a run in its usual place below ``out``, where the demo and the comparison share it.

    A learning rate other than the demo's is part of the folder's name, so that such a run replaces no usual one.
    """
    rate = "" if settings.lr == DemoSettings.lr else f"-lr{settings.lr:g}"
    folder = out / f"{preset}{suffix(rollout, world)}{rate}-seed{seed}"
    return RunPlan(folder=folder, preset=preset, seed=seed, assets=assets, settings=settings, rollout=rollout)


def suffix(rollout: str = ROLLOUT_NAME, world: str = PAPER) -> str:
    """Return what tells the files of another rollout engine or world from those of the usual one."""
    usual = (ROLLOUT_NAME, PAPER)
    return "".join(f"-{name}" for name in (rollout, world) if name not in usual)
