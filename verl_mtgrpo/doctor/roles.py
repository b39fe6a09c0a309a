"""Check that roles fit the run that plays them, and say what a prompt becomes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from verl_mtgrpo.doctor.findings import Finding
from verl_mtgrpo.doctor.setup import MULTI_TURN, ROLLOUT, Setup
from verl_mtgrpo.integration.roles import ROLES, cast_of, check_roles, knows_roles, outputs_per_prompt, plays_roles
from verl_mtgrpo.launch.command import hydra_value
from verl_mtgrpo.roles import Cast, RolesSettings
from verl_mtgrpo.roles.prompts import texts_in

_ROLES = "trainer.turn.roles"
READS: Mapping[str, tuple[str, ...]] = {
    "chain": ("sampling", "seed"),
    "graph": ("sampling", "seed"),
    "alternate": ("rounds", "finish", "finish_role", "unfinished"),
}
"""``trainer.turn.roles.order`` -> the keys that only it reads."""


def roles(setup: Setup) -> Iterator[Finding]:
    """Yield what does not fit, and what the roles are; nothing in a run without any."""
    check_roles(setup.config)
    if not plays_roles(setup.config):
        yield from _without_roles(setup)
        return
    cast = cast_of(setup.config)
    problems = [*_unread(cast), *_too_long(setup, cast), *_few_turns(setup, cast)]
    yield from problems
    if not problems:
        yield _line(setup, cast)


def _without_roles(setup: Setup) -> Iterator[Finding]:
    """Warn of an estimator for roles in a run of an agent loop of ours that plays none."""
    name, loop = str(setup.get("algorithm.adv_estimator")), str(setup.get(f"{ROLLOUT}.agent.default_agent_loop"))
    if not knows_roles(name) or not loop.startswith("mtgrpo_"):
        return  # a loop of the user's own may write role itself
    what = ": all rollouts of a prompt are one role's, which is verl's grpo with default settings" * (name == "mhgpo")
    message = f"algorithm.adv_estimator={name} compares outputs of roles, but {loop} plays no roles{what}"
    fix = f"set {ROLLOUT}.agent.default_agent_loop={ROLES} and {_ROLES}.file, or choose another estimator"
    yield Finding("roles", "warn", message, fix)


def _unread(cast: Cast) -> Iterator[Finding]:
    """Warn of settings that this order does not read."""
    read = READS[cast.settings.order]
    for key, field in RolesSettings.model_fields.items():
        value: Any = getattr(cast.settings, key)
        readers = [order for order, keys in READS.items() if key in keys]
        if readers and key not in read and value != field.default:
            message = f"{_ROLES}.{key}={value} is not read with {_ROLES}.order={cast.settings.order}"
            fix = f"leave it at {hydra_value(field.default)}, or set order={readers[0]}"
            yield Finding("roles", "warn", message, fix)
    if cast.talks and cast.settings.unfinished != "score" and not cast.settings.finish:
        message = f"{_ROLES}.unfinished={cast.settings.unfinished}, but without {_ROLES}.finish only a full row ends a "
        yield Finding("roles", "warn", f"{message}conversation early", f"set {_ROLES}.finish, such as [FINISH]")


def _too_long(setup: Setup, cast: Cast) -> Iterator[Finding]:
    """Warn if what others write may not fit a role's prompt: the output is lost then. Results are for ``lengths``."""
    room, response = int(setup.get(f"{ROLLOUT}.prompt_length")), int(setup.get(f"{ROLLOUT}.response_length"))
    for name, template in cast.prompts.items():
        read = texts_in(template)
        most = sum(min(cast.roles[one].max_tokens or response, response) for one in read)
        if most >= room:
            message = f"{name} may read {most} tokens of {', '.join(read)}, and data.max_prompt_length={room}: "
            fix = f"set it to more than {most}, or limit the roles that it reads ({_ROLES}.names.{read[0]}.max_tokens)"
            yield Finding("roles", "warn", f"{message}an output whose prompt is longer is dropped", fix)


def _few_turns(setup: Setup, cast: Cast) -> Iterator[Finding]:
    """Warn if the limit of turns ends conversations of roles with tools, which count their calls as turns."""
    limit = setup.get(f"{MULTI_TURN}.max_assistant_turns")
    with_tools = [name for name, role in cast.roles.items() if role.tools]
    if cast.talks and with_tools and limit and limit < cast.settings.rounds:
        message = f"{MULTI_TURN}.max_assistant_turns={limit} ends the row of {with_tools[0]} before {_ROLES}.rounds="
        fix = "set it to null, or to the number of rounds and calls"
        yield Finding("roles", "warn", f"{message}{cast.settings.rounds} are over", fix)


def _line(setup: Setup, cast: Cast) -> Finding:
    settings, n = cast.settings, int(setup.get(f"{ROLLOUT}.n"))
    outputs = outputs_per_prompt(setup.config)
    frozen = [name for name, role in cast.roles.items() if role.frozen]
    branches = f"{n} {'branch' if n == 1 else 'branches'} ({settings.sampling})"
    how = f"{n} conversation{'s' * (n != 1)}" if cast.talks else branches
    names = (" and " if cast.talks else " -> ").join(cast.names)
    most = "up to " if settings.sampling == "rr" and not cast.talks else ""
    message = f"{names}: {how}, {most}{outputs} rows per prompt"
    mini, prompts = setup.get("actor_rollout_ref.actor.ppo_mini_batch_size"), setup.get("data.train_batch_size")
    if mini and prompts:
        updates = math.ceil(prompts * outputs / (mini * n))
        message += f", {updates} {'update' if updates == 1 else 'updates'} per step (mini-batches of {mini * n} rows)"
    return Finding("roles", "ok", message + (f"; {', '.join(frozen)} frozen" if frozen else ""))
