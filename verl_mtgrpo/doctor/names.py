"""Check that this package's names are in verl's registries after nothing but ``import verl``.

This runs as a program, in a separate process, because in this one something else may have registered them::

    python -m verl_mtgrpo.doctor.names [--ray]

The last line of its output is a JSON object: all ``names``, those ``missing`` in the process, and those missing in a
Ray worker (``missing_in_ray``, null if that was not requested).
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from typing import Any

_REGISTRIES = {
    "estimator": ("verl.trainer.ppo.core_algos", "ADV_ESTIMATOR_REGISTRY"),
    "policy loss": ("verl.trainer.ppo.core_algos", "POLICY_LOSS_REGISTRY"),
    "tool parser": ("verl.experimental.agent_loop.tool_parser", "ToolParser._registry"),
    "agent loop": ("verl.experimental.agent_loop.agent_loop", "_agent_loop_registry"),
    "reward manager": ("verl.experimental.reward_loop.reward_manager.registry", "REWARD_MANAGER"),
    "trainer mode": ("verl.trainer.ppo.v1.trainer_base", "TRAINER_REGISTRY"),
}


def look() -> tuple[list[str], list[str]]:
    """Return all names of this package, and those that verl does not know in this process."""
    importlib.import_module("verl")  # loads the plugin

    from verl_mtgrpo.plugin import HOOKS

    for verls, _ in HOOKS:  # only verl's modules; if the plugin was loaded, they import ours
        importlib.import_module(verls)
    known = _ours_in_verl()
    for _, ours in HOOKS:
        importlib.import_module(ours)
    names = _ours_in_verl()
    return sorted(names), sorted(names - known)


def _ours_in_verl() -> set[str]:
    return {
        f"{kind} {name}"
        for kind, (module, attribute) in _REGISTRIES.items()
        for name, entry in _registry(module, attribute).items()
        if _owner(entry).startswith("verl_mtgrpo.")
    }


def _registry(module: str, attribute: str) -> Mapping[str, Any]:
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def _owner(entry: Any) -> str:
    """Return the module of a class or function, or the target that a config node names."""
    return str(entry["_target_"]) if isinstance(entry, Mapping) else str(getattr(entry, "__module__", ""))


def _look_in_ray() -> list[str]:
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        # The worker finds this module by its name, so that it imports verl before anything of ours.
        task = ray.remote(num_cpus=1)(lambda: importlib.import_module(MODULE).look()[1])
        return ray.get(task.remote())
    finally:
        ray.shutdown()


MODULE = "verl_mtgrpo.doctor.names"

if __name__ == "__main__":
    _names, _missing = look()
    _elsewhere = _look_in_ray() if "--ray" in sys.argv else None
    print(json.dumps({"names": _names, "missing": _missing, "missing_in_ray": _elsewhere}))
