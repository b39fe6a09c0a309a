"""Let questions of verl's tool examples be rolled out by the run's own agent loop.

Each of their rows names ``tool_agent`` in the column ``agent_name``, which verl takes before
``actor_rollout_ref.rollout.agent.default_agent_loop``. Where that is one of our loops, the manager of the rollout
workers writes it into these rows. Rows that name any other loop are left as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.utils.import_utils import resolve_config_path

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.agent_names import COLUMN, TOOL_AGENT, VERLS_LOOPS, verls_loops_in, without_agent_names
from verl_mtgrpo.integration.parts import LOOPS
from verl_mtgrpo.integration.trees import column_of_rows

_AGENT = "actor_rollout_ref.rollout.agent"
_LOOP, _MANAGER = f"{_AGENT}.default_agent_loop", f"{_AGENT}.agent_loop_manager_class"
_OURS = "verl_mtgrpo.integration.rollout.workers.TurnAgentLoopManager"


def stands_for(config: Any) -> str | None:
    """Return the loop that ``tool_agent`` in a row stands for in this run; None if it is taken as it is.

    Args:
        config: verl's whole config.
    """
    select = OmegaConf.select
    loop = select(config, _LOOP)
    if loop not in LOOPS or select(config, _MANAGER) is None or _is_the_users(config):
        return None
    return str(loop)


def use_default_loop(prompts: Any, config: Any) -> int:
    """Replace ``tool_agent`` in verl's batch of prompts by the run's loop, in place; return in how many rows.

    Args:
        prompts: verl's TensorDict of prompts.
        config: verl's whole config.
    """
    from verl.utils.tensordict_utils import assign_non_tensor_stack, get

    found = get(prompts, COLUMN)
    loop = None if found is None else stands_for(config)
    if loop is None:
        return 0
    names = column_of_rows(found, len(prompts), loop)
    if replaced := names.count(TOOL_AGENT):
        assign_non_tensor_stack(prompts, COLUMN, [loop if name == TOOL_AGENT else name for name in names])
    return replaced


def check_agent_names(file: str, config: Any) -> str:
    """Check which agent loops the rows of a parquet file name, and return what becomes of them; empty: nothing to say.

    Args:
        file: The questions.
        config: verl's whole config.

    Raises:
        ConfigError: Rows name a loop of verl's, and would be rolled out by it.
    """
    path, loop = Path(file).expanduser(), stands_for(config)
    named = verls_loops_in(path)
    if others := [name for name in named if name != TOOL_AGENT or loop is None]:
        raise ConfigError(
            f"{file} has a column {COLUMN} with {', '.join(others)}, which verl prefers to {_LOOP}",
            fix=_way_out(path, others, config),
        )
    return f"{COLUMN}={TOOL_AGENT} in rows means {loop}" if named else ""


def _way_out(path: Path, others: list[str], config: Any) -> str:
    """Return what to do about rows that name these loops; a setting where that is enough, or else another file."""
    default, manager = OmegaConf.select(config, _LOOP), OmegaConf.select(config, _MANAGER)
    only = others == [TOOL_AGENT]
    if only and default in VERLS_LOOPS and manager is not None and not _is_the_users(config):
        return f"set {_LOOP}=mtgrpo_tool_agent: {TOOL_AGENT} in rows then stands for it, and the file can stay as it is"
    wanted = default if default in LOOPS else "mtgrpo_tool_agent"
    by_manager = only and default in LOOPS and manager is None
    more = f", or set {_MANAGER}={_OURS}, which takes {TOOL_AGENT} for {_LOOP}" if by_manager else ""
    return f"drop the column, or write {wanted} into it{more}. A copy without it: {without_agent_names(path)}"


def _is_the_users(config: Any) -> bool:
    """Return True if the run's file of agent loops has a ``tool_agent`` of its own, which replaces verl's."""
    path = OmegaConf.select(config, f"{_AGENT}.agent_loop_config_path")
    if not path:
        return False
    try:
        loops = OmegaConf.load(resolve_config_path(path))
    except OSError:  # verl says so when it starts its workers
        return False
    return any(isinstance(one, DictConfig) and one.get("name") == TOOL_AGENT for one in loops)
