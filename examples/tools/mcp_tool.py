"""Call a tool of an MCP server (Model Context Protocol), over HTTP or as a process: ``pip install "mcp>=2"``.

verl 0.9 has no MCP client of its own, so this is one of verl's tools that has one. Each entry of a tool YAML is one
tool of a server (mcp_tool.yaml):

    TOOL=actor_rollout_ref.rollout.multi_turn
    mtgrpo train -- $TOOL.tool_config_path=$PWD/examples/tools/mcp_tool.yaml \
        reward.turn.preset=$PWD/examples/tools/call_rewards.py:calls ...

What a turn earns with call_rewards.py: ``worth`` of the YAML for each call that the server carried out, nothing for one
that it refused. A server that cannot be reached is an outage: the rollout is left out of the update and counted.
"""

from __future__ import annotations

import asyncio
from typing import Any

from mcp import Client, StdioServerParameters
from verl.tools.base_tool import BaseTool
from verl.tools.schemas import ToolResponse


class MCPTool(BaseTool):
    """One tool of an MCP server; its name and arguments are those of ``tool_schema``.

    Its ``config``: ``url`` of the server (``http://…/mcp``), or ``command`` (a list) that starts one, and ``env``, the
    variables that it gets besides PATH and the like; ``worth`` of a call that was carried out, and ``timeout_s``.
    """

    async def execute(self, instance_id: str, parameters: dict[str, Any], **_: Any) -> tuple[ToolResponse, float, dict]:
        """Call the tool, and return its text, what the call is worth and how it went."""
        try:
            timeout_s = float(self.config.get("timeout_s", 30))
            result = await asyncio.wait_for(self._call(parameters), timeout_s)
        except Exception as error:  # the server is gone, or does not answer
            why = f"the MCP server of {self.name}: {type(error).__name__}: {error}"
            return ToolResponse(text="The tool is not available."), 0.0, {"outage": why}
        text = "\n".join(part.text for part in result.content if part.type == "text")
        if result.is_error:
            return ToolResponse(text=text), 0.0, {"ok": False, "error_kind": "tool_error"}
        return ToolResponse(text=text), float(self.config.get("worth", 0.1)), {"ok": True}

    async def _call(self, parameters: dict[str, Any]) -> Any:
        command = self.config.get("command")
        server: Any = self.config.get("url")
        if command:
            server = StdioServerParameters(command=command[0], args=list(command[1:]), env=self.config.get("env"))
        async with Client(server) as client:  # a session for each call: rollouts share nothing
            return await client.call_tool(self.name, parameters)
