"""Judge rollouts by the paper's rules: one request scores every turn (``reward.turn.preset=judge_paper``).

These are the rules of the two prompts in arXiv 2505.11821 v2, appendix C.2, in our words; the paper asks gpt-oss-120b.
The judge applies all of them itself, including the price of searches.

Turns (MT-PPO; ``reward.turn.pay`` turns or merged): one request for the whole rollout, one score for each turn::

    R^I_k = (0.1 if turn k is well formed, else -0.2) + (0.3 if its results hold an accepted answer, else 0)
          - 0.1 · (searches up to and with turn k)                        for turns before the last
    R^O   = 1.0 right and well formed | 0.2 well formed, wrong | -1.0 malformed        for the last turn

Outcome (PPO-OR; ``reward.turn.pay=outcome``): R^O = 1.0 right | 0.0 wrong, and no turn is asked about.

An answer of more than 5 tokens is wrong in both. The form of the reply is ours, JSON instead of the paper's text, so
that it can be checked: exactly one finite score per turn, within the range that these rules allow. If a reply has
another form, the judge is asked once more; after that it is an error.
"""

from __future__ import annotations

from functools import partial

from verl_mtgrpo.rewards.formats import ANSWER, TextFormat, text_format
from verl_mtgrpo.rewards.judge_client import AskingReward, Case, JudgeSettings, Reply, Scores, noted
from verl_mtgrpo.rewards.judge_text import Graded, form_of_scores, graded, number_in, read_object, read_scores, shown

MALFORMED, WRONG, RIGHT = -1.0, 0.2, 1.0
"""The possible scores of the last turn."""
LEAST, MOST, PER_SEARCH = -0.2, 0.4, -0.1
"""Bounds of the scores of earlier turns, and the price of a search, which is added to them."""

TURN_RULES = """\
You grade every turn of an assistant that answers a question with the help of a search tool. The rules are exact: \
follow them and add nothing of your own.

The last turn gets one of three scores.
- -1.0: malformed. Well formed is a turn that consists of the thought and the answer in their tags, each exactly once, \
the thought first. A last turn that searches is malformed.
- 0.2: well formed, but the answer is wrong. An answer of more than 5 tokens is wrong, whatever it says.
- 1.0: well formed, and the answer means the same as one of the accepted answers.

Every turn before the last gets the sum of three parts.
- Format: 0.1 if the turn consists of the thought, the search and its result in their tags, each exactly once and in \
this order; else -0.2.
- Information: 0.3 if what the search returned in this turn holds one of the accepted answers; else 0.
- Searches: -0.1 for each search made so far, from the first turn up to and with this one."""
OUTCOME_RULES = """\
You grade the final answer of an assistant to a question. Give 1.0 if it means the same as one of the accepted \
answers, else 0.0. An answer of more than 5 tokens is wrong, whatever it says."""
NOT_ASKED = "only the outcome is paid, so the judge was not asked"
OUTCOME_FORM = 'Answer with one JSON object and nothing else: {"reason": "<short>", "score": <1.0 or 0.0>}.'


class PaperJudge(AskingReward):
    """The preset ``judge_paper``."""

    preset = "judge_paper"

    def __init__(self, settings: JudgeSettings, pay: str, secret: str = "") -> None:
        """Set up the judge; with ``pay`` (``reward.turn.pay``) ``outcome``, only the outcome is asked for."""
        super().__init__(settings, secret)
        self.only_outcome = pay == "outcome"

    async def judge(self, case: Case) -> Scores:
        """Score one rollout, or raise ``JudgeError``."""
        if self.only_outcome:
            before_last = [0.0] * (len(case.transcript.turns) - 1)
            score, why = await self.ask_outcome(case, OUTCOME_RULES, OUTCOME)
            return Scores(before_last, score, [], [NOT_ASKED] * len(before_last), why)
        found = await self._turns(case)
        *before_last, outcome = found["scores"]
        *notes, last = map(noted, found["scores"], found["reasons"])
        return Scores(before_last, outcome, before_last, notes, last)

    async def _turns(self, case: Case) -> Graded:
        turns = case.transcript.turns
        if not turns:
            return {"scores": [MALFORMED], "reasons": ["nothing was written, so the judge was not asked"]}
        count, calls = len(turns), sum(len(turn.tool_calls) for turn in turns)
        data = case.data(tags=_tags(text_format(case.transcript.format)), turns=shown(turns))
        # A judge may count searches that were written but not carried out, so allow for one in every turn.
        least = LEAST + PER_SEARCH * max(calls, count)
        return await self.ask(TURN_RULES, data, _scores(count, least), case.usage)


def _scores(count: int, least: float) -> Reply:
    """Describe the reply, which has one score per turn."""
    before = f"The scores before the last are from {least:g} to {MOST:g}. " if count > 1 else ""
    again = f"{before}The last turn's score is {MALFORMED:g}, {WRONG:g} or {RIGHT:g}."
    read = partial(read_turns, count=count, least=least)
    return Reply(form_of_scores(range(1, count + 1)), lambda text: graded(read(text), text), again)


def read_turns(text: str, count: int, least: float) -> list[float] | None:
    """Return the scores in a judge's reply, one per turn; None if the rules cannot give such scores.

    Args:
        text: The reply.
        count: Number of turns.
        least: Smallest score of a turn before the last.
    """
    found = read_scores(text, [(least - 1e-6, MOST + 1e-6)] * (count - 1) + [(MALFORMED, RIGHT)])
    return found if found and found[-1] in (MALFORMED, WRONG, RIGHT) else None


def _read_outcome(text: str) -> Graded | None:
    score = number_in(read_object(text).get("score"), (0.0, 1.0))
    return graded([score], text) if score in (0.0, 1.0) else None


OUTCOME = Reply(OUTCOME_FORM, _read_outcome, "The score is 1.0 or 0.0.")


def _tags(rules: TextFormat) -> dict[str, str]:
    """Describe the tags of a format for the judge, which sees results without their tags."""
    thought = f"<{rules.thought}>" if rules.thought else "free text, without a tag"
    return {
        "thought": thought,
        "search": f"<{rules.call}>",
        "result": "without a tag, under 'tool returned'",
        "answer": f"<{ANSWER}>",
    }
