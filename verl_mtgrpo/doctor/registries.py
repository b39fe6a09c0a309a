"""Check that names are in verl's registries, and suggest the right one for a wrong one.

verl looks most of them up late, the estimator only after the first rollouts. A module of the user's may register a name
in just the process that looks it up, so if the config names such a module, an unknown name is not certainly wrong.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.integration.advantage.fields import MODES
from verl_mtgrpo.integration.external_modules import MODULES, load_external_modules
from verl_mtgrpo.settings import did_you_mean

_ROLLOUT = "actor_rollout_ref.rollout"


@dataclass(frozen=True)
class Registry:
    """One of verl's registries.

    Attributes:
        key: The setting that names an entry.
        what: What an entry is.
        known: The names in this process.
        loaders: Settings that make verl load modules of the user's in the process that looks the name up.
    """

    key: str
    what: str
    known: Callable[[], Collection[str]]
    loaders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unknown:
    """A name that is in no registry here.

    Attributes:
        message: The message.
        fix: What to do.
        certain: False if a module of the user's may register it where it is looked up.
    """

    message: str
    fix: str
    certain: bool


def _estimators() -> set[str]:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, AdvantageEstimator

    return {*ADV_ESTIMATOR_REGISTRY, *ESTIMATORS, *(one.value for one in AdvantageEstimator)}


def _policy_losses() -> set[str]:
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    return set(POLICY_LOSS_REGISTRY)


def _trainer_modes() -> set[str]:
    known = {*MODES, *MODES.values()}
    try:
        trainers = importlib.import_module("verl.trainer.ppo.v1.trainer_base").TRAINER_REGISTRY
    except ImportError:  # something is missing that only the trainer's environment has
        return known
    return known | set(trainers)


def _reward_managers() -> set[str]:
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER

    importlib.import_module("verl.experimental.reward_loop.reward_manager")
    return set(REWARD_MANAGER)


ESTIMATOR = Registry(
    "algorithm.adv_estimator",
    "advantage estimator",
    _estimators,
    (
        "data.custom_cls.path",
        "trainer.v1.sampler.custom_sampler.path",
        f"{_ROLLOUT}.agent.agent_loop_manager_class",
    ),
)
POLICY_LOSS = Registry(
    "actor_rollout_ref.actor.policy_loss.loss_mode",
    "policy loss",
    _policy_losses,
    ("actor_rollout_ref.model.external_lib", f"{_ROLLOUT}.checkpoint_engine.custom_backend_module"),
)
TRAINER = Registry("trainer.v1.trainer_mode", "trainer mode", _trainer_modes)
MANAGER = Registry(
    "reward.reward_manager.name", "reward manager", _reward_managers, ("reward.custom_reward_function.path",)
)


def unknown_names(config: Any) -> Iterator[Unknown]:
    """Yield the names in verl's config that no registry has."""
    registries = [ESTIMATOR, POLICY_LOSS, TRAINER]
    if OmegaConf.select(config, "reward.reward_manager.source") in (None, "register"):
        registries.append(MANAGER)
    for registry in registries:
        found = unknown_name(config, registry)
        if found:
            yield found


def unknown_name(config: Any, registry: Registry) -> Unknown | None:
    """Look one name up; return None if the registry has it.

    Raises:
        ConfigError: A module of ``VERL_USE_EXTERNAL_MODULES`` cannot be imported.
    """
    name = OmegaConf.select(config, registry.key)
    if name is None:
        return None
    load_external_modules()
    known = sorted(map(str, registry.known()))
    if str(name) in known:
        return None
    named = os.environ.get(MODULES) or "not set"
    message = (
        f"{registry.key}={name} does not exist: neither verl nor a loaded plugin knows this {registry.what}"
        f"{did_you_mean(name, known)}"
    )
    fix = (
        f"set one of {', '.join(known)}, or name the module that registers yours in the environment variable "
        f"{MODULES} (now: {named})"
    )
    return Unknown(message, fix, certain=not _may_come_later(config, registry))


def _may_come_later(config: Any, registry: Registry) -> bool:
    """Return True if another process of the run may know more names than this one."""
    theirs = OmegaConf.select(config, f"ray_kwargs.ray_init.runtime_env.env_vars.{MODULES}")
    loaders = [str(OmegaConf.select(config, key) or "") for key in registry.loaders]
    return bool(theirs) or any(path and "verl_mtgrpo" not in path for path in loaders)
