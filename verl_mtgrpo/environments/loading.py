"""Find environments by name (``trainer.turn.environment.name``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.own_code import load_own

KEY = "trainer.turn.environment.name"
PACKAGED: Mapping[str, str] = {
    "gymnasium": "verl_mtgrpo.environments.gymnasium_text:GymnasiumText",
    "frozen_lake": "verl_mtgrpo.environments.frozen_lake:FrozenLake",
}
"""Names of the packaged environments, and where they are."""
METHODS = ("reset", "step")


def load_environment(name: str, options: Mapping[str, Any]) -> Callable[[], Any]:
    """Return a function that makes a new environment.

    Args:
        name: A packaged environment, or a class (or function) of the user's own as ``package.module:Class`` or
            ``path/to/file.py:Class``.
        options: Its keyword arguments.

    Raises:
        ConfigError: There is no such environment, module, file or class, or it has no ``reset`` and ``step``.
    """
    if not name:
        raise ConfigError(
            "the agent loop mtgrpo_env_agent has no environment",
            fix=f"set {KEY} to one of {sorted(PACKAGED)} or to a class of your own, package.module:Class or "
            "path/to/file.py:Class",
        )
    where = PACKAGED.get(name, name)
    if ":" not in where:
        raise ConfigError(
            f"{KEY} is {name!r}",
            expected=f"one of {sorted(PACKAGED)}, or a class of your own as package.module:Class or "
            "path/to/file.py:Class",
        )
    found = load_own(where, KEY, "class")
    lacking = [method for method in METHODS if isinstance(found, type) and not hasattr(found, method)]
    if lacking:
        raise ConfigError(
            f"{KEY} is {name!r}, which has no method {' and no method '.join(lacking)}",
            fix="write both as verl_mtgrpo.environments.Environment describes",
        )
    return partial(found, **options)
