"""The paper's first reward set: tool use and hits per turn, the answer as outcome.

Values: arXiv 2505.11821 v1 and its code (SiliangZeng/Multi-Turn-RL-Agent @7dbdd08, verifiers/rubrics/
tool_rubric.py and triviaqa_rubric.py). With at most one search, the turn reward is at most 0.7::

    R^I_k = 0.2 · (calls of turn k that were carried out / calls attempted in turn k)
          + 0.5 · [turn k's results are the first that hold an accepted answer]
    R^O   = 0.5 · [an accepted answer occurs in the last <answer>] + 1.0 · [it equals one]
          + 0.2 · (share of turns that are well formed)

Difference from the paper's code: the format part. The code scores its own ``<reasoning>``/``<tool>``
tags; here a turn is well formed if it holds exactly one tool call, or exactly one ``<answer>`` that ends
the turn, and nothing of the other kind (hermes tags).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from verl_mtgrpo.rewards.answers import CLOSE, OPEN, accepted_answers, is_exact, last_answer, mentions
from verl_mtgrpo.rewards.transcript import Transcript, Turn, TurnRewards

EXECUTION, HIT, CONTAINS, EXACT, FORMAT = 0.2, 0.5, 0.5, 1.0, 0.2

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def paper_v1(transcript: Transcript, ground_truth: Any) -> TurnRewards:
    """Score one rollout.

    Args:
        transcript: The rollout. Only what the model wrote counts as its answer and only what a tool
            returned counts as a hit: text that merely looks like a result earns nothing.
        ground_truth: ``reward_model.ground_truth`` of the row.
    """
    accepted = accepted_answers(ground_truth)
    answer = last_answer([turn.text for turn in transcript.turns])
    hit_turn = first_hit(transcript.turns, accepted)
    turn_rewards = tuple(
        EXECUTION * execution_rate(turn) + HIT * (k == hit_turn) for k, turn in enumerate(transcript.turns)
    )
    contains, exact = mentions(answer, accepted), is_exact(answer, accepted)
    well_formed = format_rate(transcript.turns)
    calls = [call for turn in transcript.turns for call in turn.tool_calls]
    done = [call for call in calls if call.ok]
    return TurnRewards(
        turns=turn_rewards,
        outcome=CONTAINS * contains + EXACT * exact + FORMAT * well_formed,
        components={
            "tool/calls": float(len(calls)),
            "tool/used": float(bool(done)),
            "tool/success": len(done) / len(calls) if calls else None,
            "tool/hit": float(hit_turn is not None),
            "outcome/em": float(exact),
            "outcome/contains": float(contains),
            "outcome/format": well_formed,
        },
    )


def execution_rate(turn: Turn) -> float:
    """Share of the turn's tool calls that were carried out; 0.0 without an attempt."""
    if not turn.tool_calls:
        return 0.0
    return sum(call.ok for call in turn.tool_calls) / len(turn.tool_calls)


def first_hit(turns: Sequence[Turn], accepted: Sequence[str]) -> int | None:
    """Index of the first turn with a result, seen by the model, that holds an accepted answer."""
    for k, turn in enumerate(turns):
        if any(call.ok and call.seen and mentions(call.result, accepted) for call in turn.tool_calls):
            return k
    return None


def format_rate(turns: Sequence[Turn]) -> float:
    """Share of turns that are well formed; 0.0 without turns."""
    return sum(_well_formed(turn.text) for turn in turns) / len(turns) if turns else 0.0


def _well_formed(text: str) -> bool:
    tags = [text.count(tag) for tag in ("<tool_call>", "</tool_call>", OPEN, CLOSE)]
    if tags == [1, 1, 0, 0]:
        call = _CALL.search(text)
        return call is not None and _is_call(call.group(1))
    return tags == [0, 0, 1, 1] and text.find(OPEN) < text.find(CLOSE) and text.rstrip().endswith(CLOSE)


def _is_call(text: str) -> bool:
    try:
        call = json.loads(text)
    except ValueError:
        return False
    return isinstance(call, dict) and isinstance(call.get("name"), str) and "arguments" in call
