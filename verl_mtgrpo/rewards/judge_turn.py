"""Ask the judge how good a proposed turn is, before it is taken (``trainer.turn.decide.score=judge``).

It is shown the question, the turns so far and the proposal. It is shown neither an accepted answer nor a result of the
proposal, which has none yet.
"""

from __future__ import annotations

from typing import Any

from verl_mtgrpo.errors import JudgeError
from verl_mtgrpo.rewards.judge_client import AskingReward, Case, JudgeSettings, Reply, Scores, Usage
from verl_mtgrpo.rewards.judge_rubric import rubric_text
from verl_mtgrpo.rewards.judge_text import Graded, graded, question_of, read_score, shown
from verl_mtgrpo.rewards.transcript import Transcript, Turn

RUBRIC = """\
You grade the next turn that an assistant proposes in a task with tools, before it is taken. Consider three things \
equally: is it in the format it should be in and complete; is its reasoning sound; does what it does help to answer \
the question rightly. An answer that the results so far do not support is a bad turn."""
SCALE = "Give the proposed turn a score from -1 (harmful) over 0 (neither) to 1 (as good as it can be)."


def _read(text: str) -> Graded | None:
    score = read_score(text, (-1.0, 1.0))
    return graded(None if score is None else [score], text)


REPLY = Reply(
    'Answer with one JSON object and nothing else: {"reason": "<one short sentence>", "score": <number>}.',
    _read,
    "The score is a number from -1 to 1.",
)


class TurnJudge(AskingReward):
    """Scores proposed turns. ``reward.turn.judge.rubric`` replaces the rubric."""

    preset = "judge"

    def __init__(self, settings: JudgeSettings, secret: str = "") -> None:
        """Set up the judge with its rubric."""
        super().__init__(settings, secret)
        self.rubric = f"{rubric_text(settings.rubric, 'reward.turn.judge.rubric', RUBRIC)}\n{SCALE}"

    async def score(self, transcript: Transcript, turn: Turn) -> float:
        """Return the judge's score of a proposed turn, in [-1, 1].

        Raises:
            JudgeError: The judge could not be reached, or gave no score.
        """
        turns: list[dict[str, Any]] = shown([*transcript.turns, turn])
        data = {"question": question_of(transcript), "format": transcript.format, "turns": turns}
        return (await self.ask(self.rubric, data, REPLY, Usage()))["scores"][0]

    async def judge(self, case: Case) -> Scores:
        """Refuse whole rollouts."""
        raise JudgeError("this judge scores proposed turns and no rollouts", fix="use reward.turn.preset=judge")
