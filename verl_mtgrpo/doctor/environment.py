"""Try the environment of a run: load it, begin two episodes of the first row, and take one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from verl_mtgrpo.doctor.chat import prompt_ids
from verl_mtgrpo.doctor.findings import Finding, from_error, one_line
from verl_mtgrpo.doctor.setup import ROLLOUT, Setup
from verl_mtgrpo.environments import Observation
from verl_mtgrpo.environments.episode import Episode, seed_of
from verl_mtgrpo.environments.loading import load_environment
from verl_mtgrpo.errors import ConfigError, EnvironmentFailed
from verl_mtgrpo.integration.environments import ENV, environment_settings
from verl_mtgrpo.threads import run_apart

CHECK = "environment"
TURN = "?"
"""The turn that is tried: hardly an action anywhere, which an environment has to answer too."""


def environment(setup: Setup) -> Iterator[Finding]:
    """Yield whether the environment can be loaded and played, and whether its first observation fits."""
    if setup.get(f"{ROLLOUT}.agent.default_agent_loop") != ENV:
        return
    try:
        settings = environment_settings(setup.config)
    except ConfigError:
        return  # what is wrong with settings is said once, by the check of the config
    if not settings.name:
        return
    try:
        make = load_environment(settings.name, settings.options)
    except ConfigError as error:
        missing = from_error(CHECK, error)
        yield setup.absent(CHECK, missing.message, missing.fix)
        return
    if not setup.rows:
        yield Finding(CHECK, "ok", f"{settings.name} can be loaded (not played: no row could be read)")
        return
    key = str(setup.get("data.prompt_key") or "prompt")
    row = {**setup.rows[0], "raw_prompt": setup.rows[0].get(key)}
    row["seed"] = seed_of(row, settings.seed)
    limit = min(settings.timeout_s, setup.patience_s or settings.timeout_s)
    try:
        first, again, step = run_apart(_tried(make, row, limit))
    except EnvironmentFailed as error:
        message = f"with the first row {settings.name} fails: {one_line(error.found)}"
        yield Finding(CHECK, "fail", message, error.fix or "every rollout would be left out of the update: correct it")
        return
    problems = [*_same_start(settings.name, first, again), *_fits(setup, row, first)]
    said = f"{settings.name} begins with {len(first.text)} characters; the turn {TURN!r} earns {step.reward:g}"
    yield from problems or [Finding(CHECK, "ok", f"{said}{' and ends the episode' if step.done else ''}")]


async def _tried(
    make: Callable[[], Any], row: dict[str, Any], limit: float
) -> tuple[Observation, Observation, Observation]:
    """Return the first observations of two episodes of one row, and the answer to a turn."""
    episodes = [Episode(make, limit) for _ in range(2)]
    try:
        first, again = [await episode.reset(row) for episode in episodes]
        return first, again, await episodes[0].step(TURN)
    finally:
        for episode in episodes:
            await episode.close()


def _same_start(name: str, first: Observation, again: Observation) -> Iterator[Finding]:
    if first.text != again.text:
        message = f"two episodes of {name} with the same seed begin differently, so the rollouts of a group would too"
        yield Finding(CHECK, "warn", message, 'draw what is random at the start from row["seed"] in reset')


def _fits(setup: Setup, row: dict[str, Any], first: Observation) -> Iterator[Finding]:
    """Yield a failure if the prompt is too long with the first observation: such rollouts are left out."""
    from verl_mtgrpo.integration.rollout.env_loop import with_observation

    if setup.builder is None or not isinstance(row["raw_prompt"], list):
        return
    length = len(prompt_ids(setup, with_observation(row["raw_prompt"], first.text)))
    room = int(setup.get(f"{ROLLOUT}.prompt_length"))
    if length > room:
        message = f"with its first observation the first prompt has {length} tokens, data.max_prompt_length={room}"
        yield Finding(CHECK, "fail", message, f"set data.max_prompt_length={length} or more")
