"""Deciders without a loop: which proposal is taken, and with which weight."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from verl_mtgrpo.deciders import Proposal, Retry, charge_rejected, make_decider, score_of
from verl_mtgrpo.deciders.settings import DecideSettings
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.rewards import Transcript, Turn, TurnRewards

EMPTY = Transcript((), "answered")


def no_judge():
    raise AssertionError


def proposal(text: str, tokens: int = 1) -> Proposal:
    return Proposal(Turn(text, (0, tokens)), tokens)


class Scripted:
    """A moment with given proposals; remembers what was sent back."""

    transcript = EMPTY

    def __init__(self, texts, room: int = 99, draw=None):
        self.texts, self.room, self.back = iter(texts), room, []
        self.draw = draw or random.Random(0)

    async def propose(self, count):
        return [proposal(text, len(text)) for _, text in zip(range(count), self.texts, strict=False)]

    async def reject(self, one, feedback):
        if len(self.back) == self.room:
            return False
        self.back.append((one.turn.text, feedback))
        return True


def of_script(transcript, turn):
    return {"a": 1.0, "b": 2.0, "c": 0.0}[turn.text]


async def of_script_async(transcript, turn):
    await asyncio.sleep(0)
    return of_script(transcript, turn)


def decider(scorer=of_script, **settings):
    made = DecideSettings(score="tests.deciders.test_deciders:" + scorer.__name__, **settings)
    return make_decider(made, no_judge)


@pytest.mark.parametrize("scorer", [of_script, of_script_async])
def test_best_takes_the_highest_score_and_posterior_draws_as_worked_by_hand(scorer):
    best = decider(scorer, by="best", candidates=3)
    assert asyncio.run(best.decide(Scripted("abc"))).proposal.turn.text == "b"
    drawn = decider(scorer, by="posterior", candidates=3)
    taken = Counter()
    for seed in range(3000):
        decision = asyncio.run(drawn.decide(Scripted("abc", draw=random.Random(seed))))
        text = decision.proposal.turn.text
        taken[text] += 1
        by_hand = {"a": 0.2447, "b": 0.6652, "c": 0.0900}[text]  # relatives.md 3.6e: Q = [1, 2, 0], α = 1
        assert decision.log_weight == pytest.approx(math.log(3 * by_hand), abs=5e-4)
    assert [taken[text] / 3000 for text in "abc"] == pytest.approx([0.2447, 0.6652, 0.0900], abs=0.03)


def test_the_recorded_weight_makes_what_was_decided_an_average_over_the_policy():
    """By enumeration: Σ over k samples and the draw of 1 / (k w) · f(turn taken) is the policy's mean of f."""
    policy, f, k = {"a": 0.5, "b": 0.2, "c": 0.3}, {"a": 3.0, "b": -1.0, "c": 7.0}, 3
    one = decider(by="posterior", candidates=k, alpha=0.7)
    weighted = plain = 0.0
    for texts in product(policy, repeat=k):
        chance = math.prod(policy[text] for text in texts)
        proposals = [proposal(text) for text in texts]
        scores = [of_script(EMPTY, one.turn) for one in proposals]
        for c in range(k):
            draw = SimpleNamespace(choices=lambda names, weights, c=c: [c])
            decision = one.choose(proposals, scores, draw)
            taken = chance * math.exp(scores[c] / 0.7) / sum(math.exp(score / 0.7) for score in scores)
            weighted += taken * math.exp(-decision.log_weight) * f[texts[c]]
            plain += taken * f[texts[c]]
    assert weighted == pytest.approx(sum(policy[text] * f[text] for text in policy))
    assert abs(plain - weighted) > 0.5, "without the weight it would not be"


def test_one_candidate_is_taken_without_a_score_and_proposals_without_tokens_are_left_out():
    def never(transcript, turn):
        raise AssertionError

    for by in ("best", "posterior"):
        one = make_decider(
            DecideSettings(by=by, candidates=1, score="tests.deciders.test_deciders:of_script"), no_judge
        )
        object.__setattr__(one, "scorer", never)
        decision = asyncio.run(one.decide(Scripted("c")))
        assert (decision.proposal.turn.text, decision.log_weight) == ("c", 0.0)
    two = asyncio.run(decider(by="posterior", candidates=3, alpha=1e9).decide(Scripted(["a", "", "c"])))
    assert two.log_weight == pytest.approx(0.0, abs=1e-6), "one of two, each with probability 1/2"
    assert two.proposal.turn.text in "ac"


@pytest.mark.parametrize(
    ("texts", "threshold", "room", "taken", "back"),
    [
        ("b", 1.5, 9, "b", []),
        ("cab", 1.5, 9, "b", ["c", "a"]),
        ("cac", 1.5, 9, "c", ["c", "a"]),  # the last attempt stands
        ("cab", 1.5, 1, "a", ["c"]),  # no room for more
        ("c", None, 9, "c", []),
        ("c", -1e300, 9, "c", []),
    ],
)
def test_retry_asks_again_below_the_threshold(texts, threshold, room, taken, back):
    moment = Scripted(texts, room)
    settings = DecideSettings(by="retry", threshold=threshold, retries=2, feedback="{score:.0f} of {threshold:.1f}")
    decision = asyncio.run(Retry(settings, of_script).decide(moment))
    assert (decision.proposal.turn.text, decision.log_weight) == (taken, 0.0)
    assert [text for text, _ in moment.back] == back
    if back:
        assert moment.back[0][1] == "0 of 1.5"


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(3)])
def test_a_score_may_be_a_number_of_numpy(value):
    assert asyncio.run(score_of(lambda transcript, turn: value, EMPTY, Turn("a", (0, 1)))) == float(value)


@pytest.mark.parametrize("value", [None, "1", True, np.True_, math.nan, math.inf, np.float32("nan"), (0.5, 0.5)])
def test_a_score_that_is_no_number_is_an_error(value):
    with pytest.raises(ConfigError, match=r"returned .*expected a finite number"):
        asyncio.run(score_of(lambda transcript, turn: value, EMPTY, Turn("a", (0, 1))))


class TakesNothing:
    async def decide(self): ...


class IsNoMethod:
    decide = 5


class Fails:
    def __init__(self):
        raise OSError("no key")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"by": "bets", "score": "judge"}, "expected none, best, posterior, retry, or a class"),
        ({"by": "best"}, "has no scorer"),
        ({"by": "tests.deciders.test_deciders:Scripted", "options": {"texts": "a"}}, "has no method decide"),
        (
            {"by": "examples/mixtures/mixture.py:Mixture", "options": {"servers": []}},
            "'scorer'; set .*decide.score for",
        ),
        ({"by": "examples/mixtures/mixture.py:Router", "options": {}}, "'servers'; set .*options.NAME for others"),
        ({"by": "tests.deciders.test_deciders:TakesNothing"}, r"decide takes \(\), which does not fit: too many"),
        ({"by": "tests.deciders.test_deciders:IsNoMethod"}, "has no method decide"),
        ({"by": "tests.deciders.test_deciders:Fails"}, r"Fails cannot be made: OSError: no key; correct"),
    ],
)
def test_what_cannot_be_made_is_an_error(settings, said):
    with pytest.raises(ConfigError, match=said):
        make_decider(DecideSettings(**settings), lambda: of_script)


def test_penalties_are_taken_from_rejected_attempts():
    rewards = TurnRewards((0.2, 0.0, 0.0), 1.0)
    assert charge_rejected(rewards, {0: 0.5, 1: 0.25}).turns == pytest.approx((-0.3, -0.25, 0.0))
    assert charge_rejected(rewards, {}) is rewards


def test_the_note_of_a_rejected_attempt_says_what_was_taken():
    rewards = TurnRewards((0.2, 0.0, 0.0), 1.0)
    assert charge_rejected(rewards, {1: 0.25}).notes == ("", "sent back by the decider: -0.25", "")
    noted = replace(rewards, notes=("a search", "no call", "the outcome"))
    said = charge_rejected(noted, {1: 1.0}).notes
    assert said == ("a search", "no call; sent back by the decider: -1", "the outcome")
