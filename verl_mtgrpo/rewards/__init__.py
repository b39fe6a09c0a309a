"""Compute turn-level rewards: pure functions from a rollout's transcript to one reward per turn and an outcome."""

from verl_mtgrpo.passages import Passage
from verl_mtgrpo.rewards.any_tool import ToolReport, tool_use
from verl_mtgrpo.rewards.paper_v1 import paper_v1
from verl_mtgrpo.rewards.paper_v2 import paper_v2
from verl_mtgrpo.rewards.presets import JUDGES, NEED_RULES, PACKAGED, PRESETS, load_preset, pay
from verl_mtgrpo.rewards.search_r1 import search_r1_em, search_r1_format
from verl_mtgrpo.rewards.transcript import (
    BROKEN,
    DONE,
    DROPPED,
    DROPPED_REASON,
    FAILED,
    FAILURE,
    NO_TOKENS,
    NODE_PATH,
    OUTAGE,
    TRANSCRIPT,
    TURN_DENSE,
    TURN_NOTES,
    TURN_REWARDS,
    ToolCall,
    Transcript,
    Turn,
    TurnRewards,
)

__all__ = [
    "BROKEN",
    "DONE",
    "DROPPED",
    "DROPPED_REASON",
    "FAILED",
    "FAILURE",
    "JUDGES",
    "NEED_RULES",
    "NODE_PATH",
    "NO_TOKENS",
    "OUTAGE",
    "PACKAGED",
    "PRESETS",
    "TRANSCRIPT",
    "TURN_DENSE",
    "TURN_NOTES",
    "TURN_REWARDS",
    "Passage",
    "ToolCall",
    "ToolReport",
    "Transcript",
    "Turn",
    "TurnRewards",
    "load_preset",
    "paper_v1",
    "paper_v2",
    "pay",
    "search_r1_em",
    "search_r1_format",
    "tool_use",
]
