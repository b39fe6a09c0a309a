"""Let a language model score each turn and the outcome (``reward.turn.preset=judge``).

The rules are our own, in the spirit of the generative judge of arXiv 2505.11821 v2; the paper's rules are in
:mod:`~verl_mtgrpo.rewards.judge_paper`::

    R^I_k = s_k - 0.1 · (searches up to and with turn k),   s_k in [-1, 1],   k < K
    R^O   = 1.0 right | 0.0 wrong

One request scores all turns that search, so the judge reads a rollout once, however many turns it has. The last turn is
paid R^O alone, so this request neither shows nor scores it, even if it still searches. Therefore no turn is graded by
the final answer, and the rubric says that later turns do not count either. A second, short request shows only the final
answer, so that nothing the rollout says about itself can change R^O. The price of a search is computed here, not by the
judge.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from verl_mtgrpo.errors import JudgeError
from verl_mtgrpo.rewards.judge_client import AskingReward, Case, Reply, Scores
from verl_mtgrpo.rewards.judge_text import form_of_scores, read_score, read_scores, shown

PER_SEARCH = -0.1

TURN_RUBRIC = """\
You grade turns of an assistant that answers a question with the help of a search tool. Consider three things \
equally: is the turn in the format it should be in and complete; is its reasoning sound; does its search help to find \
the accepted answer. Give each a score from -1 (harmful) over 0 (neither) to 1 (as good as it can be). Grade each turn \
by what was known when it was written and by its own results: what later turns do or find changes nothing."""
OUTCOME_RUBRIC = """\
You grade the final answer of an assistant. Give 1 if it means the same as one of the accepted answers, else 0. \
Wording, case and extra detail do not matter; several answers of which one is right are wrong."""
OUTCOME = Reply(
    'Answer with one JSON object and nothing else: {"reason": "<one short sentence>", "score": <number>}.',
    partial(read_score, span=(0.0, 1.0)),
    "The score is a number from 0 to 1.",
)


class Judge(AskingReward):
    """The preset ``judge``."""

    preset = "judge"

    async def judge(self, case: Case) -> Scores:
        """Score one rollout, or raise ``JudgeError``."""
        asked = asyncio.ensure_future(self.ask_outcome(case, OUTCOME_RUBRIC, OUTCOME))
        try:
            by_turn, outcome = await asyncio.gather(self._turns(case), asked)
        except BaseException:
            asked.cancel()  # the other request would take up a slot although this rollout will have no score
            raise
        searches, rewards = 0, list[float]()
        for k, turn in enumerate(case.transcript.turns[:-1]):
            searches += len(turn.tool_calls)
            rewards.append(by_turn[k] + PER_SEARCH * searches if k in by_turn else 0.0)
        return Scores(rewards, float(outcome >= 0.5), list(by_turn.values()))

    async def _turns(self, case: Case) -> dict[int, float]:
        """Return the scores of the turns that search, by index, without the last turn."""
        turns = case.transcript.turns
        searching = [k for k, turn in enumerate(turns[:-1]) if turn.tool_calls]
        if not searching:
            return {}
        data = case.data(format=case.transcript.format, turns=shown(turns[: searching[-1] + 1]))
        spans = [(-1.0, 1.0)] * len(searching)
        reply = Reply(
            form_of_scores([k + 1 for k in searching]),
            partial(read_scores, spans=spans),
            "Each score is a number from -1 to 1.",
        )
        return dict(zip(searching, await self.ask(TURN_RUBRIC, data, reply, case.usage), strict=True))


def scored_by_judge(**_: Any) -> float:
    """Serve as the reward function without which verl does not use a reward manager with a generative reward model.

    Set ``reward.custom_reward_function.path=pkg://verl_mtgrpo.rewards.judge`` and ``name=scored_by_judge``. It is never
    called.
    """
    raise JudgeError(
        "scored_by_judge was called, and it scores nothing",
        fix="set reward.turn.preset=judge or judge_paper, whose scores take its place",
    )
