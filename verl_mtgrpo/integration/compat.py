"""List the parts of verl that this package overrides, and check that the installed verl still has them.

If verl renames a method, Python reports no error: ours is simply never called again, and the stall timeout, the
replacement of dead workers or the turn rewards are silently gone. So each name is listed here, and a run that uses this
package starts only if verl has all of them.
"""

from __future__ import annotations

import importlib

from verl_mtgrpo.errors import CompatibilityError
from verl_mtgrpo.installed import TESTED_VERL, verl_version

_LOOPS, _TRAINERS = "verl.experimental.agent_loop", "verl.trainer.ppo.v1"
_TRAINER = (
    "__init__",
    "_build_replay_buffer",
    "_compute_advantage",
    "_compute_values",
    "_dump_generations",
    "_load_checkpoint",
    "_log_rollout_data",
    "_save_checkpoint",
    "_update_critic",
    "_val_metrics_update",
    "_validate",
    "_write_generations",
    "fit",
    "on_init_end",
    "on_step_begin",
)
_BUFFER = ("__init__", "_clear_groups", "_dapo_filtered_keys", "_wait_for_next_poll", "sample")
OVERRIDDEN = {
    f"{_LOOPS}.agent_loop:AgentLoopOutput": ("as_dict", "model_post_init"),
    f"{_LOOPS}.tool_agent_loop:ToolAgentLoop": (
        "__init__",
        "_build_assistant_message",
        "_call_tool",
        "_cap_text_prompt_length",
        "_handle_generating_state",
        "_handle_pending_state",
        "_handle_processing_tools_state",
        "ct_build_initial_tokens",
        "ct_merge_context_msg",
        "run",
    ),
    f"{_LOOPS}.tool_parser:ToolParser": ("extract_tool_calls",),
    "verl.experimental.reward_loop.reward_manager.base:RewardManagerBase": (
        "__init__",
        "assemble_rm_scores",
        "run_single",
    ),
    "verl.tools.base_tool:BaseTool": ("__init__", "execute"),
    f"{_TRAINERS}.agent_loop_tq:AgentLoopManagerTQ": ("__init__", "_init_agent_loop_workers", "generate_sequences"),
    f"{_TRAINERS}.replay_buffer:ReplayBuffer": _BUFFER,
    f"{_TRAINERS}.replay_buffer:ReplayBufferAsync": _BUFFER,
    f"{_TRAINERS}.trainer_sync:PPOTrainerSync": _TRAINER,
    f"{_TRAINERS}.trainer_colocate_async:PPOTrainerColocateAsync": _TRAINER,
    f"{_TRAINERS}.trainer_separate_async:PPOTrainerSeparateAsync": _TRAINER,
}
"""verl's classes (``module:Class``) and the names in them that our subclasses override; a test keeps it complete."""


def missing_overrides() -> list[str]:
    """Return a sentence for each class or method of :data:`OVERRIDDEN` that the installed verl does not have."""
    found = []
    for where, names in OVERRIDDEN.items():
        module, _, name = where.partition(":")
        try:
            base = getattr(importlib.import_module(module), name, None)
        except Exception as error:
            if not str(getattr(error, "name", "")).startswith("verl"):
                continue  # a package or platform that this machine does not have: we cannot tell
            base = None
        if base is None:
            found.append(f"{module} has no class {name}")
            continue
        gone = [one for one in names if not hasattr(base, one)]
        if gone:
            found.append(f"{module}.{name} has no {', '.join(gone)}, which a class of verl_mtgrpo overrides")
    return found


def check_compatible() -> None:
    """Raise ``CompatibilityError`` if verl has renamed something that this package overrides."""
    if missing := missing_overrides():
        raise CompatibilityError(
            f"verl {verl_version()} differs from verl {TESTED_VERL}, which this package was written for: "
            f"{', and '.join(missing)}",
            fix=f"install verl {TESTED_VERL}, or a verl-mtgrpo that supports this verl",
        )
