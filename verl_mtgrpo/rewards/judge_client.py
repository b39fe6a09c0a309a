"""Provide the base of all rewards that ask a language model: settings, cache, second tries and metrics.

If the judge cannot be reached, or if its second reply is still not in the right form, that is an error and never a
reward of 0. A rollout longer than the judge's context is shown with shorter tool results.
"""

from __future__ import annotations

import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from verl_mtgrpo.cache import JsonCache
from verl_mtgrpo.errors import ConfigError, DropRollout, JudgeError, TooLongError
from verl_mtgrpo.rewards.answers import accepted_answers, contains, exact_match, f1, last_answer
from verl_mtgrpo.rewards.judge_http import Endpoint, Tokens
from verl_mtgrpo.rewards.judge_rubric import rubric_text
from verl_mtgrpo.rewards.judge_text import Graded, cut_results, longest_result, prompt_for, question_of, quoted, said
from verl_mtgrpo.rewards.transcript import LAST_TURN, Transcript, TurnRewards
from verl_mtgrpo.settings import Number, Settings

logger = logging.getLogger(__name__)

_FEWEST_CHARACTERS = 50  # left of a tool result after a cut


class JudgeSettings(Settings):
    """``reward.turn.judge``: which judge is asked, and how patiently."""

    base_url: str = ""
    """An OpenAI-compatible endpoint, like ``http://127.0.0.1:8000/v1``."""
    model: str = ""
    """Model name that the endpoint knows."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key; the key itself never stands in a config. May be unset for a local server."""
    timeout_s: Number = Field(default=60.0, gt=0)
    """Seconds until a request counts as failed."""
    retries: int = Field(default=4, ge=0)
    """Further tries after a failed request (time-out, connection, 408, 409, 425, 429, 5xx), with growing, jittered
    pauses or as long as ``Retry-After`` asks. Other 4xx, which can never work, are not tried again."""
    concurrency: int = Field(default=16, ge=1)
    """Largest number of requests at a time from one reward worker."""
    cache: str = ""
    """SQLite file that remembers scores by what was asked; empty: none."""
    on_error: Literal["raise", "drop"] = "raise"
    """What to do when the judge fails after all tries. ``raise``: an error, for which verl leaves out the whole group
    and, if no group is left, stops; ``drop``: take this one rollout out of the update."""
    rubric: str = ""
    """``preset=judge``: what makes a turn good, as a text or as a file that ends in .txt or .md; empty: our own, which
    asks for format, sound reasoning and tool use that helps to reach an accepted answer."""
    outcome_rubric: str = ""
    """``preset=judge``: what makes the final answer right, likewise; empty: the same meaning as an accepted answer."""
    call_price: Number = Field(default=0.1, ge=0)
    """``preset=judge``: taken from each turn's reward for every tool call up to and with this turn."""
    usd_per_million_prompt: Number = Field(default=0.0, ge=0)
    """What a million tokens that the judge reads cost in dollars, for the metric ``judge/cost_usd``. 0 with
    ``usd_per_million_completion=0``: there is no such metric."""
    usd_per_million_completion: Number = Field(default=0.0, ge=0)
    """The same for tokens that it writes."""


def check_judge_settings(settings: JudgeSettings, preset: str) -> None:
    """Raise ``ConfigError`` if the settings do not name a judge."""
    if not settings.base_url or not settings.model:
        raise ConfigError(
            f"reward.turn.preset={preset} needs reward.turn.judge.base_url (an OpenAI-compatible endpoint) and "
            "reward.turn.judge.model",
            fix="set both, or have verl serve the judge (reward.reward_model.enable=True)",
        )


def check_rubrics(settings: JudgeSettings, preset: str) -> None:
    """Raise ``ConfigError`` if a rubric cannot be read, or if the preset has rules and prices of its own."""
    for name in ("rubric", "outcome_rubric"):
        rubric_text(getattr(settings, name), f"reward.turn.judge.{name}", "")
    if preset == "judge":
        return
    for name in ("rubric", "outcome_rubric", "call_price"):
        if (value := getattr(settings, name)) != getattr(JudgeSettings(), name):
            raise ConfigError(
                f"reward.turn.judge.{name}={value!r:.80} would not be used: {preset} has the rules and prices of the "
                "paper",
                fix=f"set reward.turn.preset=judge, or remove reward.turn.judge.{name}",
            )


@dataclass(frozen=True)
class Reply:
    """The form of a judge's reply.

    Attributes:
        form: The form in words, which the prompt states after the case.
        read: Parses the judge's text; returns None if it is not in this form.
        again: A hint that follows the form when a judge is asked again, because its first reply could not be read.
    """

    form: str
    read: Callable[[str], Graded | None]
    again: str


@dataclass
class Usage:
    """The cost of judging one rollout.

    Attributes:
        unmetered: Number of replies whose tokens the server did not count, or not for prompt and completion.
    """

    requests: int = 0
    cached: int = 0
    repaired: int = 0
    shortened: int = 0
    tokens: int = 0
    prompt: int = 0
    completion: int = 0
    unmetered: int = 0

    def add(self, tokens: Tokens) -> None:
        """Add the tokens of a reply."""
        self.tokens += tokens.total or 0
        if tokens.prompt is None or tokens.completion is None:
            self.unmetered += 1
        else:
            self.prompt, self.completion = self.prompt + tokens.prompt, self.completion + tokens.completion

    def components(self, settings: JudgeSettings) -> dict[str, float | None]:
        """Return the numbers as metrics, ``judge/<name>``; the cost in dollars is None if it is not known."""
        prices = settings.usd_per_million_prompt, settings.usd_per_million_completion
        known = any(prices) and not self.unmetered
        cost = (self.prompt * prices[0] + self.completion * prices[1]) / 1e6 if known else None
        counts = ("requests", "cached", "repaired", "shortened", "tokens")
        return {**{f"judge/{name}": float(getattr(self, name)) for name in counts}, "judge/cost_usd": cost}


@dataclass(frozen=True)
class Case:
    """One rollout to be judged.

    Attributes:
        transcript: The rollout.
        accepted: Accepted answers.
        answer: The rollout's answer; None if it gave none.
        usage: The cost of judging it so far.
    """

    transcript: Transcript
    accepted: Sequence[str]
    answer: str | None
    usage: Usage = field(default_factory=Usage)

    def data(self, **more: Any) -> dict[str, Any]:
        """Return the data to show to the judge, beginning with the parts that all rollouts of a group share."""
        return {"question": question_of(self.transcript), "accepted answers": list(self.accepted), **more}


@dataclass(frozen=True)
class Scores:
    """The rewards that follow from a judge's scores.

    Attributes:
        before_last: Rewards of the turns before the last one.
        outcome: The outcome reward.
        given: The judge's scores of single turns.
        notes: What the turns before the last one earned their rewards for.
        outcome_note: The same for the outcome.
    """

    before_last: Sequence[float]
    outcome: float
    given: Sequence[float]
    notes: Sequence[str]
    outcome_note: str


def noted(score: float, reason: str, more: str = "") -> str:
    """Return a note of a reward: the judge's score, what else counts, and the judge's reason, if it gave one."""
    return f"judge {score:+.3g}{more}{f': {reason}' if reason else ''}"


class AskingReward(ABC):
    """A reward function that asks a model. One per reward worker; safe to call concurrently.

    Args:
        settings: Which judge is asked, and how patiently.
        secret: A text that is the same in all reward workers of a run and that no rollout can know; the mark around the
            rollout's text is derived from it. If empty, this object makes one up.
    """

    preset: str
    """Name of the reward preset, for messages."""

    def __init__(self, settings: JudgeSettings, secret: str = "") -> None:
        check_judge_settings(settings, self.preset)
        check_rubrics(settings, self.preset)
        self.settings = settings
        self._endpoint = Endpoint(settings, self.preset)
        self._secret = secret or secrets.token_hex(16)
        self._cache = JsonCache(settings.cache) if settings.cache else None
        self._warned = False

    async def __call__(self, transcript: Transcript, ground_truth: Any) -> TurnRewards:
        """Score one rollout.

        Raises:
            JudgeError: The judge could not be reached, or gave no score.
            DropRollout: The same, with ``on_error=drop``.
        """
        accepted = accepted_answers(ground_truth)
        answer = last_answer([turn.text for turn in transcript.turns])
        case = Case(transcript, accepted, answer)
        try:
            scores = await self.judge(case)
        except JudgeError as error:
            if self.settings.on_error == "drop":
                raise DropRollout(str(error)) from error
            raise
        return TurnRewards(
            turns=(*scores.before_last, 0.0) if transcript.turns else (),
            outcome=scores.outcome,
            components={
                "outcome/judge": scores.outcome,
                "outcome/em": float(exact_match(answer, accepted)),
                "outcome/contains": float(contains(answer, accepted)),
                "outcome/f1": f1(answer, accepted),
                "judge/turn_score": sum(scores.given) / len(scores.given) if scores.given else None,
                **case.usage.components(self.settings),
            },
            notes=(*scores.notes, LAST_TURN) if transcript.turns else (),
            outcome_note=scores.outcome_note,
        )

    @abstractmethod
    async def judge(self, case: Case) -> Scores:
        """Score one rollout, or raise ``JudgeError``."""

    async def ask_outcome(self, case: Case, rubric: str, reply: Reply) -> tuple[float, str]:
        """Return the score of the final answer, which is shown without the rollout, and why; 0 if there is none."""
        if not case.answer:
            return 0.0, "no answer, so the judge was not asked"
        found = await self.ask(rubric, case.data(answer=case.answer), reply, case.usage)
        (score,), (reason,) = found["scores"], found["reasons"]
        return score, noted(score, reason)

    async def ask(self, rubric: str, data: Mapping[str, Any], reply: Reply, usage: Usage) -> Graded:
        """Return the judge's reply to the data; if they are too long for it, shorten tool results and ask again."""
        asked, most = data, longest_result(data)
        while True:
            try:
                return await self._known_or_asked(rubric, quoted(asked), reply, usage)
            except TooLongError as error:
                most //= 2
                if most < _FEWEST_CHARACTERS:
                    raise JudgeError(
                        error.found, fix="serve the judge with a longer context (vLLM: max_model_len)"
                    ) from error
                self._warn_of_cuts(error, most)
                asked, usage.shortened = cut_results(data, most), 1

    async def _known_or_asked(self, rubric: str, data: str, reply: Reply, usage: Usage) -> Graded:
        key = JsonCache.key(self.settings.model, rubric, data, reply.form)  # no mark: it differs between runs
        if self._cache and (known := await self._cache.aget(key)) is not None:
            usage.cached += 1
            return known
        found = await self._ask_twice(prompt_for(rubric, data, reply.form, self._secret), reply, usage)
        if self._cache:
            await self._cache.aput(key, found)
        return found

    async def _ask_twice(self, messages: list[dict[str, str]], reply: Reply, usage: Usage) -> Graded:
        text = await self._say(messages, usage)
        found = reply.read(text)
        if found is None:
            usage.repaired += 1
            again = f"That was not what was asked for. {reply.form} {reply.again}"
            text = await self._say([*messages, said("assistant", text), said("user", again)], usage)
            found = reply.read(text)
        if found is None:
            raise JudgeError(
                f"{self._endpoint.name} gave no score in two tries; the last: {text[:200]!r}",
                expected=f"{reply.form} {reply.again}",
            )
        return found

    async def _say(self, messages: list[dict[str, str]], usage: Usage) -> str:
        usage.requests += 1
        text, tokens = await self._endpoint.say(messages)
        usage.add(tokens)
        return text

    def _warn_of_cuts(self, error: TooLongError, most: int) -> None:
        if not self._warned:
            logger.warning(
                "%s; it is shown the first %d characters of each tool result (judge/shortened counts such rollouts). "
                "Serve it with a longer context to have it see them whole",
                error,
                most,
            )
        self._warned = True
