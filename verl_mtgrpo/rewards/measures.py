"""What every preset reports beside its rewards."""

from __future__ import annotations

from verl_mtgrpo.rewards.transcript import Transcript


def tool_use(transcript: Transcript) -> dict[str, float | None]:
    """``tool/calls``, ``tool/used`` (1 if a call was carried out) and ``tool/success`` (None without a call)."""
    calls = [call for turn in transcript.turns for call in turn.tool_calls]
    done = sum(call.ok for call in calls)
    return {
        "tool/calls": float(len(calls)),
        "tool/used": float(done > 0),
        "tool/success": done / len(calls) if calls else None,
    }
