"""Run the model's Python in a sandbox, through the API of SandboxFusion that verl's reward functions use.

verl 0.9 has no code tool of its own; it has a client of the sandbox, which this tool calls. Start a sandbox
(github.com/bytedance/SandboxFusion), then

    export SANDBOX_URL=http://127.0.0.1:8080/run_code
    TOOL=actor_rollout_ref.rollout.multi_turn
    mtgrpo train -- $TOOL.function_tool_path=$PWD/examples/tools/code_tool.py \
        reward.turn.preset=$PWD/examples/tools/call_rewards.py:calls ...

What a turn earns with call_rewards.py: 0.2 for a program that ran to its end, nothing for one that failed. A sandbox
that cannot be reached is an outage: the rollout is left out of the update and counted.
"""

from __future__ import annotations

import os

from verl.tools.function_tool import function_tool
from verl.tools.schemas import ToolResponse
from verl.utils.reward_score.sandbox_fusion.utils import call_sandbox_api

WORTH = 0.2
SECONDS, MEGABYTES = 10, 1024


@function_tool
def python(code: str) -> tuple[ToolResponse, float, dict]:
    """Run a Python program and return what it prints.

    Args:
        code: The program.
    """
    answer, error = call_sandbox_api(os.environ["SANDBOX_URL"], code, "", SECONDS, SECONDS, MEGABYTES, "python")
    if answer is None or answer.get("status") == "SandboxError":
        why = error or str(answer.get("message"))
        return ToolResponse(text="The sandbox is not available."), 0.0, {"outage": f"the sandbox: {why}"}
    run = answer.get("run_result") or {}
    printed = f"{run.get('stdout') or ''}{run.get('stderr') or ''}".strip()
    if run.get("status") != "Finished" or run.get("return_code") != 0:
        return ToolResponse(text=printed or str(run.get("status"))), 0.0, {"ok": False, "error_kind": "tool_error"}
    return ToolResponse(text=printed or "(nothing was printed)"), WORTH, {"ok": True}
