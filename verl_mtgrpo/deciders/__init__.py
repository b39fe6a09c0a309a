"""Decide a turn before it is taken: propose some, score them, take one. Knows nothing of verl.

A decider is asked once in each state, before any tool is called. It sees a :class:`Moment`, which gives it proposals,
and returns a :class:`Decision`. A scorer says how good a proposed turn is: a function of the transcript so far and of
the turn. It is given no accepted answer, so a decider may be used where the policy is measured.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Protocol

import torch

from verl_mtgrpo.credit.turn_td import posterior
from verl_mtgrpo.deciders.settings import DecideSettings
from verl_mtgrpo.errors import ConfigError, MTGRPOError
from verl_mtgrpo.own_code import described, load_own, misfit
from verl_mtgrpo.rewards import Transcript, Turn, TurnRewards

KEY = "trainer.turn.decide"
JUDGE = "judge"
"""``trainer.turn.decide.score`` of the judge."""
REJECTED = "rejected_turns"
"""Where ``extra_fields`` say what is taken from rejected attempts that are turns: ``{number of the turn: penalty}``."""
MEASURES = "decide"
"""Where ``extra_fields`` have what is logged of the decisions of a rollout."""

Scorer = Callable[[Transcript, Turn], "float | Awaitable[float]"]


@dataclass(frozen=True, eq=False)
class Proposal:
    """A turn that may be taken.

    Attributes:
        turn: The turn. Its calls have not been carried out, whichever way they are marked.
        tokens: Number of its generated tokens; 0 if the server returned none.
        log_probs: Of its generated tokens; empty if the server returned none.
        after: What the agent loop needs in order to take it.
    """

    turn: Turn
    tokens: int
    log_probs: tuple[float, ...] = ()
    after: Any = None


@dataclass(frozen=True)
class Decision:
    """The turn that is taken.

    Attributes:
        proposal: One of those that the moment gave.
        log_weight: How much likelier this turn was taken than the policy writes it, as a logarithm: log(k · w) for one
            of k samples of the policy that was taken with probability w. 0 for a turn that the policy wrote by itself.
    """

    proposal: Proposal
    log_weight: float = 0.0


class Moment(Protocol):
    """A state in which a turn is to be decided."""

    transcript: Transcript
    """The prompt and the turns so far."""
    draw: random.Random
    """Draws that depend on seed, step, question, rollout and turn alone."""
    rollout: str
    """Step, question and rollout, so that what a decider notes of a turn can be told from other rollouts' notes."""

    async def propose(self, count: int) -> Sequence[Proposal]:
        """Return turns of the policy in this state, sampled independently of each other."""
        ...

    async def write(self, text: str) -> Proposal:
        """Return a turn that somebody else wrote. Refused in rollouts that are trained on."""
        ...

    async def reject(self, proposal: Proposal, feedback: str) -> bool:
        """Send a proposal back: from now on, proposals follow it and the feedback. False if there is no room."""
        ...


class Decider(Protocol):
    """Decides turns. One per process; safe to call concurrently."""

    async def decide(self, moment: Moment) -> Decision:
        """Return the turn that is taken."""
        ...


async def score_of(scorer: Scorer, transcript: Transcript, turn: Turn) -> float:
    """Return what a scorer says of a turn, checked to be a finite number."""
    found = scorer(transcript, turn)
    score: Any = await found if inspect.isawaitable(found) else found
    if isinstance(score, bool) or not isinstance(score, Real) or not math.isfinite(score):
        raise ConfigError(f"{KEY}.score returned {score!r}", expected="a finite number for each turn")
    return float(score)


@dataclass(frozen=True)
class _OfSeveral:
    """Takes one of k samples of the policy. Proposals without a token are left out if there are others."""

    settings: DecideSettings
    scorer: Scorer

    async def decide(self, moment: Moment) -> Decision:
        """Return one of the proposals."""
        proposed = await moment.propose(self.settings.candidates)
        written = [one for one in proposed if one.tokens] or list(proposed[:1])
        if len(written) == 1:
            return Decision(written[0])
        asked = (score_of(self.scorer, moment.transcript, one.turn) for one in written)
        scores = await asyncio.gather(*asked)
        return self.choose(written, scores, moment.draw)

    def choose(self, proposals: Sequence[Proposal], scores: Sequence[float], draw: random.Random) -> Decision:
        """Return the decision, given the scores."""
        raise NotImplementedError


class Best(_OfSeveral):
    """``best``: the proposal of the highest score, the first of equals."""

    def choose(self, proposals: Sequence[Proposal], scores: Sequence[float], draw: random.Random) -> Decision:
        """Return the best."""
        return Decision(proposals[max(range(len(scores)), key=lambda one: scores[one])])


class Posterior(_OfSeveral):
    """``posterior``: proposal j is taken with probability softmax(score / α)_j (LLM action priors, arXiv 2410.07927).

    Of k samples y_1..k of the policy, y_c is taken with probability w_c. The policy alone would have written the same k
    samples and taken any of them, with probability 1/k. So the importance weight of the decision is 1 / (k · w_c): an
    average with this weight over what was decided is the policy's own average, whatever the scores say.
    """

    def choose(self, proposals: Sequence[Proposal], scores: Sequence[float], draw: random.Random) -> Decision:
        """Draw one."""
        weights = posterior(torch.tensor(scores, dtype=torch.float64), self.settings.alpha).tolist()
        (taken,) = draw.choices(range(len(weights)), weights)
        return Decision(proposals[taken], math.log(len(weights) * weights[taken]))


@dataclass(frozen=True)
class Retry:
    """``retry``: a turn below the threshold is sent back with the feedback (ReAd, arXiv 2405.14314).

    ReAd's score is the advantage that a critic learned from the plans of an LLM. The last attempt stands, whatever its
    score.
    """

    settings: DecideSettings
    scorer: Scorer | None

    async def decide(self, moment: Moment) -> Decision:
        """Return the first attempt that is good enough."""
        (attempt,) = await moment.propose(1)
        threshold = self.settings.threshold
        if self.scorer is None or threshold is None:
            return Decision(attempt)
        for _ in range(self.settings.retries):
            if not attempt.tokens:
                break
            score = await score_of(self.scorer, moment.transcript, attempt.turn)
            feedback = self.settings.feedback.format(score=score, threshold=threshold)
            if score >= threshold or not await moment.reject(attempt, feedback):
                break
            (attempt,) = await moment.propose(1)
        return Decision(attempt)


def make_decider(settings: DecideSettings, judge: Callable[[], Scorer]) -> Decider:
    """Return the decider that the settings name.

    Args:
        settings: ``trainer.turn.decide``.
        judge: Makes the scorer that asks the judge.

    Raises:
        ConfigError: There is no such decider, or its class or its scorer cannot be loaded.
    """
    scorer = None
    if settings.score:
        scorer = judge() if settings.score == JUDGE else load_own(settings.score, f"{KEY}.score", "function")
    if ":" in settings.by:
        given = {"scorer": scorer} if scorer else {}
        made_by = load_own(settings.by, f"{KEY}.by", "class")
        if problem := misfit(made_by, **given, **settings.options):
            raise ConfigError(
                f"{KEY}.by={settings.by} {problem}",
                fix=f"set {KEY}.score for an argument scorer, and +{KEY}.options.NAME for others",
            )
        return _made(made_by, settings, given)
    if settings.by == "retry":
        return Retry(settings, scorer)
    if settings.by not in OF_SEVERAL:
        raise no_decider(settings.by)
    if scorer is None:
        raise ConfigError(f"{KEY}.by={settings.by} has no scorer", fix=f"set {KEY}.score to {JUDGE} or to a function")
    return OF_SEVERAL[settings.by](settings, scorer)


def _made(made_by: Callable[..., Any], settings: DecideSettings, given: dict[str, Any]) -> Decider:
    """Return a decider of the user's, if it can be made and asked."""
    try:
        found = made_by(**given, **settings.options)
    except MTGRPOError:
        raise
    except Exception as error:  # the user's code may raise anything
        said = described(error, settings.by.rpartition(":")[0])
        raise ConfigError(f"{KEY}.by={settings.by} cannot be made: {said}", fix="correct this error") from error
    decide = getattr(found, "decide", None)
    fix = "write it as verl_mtgrpo.deciders.Decider describes"
    if not callable(decide):
        raise ConfigError(f"{KEY}.by is {settings.by!r}, which has no method decide", fix=fix)
    if problem := misfit(decide, None):
        raise ConfigError(f"{KEY}.by={settings.by}: decide {problem}", fix=fix)
    return found


def no_decider(by: str) -> ConfigError:
    """Return the error that says that nothing is known by this name."""
    return ConfigError(
        f"{KEY}.by is {by!r}",
        expected=f"none, {', '.join(OF_SEVERAL)}, retry, or a class of your own as package.module:Class or "
        "path/to/file.py:Class",
    )


OF_SEVERAL: dict[str, type[_OfSeveral]] = {"best": Best, "posterior": Posterior}
"""Deciders that take one of several proposals."""


@dataclass
class Tally:
    """The decisions of one rollout, for the metrics.

    Attributes:
        turns: Turns that were decided.
        proposed: Proposals in all of them, rejected attempts included.
        changed: Turns in which another than the first proposal was taken.
        extra_tokens: Generated tokens that are not in a turn of the rollout.
        rejected: Attempts that were sent back.
        log_weight: Sum of the decisions' log weights.
        penalties: What is taken from rejected attempts that are turns, by the number of the turn, from 0.
    """

    turns: int = 0
    proposed: int = 0
    changed: int = 0
    extra_tokens: int = 0
    rejected: int = 0
    log_weight: float = 0.0
    penalties: dict[int, float] = field(default_factory=dict)

    def measures(self) -> dict[str, float]:
        """Return the metrics of a rollout in which at least one turn was decided."""
        if not self.turns:
            return {}
        return {
            "decide/changed": self.changed / self.turns,
            "decide/candidates": self.proposed / self.turns,
            "decide/extra_tokens": float(self.extra_tokens),
            "decide/rejected": float(self.rejected),
            "decide/log_weight": self.log_weight,
        }


def charge_rejected(rewards: TurnRewards, penalties: dict[int, float]) -> TurnRewards:
    """Return the rewards with the penalty taken from each turn that is a rejected attempt, and a note of it."""
    if not penalties:
        return rewards
    turns = [reward - penalties.get(k, 0.0) for k, reward in enumerate(rewards.turns)]
    said = {k: f"sent back by the decider: {-penalty:+.3g}" for k, penalty in penalties.items()}
    notes = rewards.notes or ("",) * len(turns)
    noted = ["; ".join(one for one in (note, said.get(k, "")) if one) for k, note in enumerate(notes)]
    return replace(rewards, turns=tuple(turns), notes=tuple(noted))
