"""What is measured of every rollout beside its rewards, whatever the reward function."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from verl_mtgrpo.rewards.transcript import OUTAGE, Transcript, TurnRewards

CALL_ERRORS = ("unknown_tool", "bad_arguments", "no_query", "search_limit", "tool_exception", "tool_error")
"""Kinds of failed calls that the model is to blame for, or a tool of one's own."""
SERVICE_ERRORS = ("timeout", "unreachable", "busy", "server_error", "bad_answer", "rejected", "bad_index", "outage")
"""Kinds of failures of the search itself; ``kind`` of the errors below ``RetrievalError``."""
NO_HITS = "no_hits"
"""Kind of a search that worked and found nothing (``ok`` is True)."""


def tool_use(transcript: Transcript) -> dict[str, float | None]:
    """``tool/calls``, ``tool/used`` (1 if a call was carried out), ``tool/success`` (None without a call),
    ``tool/repeats`` (searches for what this rollout had asked before)."""
    calls = _calls(transcript)
    done = sum(call.ok for call in calls)
    return {
        "tool/calls": float(len(calls)),
        "tool/used": float(done > 0),
        "tool/success": done / len(calls) if calls else None,
        "tool/repeats": float(sum(call.repeat for call in calls)),
    }


def tool_trouble(transcript: Transcript) -> dict[str, float | None]:
    """What went wrong with the tools, and how long they took; also of rollouts that are dropped.

    ``tool/errors/<kind>``: calls that ended so. ``tool/retried/<kind>``: tries that failed so and were repeated.
    ``tool/outage``: 1 if the rollout ended because the search was down. Kinds that are none of ours count as
    ``tool_error``. ``tool/latency_s`` is the longest call, None without one.
    """
    calls = _calls(transcript)
    kinds = (*CALL_ERRORS, *SERVICE_ERRORS, NO_HITS)
    ended = Counter(call.error_kind if call.error_kind in kinds else "tool_error" for call in calls if call.error_kind)
    tried = Counter(fault for call in calls for fault in call.faults)
    return {
        **{f"tool/errors/{kind}": float(ended[kind]) for kind in kinds},
        **{f"tool/retried/{kind}": float(tried[kind]) for kind in SERVICE_ERRORS if kind not in ("rejected", "outage")},
        "tool/outage": float(transcript.end_reason == OUTAGE),
        "tool/latency_s": max((call.latency_s for call in calls), default=None),
    }


def charge_repeats(transcript: Transcript, rewards: TurnRewards, price: float) -> TurnRewards:
    """R^I_k - price · (calls of turn k that repeat an earlier search of the rollout)."""
    if not price:
        return rewards
    repeats = [sum(call.repeat for call in turn.tool_calls) for turn in transcript.turns]
    charged = tuple(reward - price * count for reward, count in zip(rewards.turns, repeats, strict=True))
    return replace(rewards, turns=charged)


def _calls(transcript: Transcript):
    return [call for turn in transcript.turns for call in turn.tool_calls]
