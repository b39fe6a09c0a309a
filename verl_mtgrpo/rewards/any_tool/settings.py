"""The weights of the preset ``tool_use``."""

from __future__ import annotations

from pydantic import Field

from verl_mtgrpo.settings import Number, Settings


class ToolUseSettings(Settings):
    """``reward.turn.tool_use``: what ``reward.turn.preset=tool_use`` pays a turn before the last."""

    succeeded: Number = Field(default=0.2, ge=0)
    """``preset=tool_use``: paid to a turn times the share of its calls that succeeded: the tool answered, did not
    report a failure, and the model saw the result."""
    changed: Number = Field(default=0.3, ge=0)
    """``preset=tool_use``: paid to a turn times the share of its calls that succeeded and changed something: the tool
    says so (``changed``) or, if it does not say, the model had not read this result before."""
    used: Number = Field(default=0.0, ge=0)
    """``preset=tool_use``: paid to a turn times the share of its calls whose result brought a word of the final answer
    into the rollout."""
    repeat_price: Number = Field(default=0.0, ge=0)
    """``preset=tool_use``: taken from a turn's reward for each call that repeats an earlier one of the rollout."""
    call_price: Number = Field(default=0.0, ge=0)
    """``preset=tool_use``: taken from a turn's reward for each of its calls, failed ones included."""
