"""Let a language model score each turn and the outcome (``reward.turn.preset=judge``).

The rules are our own, in the spirit of the generative judge of arXiv 2505.11821 v2; the paper's rules are in
:mod:`~verl_mtgrpo.rewards.judge_paper`::

    R^I_k = s_k - call_price · (tool calls up to and with turn k),   s_k in [-1, 1],   k < K
    R^O   = 1.0 right | 0.0 wrong

What is good and what is right, a rubric says: ours, which names no tool, or the user's (:mod:`~.judge_rubric`).

One request scores all turns that call a tool, so the judge reads a rollout once, however many turns it has. The last
turn is paid R^O alone, so this request neither shows nor scores it, even if it still calls one. Therefore no turn is
graded by the final answer, and the rubric says that later turns do not count either. A second, short request shows only
the final answer, so that nothing the rollout says about itself can change R^O. The price of a call is computed here,
not by the judge. The reasons that the judge gives become notes of the turns and of the outcome.
"""

from __future__ import annotations

import asyncio
from typing import Any

from verl_mtgrpo.errors import JudgeError
from verl_mtgrpo.rewards.judge_client import AskingReward, Case, JudgeSettings, Reply, Scores, noted
from verl_mtgrpo.rewards.judge_rubric import OUTCOME_RUBRIC, OUTCOME_SCALE, TURN_RUBRIC, TURN_SCALE, rubric_text
from verl_mtgrpo.rewards.judge_text import Graded, form_of_scores, graded, read_score, read_scores, shown
from verl_mtgrpo.rewards.transcript import Turn

OUTCOME_FORM = 'Answer with one JSON object and nothing else: {"reason": "<one short sentence>", "score": <number>}.'


class Judge(AskingReward):
    """The preset ``judge``."""

    preset = "judge"

    def __init__(self, settings: JudgeSettings, secret: str = "") -> None:
        """Set up the judge with its rubrics."""
        super().__init__(settings, secret)
        rubric = rubric_text(settings.rubric, "reward.turn.judge.rubric", TURN_RUBRIC)
        outcome = rubric_text(settings.outcome_rubric, "reward.turn.judge.outcome_rubric", OUTCOME_RUBRIC)
        self.rubric, self.outcome_rubric = f"{rubric}\n{TURN_SCALE}", f"{outcome}\n{OUTCOME_SCALE}"

    async def judge(self, case: Case) -> Scores:
        """Score one rollout, or raise ``JudgeError``."""
        asked = asyncio.ensure_future(self.ask_outcome(case, self.outcome_rubric, OUTCOME))
        try:
            by_turn, (outcome, why) = await asyncio.gather(self._turns(case), asked)
        except BaseException:
            asked.cancel()  # the other request would take up a slot although this rollout will have no score
            raise
        price, calls, rewards, notes = self.settings.call_price, 0, list[float](), list[str]()
        for k, turn in enumerate(case.transcript.turns[:-1]):
            calls += len(turn.tool_calls)
            score, reason = by_turn.get(k, (None, ""))
            rewards.append(0.0 if score is None else score - price * calls)
            notes.append(_note(turn, score, reason, calls, price))
        given = [score for score, _ in by_turn.values()]
        return Scores(rewards, float(outcome >= 0.5), given, notes, why)

    async def _turns(self, case: Case) -> dict[int, tuple[float, str]]:
        """Return score and reason of the turns that call a tool, by index, without the last turn."""
        turns = case.transcript.turns
        calling = [k for k, turn in enumerate(turns[:-1]) if turn.tool_calls]
        if not calling:
            return {}
        data = case.data(format=case.transcript.format, turns=shown(turns[: calling[-1] + 1]))
        spans = [(-1.0, 1.0)] * len(calling)
        reply = Reply(
            form_of_scores([k + 1 for k in calling]),
            lambda text: graded(read_scores(text, spans), text),
            "Each score is a number from -1 to 1.",
        )
        found = await self.ask(self.rubric, data, reply, case.usage)
        return dict(zip(calling, zip(found["scores"], found["reasons"], strict=True), strict=True))


def _note(turn: Turn, score: float | None, reason: str, calls: int, price: float) -> str:
    """Return what a turn earned its reward for."""
    if score is None:
        return "no tool call, so the judge was not asked"
    cost = f"; {calls} call{'s' if calls > 1 else ''} so far: {-price * calls:+.3g}" if price else ""
    return noted(score, reason, cost)


def _read_outcome(text: str) -> Graded | None:
    score = read_score(text, (0.0, 1.0))
    return graded(None if score is None else [score], text)


OUTCOME = Reply(OUTCOME_FORM, _read_outcome, "The score is a number from 0 to 1.")


def scored_by_judge(**_: Any) -> float:
    """Serve as the reward function without which verl does not use a reward manager with a generative reward model.

    Set ``reward.custom_reward_function.path=pkg://verl_mtgrpo.rewards.judge`` and ``name=scored_by_judge``. It is never
    called.
    """
    raise JudgeError(
        "scored_by_judge was called, and it scores nothing",
        fix="set reward.turn.preset=judge or judge_paper, whose scores take its place",
    )
