"""Turn-level rewards: pure functions from a rollout's transcript to one reward per turn and an outcome."""

from verl_mtgrpo.rewards.paper_v1 import paper_v1
from verl_mtgrpo.rewards.paper_v2 import paper_v2
from verl_mtgrpo.rewards.presets import PRESETS, load_preset, pay
from verl_mtgrpo.rewards.transcript import (
    DROPPED,
    DROPPED_REASON,
    OUTAGE,
    TRANSCRIPT,
    TURN_REWARDS,
    Document,
    ToolCall,
    Transcript,
    Turn,
    TurnRewards,
)

__all__ = [
    "DROPPED",
    "DROPPED_REASON",
    "OUTAGE",
    "PRESETS",
    "TRANSCRIPT",
    "TURN_REWARDS",
    "Document",
    "ToolCall",
    "Transcript",
    "Turn",
    "TurnRewards",
    "load_preset",
    "paper_v1",
    "paper_v2",
    "pay",
]
