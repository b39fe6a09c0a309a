"""What a run with ``mtgrpo_roles_agent`` needs beyond the loop: its cast, and parts that know what roles are."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from verl_mtgrpo.config import of_group
from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.settings import run_turn_settings
from verl_mtgrpo.integration.several import refuse_teacher
from verl_mtgrpo.rewards import JUDGES, load_preset
from verl_mtgrpo.roles import ROLE, Cast, RolesSettings, read_cast
from verl_mtgrpo.roles.plan import asked_of

ROLES = "mtgrpo_roles_agent"
"""Our agent loop that plays roles."""
OUTPUTS = "outputs_of_roles"
"""Where ``extra_fields`` of one row of each prompt keep how many outputs the prompt was to have."""

_ROLLOUT = "actor_rollout_ref.rollout"
_LOOP, _MANAGER = f"{_ROLLOUT}.agent.default_agent_loop", f"{_ROLLOUT}.agent.agent_loop_manager_class"
_last: tuple[Any, Cast] | None = None


def roles_settings(config: Any) -> RolesSettings:
    """Read ``trainer.turn.roles`` of verl's whole config."""
    return run_turn_settings(config).roles


def roles_of_group(config: Any) -> RolesSettings:
    """Return ``trainer.turn.roles`` as the run's config group alone has it; the defaults without a packaged group."""
    preset = run_turn_settings(config).preset
    found = of_group(preset, "trainer.turn.roles")
    values = OmegaConf.to_container(found) if found is not None else None
    return RolesSettings.read(values, f"trainer.turn.roles of +mtgrpo={preset}")


def cast_of(config: Any) -> Cast:
    """Return the roles of a run; they are read again only for another config, because verl makes a loop per rollout."""
    global _last
    if _last is None or _last[0] is not config:
        _last = config, read_cast(roles_settings(config), roles_of_group(config))
    return _last[1]


def plays_roles(config: Any) -> bool:
    """Return True if the run's rollouts are outputs of roles."""
    return OmegaConf.select(config, _LOOP) == ROLES


def knows_roles(estimator: str) -> bool:
    """Return True if an estimator groups rows by their role."""
    return estimator in ESTIMATORS and ROLE in ESTIMATORS[estimator].fields


def outputs_per_prompt(config: Any) -> int:
    """Return how many rows a prompt has: ``actor_rollout_ref.rollout.n``; with roles, if it forks at the first."""
    branches = int(OmegaConf.select(config, f"{_ROLLOUT}.n"))
    if not plays_roles(config):
        return branches
    cast = cast_of(config)
    return asked_of(cast.settings, len(cast.names), 0, branches)


def check_roles(config: Any) -> None:
    """Raise ``ConfigError`` if a run that is to play roles lacks a part for it.

    Args:
        config: verl's whole config.
    """
    select = OmegaConf.select
    loop, settings = select(config, _LOOP), roles_settings(config)
    if loop != ROLES:
        if settings.names or settings.file:
            raise ConfigError(
                f"trainer.turn.roles names roles, but {_LOOP}={loop} plays none",
                fix=f"set it to {ROLES}, or remove trainer.turn.roles.names and trainer.turn.roles.file",
            )
        return
    for name, role in read_cast(settings, roles_of_group(config)).roles.items():
        if role.reward and role.reward not in JUDGES and ":" not in role.reward:
            load_preset(role.reward, f"trainer.turn.roles.names.{name}.reward")
    estimator, fitting = str(select(config, "algorithm.adv_estimator")), [*filter(knows_roles, ESTIMATORS)]
    if not knows_roles(estimator):
        raise ConfigError(
            f"{ROLES} gives a row per output of a role, but algorithm.adv_estimator={estimator} would compare the rows "
            "of different roles with each other",
            fix=f"use an estimator that names {ROLE} ({', '.join(fitting) or 'none is registered'})",
        )
    if select(config, _MANAGER) is None:
        raise ConfigError(
            f"{loop} makes all outputs of a prompt in one session, which the manager of the rollout workers asks for, "
            f"but {_MANAGER} is not set",
            fix="set it to verl_mtgrpo.integration.rollout.workers.TurnAgentLoopManager, as the groups +mtgrpo=... do, "
            "or to a subclass of it",
        )
    refuse_teacher(config, "with roles there are several")
