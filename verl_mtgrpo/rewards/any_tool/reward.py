"""Pay turns for the use of any tool (``reward.turn.preset=tool_use``): no search, no tags and no tool is special.

For turn k before the last, with n_k calls that the model wrote (:mod:`~.calls` says what each word means)::

    R^I_k = succeeded · (calls of turn k that succeeded / n_k)
          + changed   · (calls of turn k that changed something / n_k)
          + used      · (calls of turn k whose result the answer uses / n_k)
          - repeat_price · (calls of turn k that repeat an earlier one)
          - call_price   · n_k
    R^O   = 1 if the answer is an accepted one (SQuAD's exact match), else 0

The first three are shares, so several calls in a turn earn no more than one. A turn without a call earns 0. The last
turn K is paid R^O alone, as everywhere in this package, even if it still calls a tool: a rollout that never calls has
one turn and earns R^O. With ``reward.turn.outcome=compute_score`` the answer is not compared, and the ground truth may
be anything.

The answer is the last ``<answer>`` or, in a rollout that ended by answering without one, the text of its last turn
without the thought.
"""

from __future__ import annotations

from typing import Any

from verl_mtgrpo.rewards.answers import accepted_answers, contains, exact_match, f1, last_answer
from verl_mtgrpo.rewards.any_tool.calls import (
    ByCall,
    call_succeeded,
    changed_calls,
    repeated_calls,
    telling_words,
    used_calls,
)
from verl_mtgrpo.rewards.transcript import LAST_TURN, Transcript, Turn, TurnRewards

_END_OF_THOUGHT = "</think>"


def tool_use(
    transcript: Transcript,
    ground_truth: Any,
    *,
    succeeded: float = 0.2,
    changed: float = 0.3,
    used: float = 0.0,
    repeat_price: float = 0.0,
    call_price: float = 0.0,
    compare: bool = True,
) -> TurnRewards:
    """Score one rollout.

    Args:
        transcript: The rollout, in any format.
        ground_truth: ``reward_model.ground_truth`` of the row.
        succeeded: Weight of the share of calls that succeeded.
        changed: Weight of the share of calls that changed something.
        used: Weight of the share of calls whose result the answer uses.
        repeat_price: Price of a repeated call.
        call_price: Price of a call.
        compare: False: the outcome comes from elsewhere, so the ground truth is not read and R^O is 0 here.

    Returns:
        The rewards. All components are measured, whatever their weights: ``tool/calls_succeeded``,
        ``tool/calls_changed`` and ``tool/calls_used`` are shares of the rollout's calls (None without a call),
        ``tool/calls_repeated`` is a number of calls, ``tool/calls_cost`` what all calls of paid turns cost.
    """
    answer = answer_of(transcript)
    words = telling_words(answer or "")
    by_call: dict[str, ByCall] = {
        "succeeded": [[call_succeeded(call) for call in turn.tool_calls] for turn in transcript.turns],
        "changed": changed_calls(transcript.turns),
        "used": used_calls(transcript, words),
        "repeated": repeated_calls(transcript.turns),
    }
    weights = {"succeeded": succeeded, "changed": changed, "used": used}
    paid, notes, cost = list[float](), list[str](), 0.0
    for k, turn in enumerate(transcript.turns[:-1]):
        parts = _parts(turn, {name: calls[k] for name, calls in by_call.items()}, weights, repeat_price, call_price)
        paid.append(sum(amount for _, amount in parts))
        cost -= sum(amount for _, amount in parts if amount < 0)
        notes.append(_note(turn, parts))
    last = min(1, len(transcript.turns))  # 0 in a rollout without a turn
    outcome, note, measured = _outcome(answer, ground_truth) if compare else (0.0, "", {})
    return TurnRewards(
        turns=(*paid, *[0.0] * last),
        outcome=outcome,
        components={
            "tool/calls_succeeded": _share(by_call["succeeded"]),
            "tool/calls_changed": _share(by_call["changed"]),
            "tool/calls_used": _share(by_call["used"]) if words else None,
            "tool/calls_repeated": float(sum(map(sum, by_call["repeated"]))),
            "tool/calls_cost": cost,
            **measured,
        },
        notes=(*notes, *[LAST_TURN] * last),
        outcome_note=note,
    )


def answer_of(transcript: Transcript) -> str | None:
    """Return the rollout's answer as this preset reads it; None if it gave none."""
    tagged = last_answer([turn.text for turn in transcript.turns])
    if tagged is not None or transcript.end_reason != "answered" or not transcript.turns:
        return tagged
    return transcript.turns[-1].text.rpartition(_END_OF_THOUGHT)[2].strip()


def _parts(
    turn: Turn, calls: dict[str, list[bool]], weights: dict[str, float], repeat_price: float, call_price: float
) -> list[tuple[str, float]]:
    """Return what a turn earns, part by part, in words and as a number; components that are off are left out."""
    count = len(turn.tool_calls)
    if not count:
        return []
    parts = [
        (f"{name} {sum(calls[name])} of {count}", weight * sum(calls[name]) / count)
        for name, weight in weights.items()
        if weight
    ]
    if repeat_price and any(calls["repeated"]):
        parts.append((f"{sum(calls['repeated'])} repeated", -repeat_price * sum(calls["repeated"])))
    if call_price:
        parts.append((f"{count} call{'s' if count > 1 else ''}", -call_price * count))
    return parts


def _note(turn: Turn, parts: list[tuple[str, float]]) -> str:
    if not turn.tool_calls:
        return "no tool call"
    return "; ".join(f"{words}: {amount:+.3g}" for words, amount in parts) or "nothing is paid for it"


def _outcome(answer: str | None, ground_truth: Any) -> tuple[float, str, dict[str, float | None]]:
    accepted = accepted_answers(ground_truth)
    right = exact_match(answer, accepted)
    measured: dict[str, float | None] = {
        "outcome/em": float(right),
        "outcome/contains": float(contains(answer, accepted)),
        "outcome/f1": f1(answer, accepted),
    }
    note = "no answer" if answer is None else "an accepted answer" if right else "not an accepted answer"
    return float(right), note, measured


def _share(by_call: ByCall) -> float | None:
    """Return the share of the calls for which it is true; None without a call."""
    calls = [one for turn in by_call for one in turn]
    return sum(calls) / len(calls) if calls else None
