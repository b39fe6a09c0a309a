"""What a run with ``mtgrpo_env_agent`` needs beyond the loop: its settings, and no tools."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.settings import EnvironmentSettings, run_turn_settings

ENV = "mtgrpo_env_agent"
"""Our agent loop that plays environments."""

_LOOP = "actor_rollout_ref.rollout.agent.default_agent_loop"
_MULTI_TURN = "actor_rollout_ref.rollout.multi_turn"
_CUTTING = ("search_r1", "mtgrpo_xml")


def environment_settings(config: Any) -> EnvironmentSettings:
    """Read ``trainer.turn.environment`` of verl's whole config."""
    return run_turn_settings(config).environment


def check_environment(config: Any) -> None:
    """Raise ``ConfigError`` if the environment is not named, or if something is set that it cannot go with.

    Args:
        config: verl's whole config.
    """
    select = OmegaConf.select
    name, loop = environment_settings(config).name, select(config, _LOOP)
    if loop != ENV:
        if name:
            raise ConfigError(
                f"trainer.turn.environment.name={name}, but {_LOOP}={loop} plays no environment",
                fix=f"add +mtgrpo_env=default after the group +mtgrpo=..., or set {_LOOP}={ENV}",
            )
        return
    if not name:
        raise ConfigError(
            f"{ENV} has no environment",
            fix="set trainer.turn.environment.name to a packaged one (gymnasium, frozen_lake) or to a class of your "
            "own, package.module:Class or path/to/file.py:Class",
        )
    for key in ("tool_config_path", "function_tool_path"):
        if select(config, f"{_MULTI_TURN}.{key}"):
            raise ConfigError(
                f"{_MULTI_TURN}.{key}={select(config, f'{_MULTI_TURN}.{key}')}, but in an environment each turn is an "
                "action and no tool is called",
                fix=f"set {_MULTI_TURN}.{key}=null, as +mtgrpo_env=default does, or call the tool in the environment",
            )
    spoken = select(config, f"{_MULTI_TURN}.format")
    if spoken in _CUTTING:
        raise ConfigError(
            f"{_MULTI_TURN}.format={spoken} cuts turns at its own tags, and an environment reads turns as they are",
            fix=f"set {_MULTI_TURN}.format=hermes (the environment agent looks for no tool calls in any format)",
        )
