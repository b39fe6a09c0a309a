"""Reward turns of agents with any tools: what a tool reports of a call, and the preset ``tool_use``."""

from verl_mtgrpo.rewards.any_tool.report import ToolReport
from verl_mtgrpo.rewards.any_tool.reward import tool_use

__all__ = ["ToolReport", "tool_use"]
