"""What a run with ``mtgrpo_tree_agent`` needs beyond the loop: rows that ask for trees, and parts that know them.

verl starts ``rollout.n`` sessions for each prompt. A tree is one session, whose loop returns ``rollout.n`` outputs, so
the manager of the rollout workers asks for one session, and says in each row how many leaves it is to have.
"""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.agent_names import instead_of
from verl_mtgrpo.integration.growth import NEED_LOG_PROBS, check_growth
from verl_mtgrpo.integration.pairs import PAIR_SIDE
from verl_mtgrpo.integration.roles import ROLES
from verl_mtgrpo.integration.settings import BranchSettings, run_turn_settings
from verl_mtgrpo.integration.several import refuse_teacher
from verl_mtgrpo.rewards import NODE_PATH
from verl_mtgrpo.roles import ROLE

TREE, RAW_TREE = "mtgrpo_tree_agent", "mtgrpo_raw_tree_agent"
TREE_LOOPS = (TREE, RAW_TREE)
"""Our agent loops that grow trees."""
_GROWING = {"mtgrpo_tool_agent": TREE, "mtgrpo_raw_agent": RAW_TREE}
LEAVES = "mtgrpo_leaves"
"""Column of a row that asks for a tree: how many leaves; 0 asks for none."""
BRANCH = "branch"
"""Where ``extra_fields`` of one row of each tree keep what is logged of the tree."""
OF_ROWS = (NODE_PATH, ROLE)
"""Fields by which an estimator tells the rows of a session apart. An estimator that names one takes several rows."""

_ROLLOUT = "actor_rollout_ref.rollout"
_LOOP, _MANAGER = f"{_ROLLOUT}.agent.default_agent_loop", f"{_ROLLOUT}.agent.agent_loop_manager_class"
_OURS = "verl_mtgrpo.integration.rollout.workers.TurnAgentLoopManager"


def branch_settings(config: Any) -> BranchSettings:
    """Read ``trainer.turn.branch`` of verl's whole config."""
    return run_turn_settings(config).branch


def grows(config: Any) -> bool:
    """Return True if training prompts get trees in this run."""
    return OmegaConf.select(config, _LOOP) in TREE_LOOPS and branch_settings(config).grow != "none"


def tells_rows_apart(estimator: str) -> bool:
    """Return True if an estimator knows what several rows of a session are to each other."""
    return estimator in ESTIMATORS and any(name in (*OF_ROWS, PAIR_SIDE) for name in ESTIMATORS[estimator].fields)


def takes_leaves(estimator: str) -> bool:
    """Return True if every row of a session is a leaf of a tree to an estimator."""
    return estimator in ESTIMATORS and NODE_PATH in ESTIMATORS[estimator].fields


def ask_for_trees(prompts: Any, config: Any) -> None:
    """Make training prompts ask for one session with all their rollouts, in place, where the agent loop makes them so.

    These are trees and roles; prompts that name another agent loop are left.

    Args:
        prompts: verl's TensorDict of prompts.
        config: verl's whole config.
    """
    from verl.utils.tensordict_utils import assign_non_tensor_stack, get

    one_session = (ROLES,) if branch_settings(config).grow == "none" else (ROLES, *TREE_LOOPS)
    rollout, rows = config.actor_rollout_ref.rollout, len(prompts)
    names = column_of_rows(get(prompts, "agent_name"), rows, rollout.agent.default_agent_loop)
    if not any(name in one_session for name in names):
        return
    sessions = column_of_rows(get(prompts, "__rollout_n__"), rows, rollout.n)
    trees = [name in one_session for name in names]
    assign_non_tensor_stack(prompts, LEAVES, [int(n) if tree else 0 for n, tree in zip(sessions, trees, strict=True)])
    each = [1 if tree else int(n) for n, tree in zip(sessions, trees, strict=True)]
    assign_non_tensor_stack(prompts, "__rollout_n__", each)


def column_of_rows(found: Any, rows: int, default: Any) -> list[Any]:
    """Return a column of verl's batch, which may be absent or one value for all rows."""
    if found is None:
        return [default] * rows
    return [found] * rows if isinstance(found, str | int) else [getattr(one, "data", one) for one in found]


def check_trees(config: Any) -> None:
    """Raise ``ConfigError`` if a run that is to grow trees lacks a part for it.

    Args:
        config: verl's whole config.
    """
    select = OmegaConf.select
    settings, loop = branch_settings(config), select(config, _LOOP)
    if settings.grow == "none":
        return
    if loop not in TREE_LOOPS:
        raise ConfigError(
            f"trainer.turn.branch.grow={settings.grow}, but {_LOOP}={loop} grows no trees",
            fix=instead_of(str(loop), _GROWING, "trainer.turn.branch.grow=none"),
        )
    estimator, fitting = str(select(config, "algorithm.adv_estimator")), [*filter(takes_leaves, ESTIMATORS)]
    if not takes_leaves(estimator):
        raise ConfigError(
            f"trainer.turn.branch.grow={settings.grow} shares turns between rollouts, but "
            f"algorithm.adv_estimator={estimator} takes each row for a rollout of its own and would count shared turns "
            "several times",
            fix=f"use an estimator that names {NODE_PATH} ({', '.join(fitting)}), or set trainer.turn.branch.grow=none",
        )
    if select(config, _MANAGER) is None:
        raise ConfigError(
            f"{loop} grows trees for rows that the manager of the rollout workers marks, but {_MANAGER} is not set",
            fix=f"set it to {_OURS}, as the groups +mtgrpo=... do, or to a subclass of it",
        )
    limit = select(config, f"{_ROLLOUT}.multi_turn.max_assistant_turns") or 0
    check_growth(settings, select(config, f"{_ROLLOUT}.n"), limit)
    if settings.grow in NEED_LOG_PROBS and not select(config, f"{_ROLLOUT}.calculate_log_probs"):
        raise ConfigError(
            f"trainer.turn.branch.grow={settings.grow} measures the log-probs of generated tokens, but "
            f"{_ROLLOUT}.calculate_log_probs=False",
            fix="set it to True",
        )
    refuse_teacher(config, "a tree has several", " or trainer.turn.branch.grow=none")
