"""A small MCP server with one tool, for mcp_tool.py: ``python examples/tools/mcp_server.py [PORT]``.

Without a port it speaks over standard input and output.
"""

from __future__ import annotations

import sys

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

METRES = {"m": 1.0, "km": 1000.0, "mile": 1609.344, "foot": 0.3048}
server = MCPServer("lengths")


@server.tool()
def convert(value: float, unit: str, to: str) -> str:
    """Convert a length from one unit to another."""
    for name in (unit, to):
        if name not in METRES:
            raise ToolError(f"unknown unit {name!r}, known are {', '.join(METRES)}")
    return f"{value * METRES[unit] / METRES[to]:g} {to}"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
