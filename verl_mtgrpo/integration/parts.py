"""Check that all parts of a turn-level run are there: without one, it would silently train something else.

Turn rewards need an agent loop that records turns, a reward manager that scores them and a tool to call. verl finds
each by name and has a default for each, so a command line that forgets one still runs, with all rewards at the end.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from verl.utils.import_utils import resolve_config_path

from verl_mtgrpo.config import of_group
from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.errors import AbsentError, ConfigError
from verl_mtgrpo.integration.agent_names import VERLS_LOOPS
from verl_mtgrpo.integration.decide import DECIDE_LOOPS, RAW_DECIDE, check_decide
from verl_mtgrpo.integration.environments import ENV, check_environment
from verl_mtgrpo.integration.pairs import PAIRS, check_pairs
from verl_mtgrpo.integration.roles import ROLES, cast_of, check_roles
from verl_mtgrpo.integration.trees import RAW_TREE, TREE_LOOPS, check_trees

RAW = "mtgrpo_raw_agent"
RAW_LOOPS = (RAW, RAW_TREE, RAW_DECIDE)
"""Those that continue in plain text."""
TOOL_LOOPS = ("mtgrpo_tool_agent", RAW, *TREE_LOOPS, *DECIDE_LOOPS)
"""Those that call tools."""
LOOPS = (*TOOL_LOOPS, ENV, ROLES, PAIRS)
"""Our agent loops."""
VERLS_MANAGERS = ("naive", "dapo", "gdpo", "rate_limited", "remote")
"""verl's reward managers, which return one number per rollout."""
GROUPS = ("mtgrpo", "mtgrpo_cpu", "mtgrpo_env", "mtgrpo_recipe")
"""Our config groups."""

_LOOP = "actor_rollout_ref.rollout.agent.default_agent_loop"
_MANAGER = "reward.reward_manager.name"
_MULTI_TURN = "actor_rollout_ref.rollout.multi_turn"


def uses_turns(config: Any) -> bool:
    """Return True if anything in verl's config is ours; plain verl runs are left alone."""
    select = OmegaConf.select
    return bool(
        select(config, "algorithm.adv_estimator") in ESTIMATORS
        or select(config, _LOOP) in LOOPS
        or select(config, _MANAGER) == "mtgrpo"
        or select(config, "algorithm.turn")
        or select(config, "reward.turn")
        or _lost_groups(config)
    )


def pays_turns(config: Any) -> bool:
    """Return True if our reward manager pays, not one of verl's or a class of the user's."""
    source = OmegaConf.select(config, "reward.reward_manager.source")
    return OmegaConf.select(config, _MANAGER) == "mtgrpo" and source in (None, "register")


def check_parts(config: Any) -> None:
    """Raise ``ConfigError`` if a part that the others need is missing.

    Args:
        config: verl's whole config.
    """
    _check_groups(config)
    if OmegaConf.select(config, "trainer.use_v1") is False:
        raise ConfigError(
            "trainer.use_v1=False is verl's old trainer, which puts the sum of a rollout's rewards on its last token, "
            "so turn rewards would be lost",
            fix="leave it True",
        )
    _check_loop_and_manager(config)
    check_roles(config)
    if OmegaConf.select(config, _LOOP) in LOOPS:
        _check_tool(config)
    check_trees(config)
    check_environment(config)
    check_pairs(config)
    check_decide(config)


def check_tool_file(config: Any) -> None:
    """Raise ``AbsentError`` if the tool YAML that the config names does not exist."""
    path = OmegaConf.select(config, f"{_MULTI_TURN}.tool_config_path")
    if path and not _exists(path):
        raise AbsentError(
            f"{_MULTI_TURN}.tool_config_path={path} does not exist",
            fix=(
                "set the path of a tool YAML, or remove the key and use the group +mtgrpo=..., which names the "
                "packaged search tool"
            ),
        )


def _check_groups(config: Any) -> None:
    for key, group in _lost_groups(config).items():
        value = OmegaConf.select(config, key)
        raise ConfigError(
            f"{key}={value} was added as a plain key: Hydra did not find the config group, so nothing of it applies",
            fix=(
                f"put 'hydra.searchpath=[pkg://verl_mtgrpo.config]' on the command line before +{group}={value}, and "
                "run in an environment in which verl-mtgrpo is installed"
            ),
        )


def _lost_groups(config: Any) -> dict[str, str]:
    """Return the keys, perhaps misspelt, that were meant as one of our groups, and the group.

    A misspelt key counts only if its value is a config of the group; otherwise it is a key of the user's that looks
    similar.
    """
    plain = {str(key): value for key in config if isinstance(value := OmegaConf.select(config, str(key)), str)}
    meant = {key: get_close_matches(key, GROUPS, n=1, cutoff=0.8) for key in plain}
    return {
        key: groups[0]
        for key, groups in meant.items()
        if groups and (key in GROUPS or plain[key] in _configs_of(groups[0]))
    }


def _configs_of(group: str) -> set[str]:
    """Return the names of the configs of one of our groups."""
    return {file.name.removesuffix(".yaml") for file in (resources.files("verl_mtgrpo.config") / group).iterdir()}


def _check_loop_and_manager(config: Any) -> None:
    estimator, loop = OmegaConf.select(config, "algorithm.adv_estimator"), OmegaConf.select(config, _LOOP)
    manager = OmegaConf.select(config, _MANAGER)
    if OmegaConf.select(config, "reward.reward_manager.source") not in (None, "register"):
        manager = None  # a custom class, whatever its name
    ours = of_group(str(OmegaConf.select(config, "trainer.turn.preset")), _LOOP) or TOOL_LOOPS[0]
    if manager == "mtgrpo" and loop not in LOOPS:
        raise ConfigError(
            f"{_MANAGER}=mtgrpo needs the turns that {ours} records, but {_LOOP}={loop}",
            fix=f"set it to {ours} (an override on the command line wins over the group +mtgrpo=...)",
        )
    if loop in LOOPS and manager in VERLS_MANAGERS:
        raise ConfigError(
            f"{_LOOP}={loop} places turn rewards, but {_MANAGER}={manager} returns one number per rollout",
            fix=f"set {_MANAGER}=mtgrpo",
        )
    if estimator in ESTIMATORS and loop in VERLS_LOOPS:
        raise ConfigError(
            f"algorithm.adv_estimator={estimator} gives each turn its own advantage, but {_LOOP}={loop} pays one "
            "reward at the end of a rollout",
            fix=(
                f"set {_LOOP}={ours} and {_MANAGER}=mtgrpo, or use the group +mtgrpo=..., which sets both and the tool"
            ),
        )
    if manager in VERLS_MANAGERS and OmegaConf.select(config, "reward.turn"):
        raise ConfigError(f"reward.turn is read by {_MANAGER}=mtgrpo only, but it is {manager}", fix="set it to mtgrpo")


def _check_tool(config: Any) -> None:
    multi_turn = OmegaConf.select(config, _MULTI_TURN)
    if not multi_turn.enable:
        raise ConfigError(f"{_MULTI_TURN}.enable={multi_turn.enable}, but an agent needs turns", fix="set it to True")
    loop = OmegaConf.select(config, _LOOP)
    if loop == ENV or (loop == ROLES and not any(role.tools for role in cast_of(config).roles.values())):
        return
    if not (multi_turn.get("tool_config_path") or multi_turn.get("function_tool_path")):
        raise ConfigError(
            "the agent has no tool, so every rollout would have one turn",
            fix=(
                f"set {_MULTI_TURN}.tool_config_path (the packaged search tool is "
                f"'${{mtgrpo_asset:tools/search_tool.yaml}}') or {_MULTI_TURN}.function_tool_path"
            ),
        )


def _exists(path: str) -> bool:
    try:
        return Path(resolve_config_path(path)).is_file()
    except FileNotFoundError:
        return False
