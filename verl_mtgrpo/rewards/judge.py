"""A language model as judge: a score per turn and one for the outcome (``reward.turn.preset=judge``).

Of this package, in the spirit of the generative judge of arXiv 2505.11821 v2, whose own rules are in
:mod:`~verl_mtgrpo.rewards.judge_paper`::

    R^I_k = s_k - 0.1 · (searches up to and with turn k),   s_k in [-1, 1],   k < K
    R^O   = 1.0 right | 0.0 wrong

One request for each turn that searches and one for the outcome; the price of a search is counted here. The last turn is
paid R^O alone: one that still searches is not asked about and has no price.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from verl_mtgrpo.errors import JudgeError
from verl_mtgrpo.rewards.answers import accepted_answers, contains, f1, last_answer
from verl_mtgrpo.rewards.judge_client import (
    AskingReward,
    Reply,
    Usage,
    number_in,
    question_of,
    read_object,
    shown,
)
from verl_mtgrpo.rewards.transcript import Transcript, TurnRewards

PER_SEARCH = -0.1

TURN_RUBRIC = """\
You grade one turn of an assistant that answers a question with the help of a search tool. Consider three things \
equally: is the turn in the format it should be in and complete; is its reasoning sound; does its search help to find \
the accepted answer. Give a score from -1 (harmful) over 0 (neither) to 1 (as good as it can be)."""
OUTCOME_RUBRIC = """\
You grade the final answer of an assistant. Give 1 if it means the same as one of the accepted answers, else 0. \
Wording, case and extra detail do not matter; several answers of which one is right are wrong."""
FORM = 'Answer with one JSON object and nothing else: {"reason": "<one short sentence>", "score": <number>}.'


class Judge(AskingReward):
    """The preset ``judge``."""

    preset = "judge"

    async def judge(self, transcript: Transcript, ground_truth: Any) -> TurnRewards:
        """Score one rollout, or raise ``JudgeError``."""
        accepted, usage = accepted_answers(ground_truth), Usage()
        before_last = transcript.turns[:-1]
        searching = [k for k, turn in enumerate(before_last) if turn.tool_calls]
        answer = last_answer([turn.text for turn in transcript.turns])
        turn_reply = score_between(-1.0, 1.0)
        scores = await asyncio.gather(
            *(self.ask(TURN_RUBRIC, _turn_case(transcript, k, accepted), turn_reply, usage) for k in searching),
            self._outcome(transcript, answer, accepted, usage),
        )
        outcome, by_turn = scores[-1], dict(zip(searching, scores, strict=False))
        searches, turn_rewards = 0, list[float]()
        for k, turn in enumerate(before_last):
            searches += len(turn.tool_calls)
            turn_rewards.append(by_turn[k] + PER_SEARCH * searches if k in by_turn else 0.0)
        return TurnRewards(
            turns=(*turn_rewards, 0.0) if transcript.turns else (),
            outcome=outcome,
            components={
                "outcome/judge": outcome,
                "outcome/contains": float(contains(answer, accepted)),
                "outcome/f1": f1(answer, accepted),
                "judge/turn_score": sum(by_turn.values()) / len(by_turn) if by_turn else None,
                **usage.components,
            },
        )

    async def _outcome(
        self, transcript: Transcript, answer: str | None, accepted: Sequence[str], usage: Usage
    ) -> float:
        if not answer:
            return 0.0  # nothing to ask
        case = {"question": question_of(transcript), "accepted answers": list(accepted), "answer": answer}
        return float(await self.ask(OUTCOME_RUBRIC, case, score_between(0.0, 1.0), usage) >= 0.5)


def scored_by_judge(**_: Any) -> float:
    """Stands where verl wants a reward function before it asks a reward manager beside a generative reward model.

    ``reward.custom_reward_function.path=pkg://verl_mtgrpo.rewards.judge``, ``name=scored_by_judge``. Never called.
    """
    raise JudgeError(
        "scored_by_judge was called; it goes with reward.turn.preset=judge or judge_paper, whose scores replace it"
    )


def score_between(low: float, high: float) -> Reply[float]:
    """The reply that holds one score."""
    return Reply(FORM, lambda text: read_score(text, (low, high)), f"The score is a number from {low:g} to {high:g}.")


def read_score(text: str, span: tuple[float, float]) -> float | None:
    """The score in a judge's answer; None if it is not one JSON object with a number inside ``span``."""
    return number_in(read_object(text).get("score"), span)


def _turn_case(transcript: Transcript, k: int, accepted: Sequence[str]) -> dict[str, Any]:
    return {
        "question": question_of(transcript),
        "accepted answers": list(accepted),
        "format": transcript.format,
        "turns before": [shown(turn) for turn in transcript.turns[:k]],
        "turn to grade": shown(transcript.turns[k]),
    }
