"""Measure tool use in every rollout, independently of the reward function."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from verl_mtgrpo.rewards.transcript import OUTAGE, ToolCall, Transcript, TurnRewards

NOT_CARRIED_OUT = "not_carried_out"
"""Error kind of a call beyond verl's ``max_parallel_calls``, which no tool received."""
BAD_ARGUMENTS = "bad_arguments"
"""Error kind of a call whose arguments are not JSON or do not fit the tool, or that verl's parser drops."""
CALL_ERRORS = (
    "unknown_tool",
    BAD_ARGUMENTS,
    NOT_CARRIED_OUT,
    "no_query",
    "search_limit",
    "tool_exception",
    "tool_error",
)
"""Kinds of failed calls caused by the model or by a custom tool."""
SERVICE_ERRORS = ("timeout", "unreachable", "busy", "server_error", "bad_answer", "rejected", "bad_index", "outage")
"""Kinds of failures of the search itself; ``kind`` of the errors below ``RetrievalError``."""
ENVIRONMENT_ERRORS = ("environment_error", "environment_timeout")
"""Kinds of failures of an environment."""
KINDS = (*CALL_ERRORS, *SERVICE_ERRORS, *ENVIRONMENT_ERRORS)
NO_HITS = "no_hits"
"""Kind of a search that worked and found nothing (``ok`` is True)."""


DEFUSED = "tool/defused"
"""Metric: number of results in which text was broken up that would have been control tokens for the model."""
BY_KIND = ("tool/errors/", "tool/retried/", DEFUSED)
"""Names with these prefixes are absent if they are 0."""


def tool_use(transcript: Transcript) -> dict[str, float | None]:
    """Measure tool use.

    ``tool/used``: 1 if a call was carried out. ``tool/success``: share of the calls that were, None without a call.
    ``tool/repeats``: searches that repeat an earlier one of the rollout.
    """
    calls = _calls(transcript)
    done = sum(call.ok for call in calls)
    return {
        "tool/used": float(done > 0),
        "tool/success": done / len(calls) if calls else None,
        "tool/repeats": float(sum(call.repeat for call in calls)),
    }


def tool_trouble(transcript: Transcript) -> dict[str, float | None]:
    """Measure calls, their errors and their duration, for dropped rollouts too.

    These are always there: ``tool/calls``, all calls that the model wrote; ``tool/failures``, calls that failed or were
    never carried out; ``tool/retries``, tries that failed and were repeated; ``tool/no_hits``, searches that worked and
    found nothing; ``tool/outage``, 1 if the rollout ended because the search was down; ``tool/latency_s``, the longest
    call (None without one). These are there only if they are not 0, since verl's validation makes a dozen metrics of
    each name: ``tool/errors/<kind>`` and ``tool/retried/<kind>`` (unknown kinds count as ``tool_error``), and
    ``tool/defused``, results that contained control tokens.
    """
    calls = _calls(transcript)
    failed = [call.error_kind if call.error_kind in KINDS else "tool_error" for call in calls if not call.ok]
    # If the call failed, its last failed try is its error and was not repeated.
    repeated = [fault for call in calls for fault in (call.faults if call.ok else call.faults[:-1])]
    return {
        "tool/calls": float(len(calls)),
        "tool/failures": float(len(failed)),
        "tool/retries": float(len(repeated)),
        "tool/no_hits": float(sum(call.error_kind == NO_HITS for call in calls)),
        "tool/outage": float(transcript.end_reason == OUTAGE),
        "tool/latency_s": max((call.latency_s for call in calls), default=None),
        **({DEFUSED: float(defused)} if (defused := sum(call.defused for call in calls)) else {}),
        **{f"tool/errors/{kind}": float(count) for kind, count in Counter(failed).items()},
        **{f"tool/retried/{kind}": float(count) for kind, count in Counter(repeated).items()},
    }


def charge_repeats(transcript: Transcript, rewards: TurnRewards, price: float) -> TurnRewards:
    """Return the rewards R^I_k - price · (calls of turn k that repeat an earlier search of the rollout), k < K.

    The last turn is paid the outcome alone, even if it still searches.
    """
    if not price:
        return rewards
    repeats = [sum(call.repeat for call in turn.tool_calls) for turn in transcript.turns[:-1]]
    charged = [reward - price * count for reward, count in zip(rewards.turns, repeats, strict=False)]
    notes = [
        f"{note}; {count} repeated: {-price * count:+.3g}" if count else note
        for note, count in zip(rewards.notes, [*repeats, 0], strict=False)
    ]
    return replace(rewards, turns=(*charged, *rewards.turns[len(charged) :]), notes=tuple(notes))


def _calls(transcript: Transcript) -> list[ToolCall]:
    return [call for turn in transcript.turns for call in turn.tool_calls]
