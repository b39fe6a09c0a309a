"""Explain in words why a turn got its advantage, and check the explanation against what was trained on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from verl_mtgrpo.report.explain import Term, explain
from verl_mtgrpo.report.rollouts import DumpedRollout

VERLS_WORDS: Mapping[str, str] = {
    "grpo": "GRPO: the total reward of the rollout, normalised over the rollouts of the prompt; the same at each turn.",
    "rloo": "RLOO: the total reward of the rollout, minus the mean of the other rollouts of the prompt; the same "
    "for every turn.",
    "gae": "Generalised advantage estimation, token by token: rewards to come minus what the critic expected, whitened "
    "over the training batch. The mean over the turn's tokens is shown; it cannot be worked out from a group.",
}
"""What verl's own estimators do; ours say it in their records (:class:`verl_mtgrpo.credit.Estimator`)."""

_UNKNOWN = "This report does not know how this estimator works: it is one of verl's or a custom one."
_WITH_KL = " Rewards are shown as the estimator saw them, with the KL penalty."
_BASELINES = {
    "alive": "the {count} rollouts that got this far averaged",
    "group": "the {count} rollouts averaged",
    "others": "the {count} others that got this far averaged",
    "others_outcome": "no other rollout got this far, and the last turns of the {count} others averaged",
    "turns_of_group": "all {count} turns of the group averaged",
}


@dataclass(frozen=True)
class Why:
    """The explanation of one turn's advantage.

    Attributes:
        terms: Its summands; empty if they are not known.
        words: The same in a sentence or two.
        adds_up: True if the terms sum to the advantage; None without terms.
    """

    terms: tuple[Term, ...]
    words: str
    adds_up: bool | None


def in_words(estimator: str) -> str:
    """Return what an estimator does, for a reader who looks at one advantage."""
    from verl_mtgrpo.credit import ESTIMATORS  # late: torch takes seconds to import, and reading dumps does not need it

    words = ESTIMATORS[estimator].words if estimator in ESTIMATORS else VERLS_WORDS.get(estimator)
    return words or _UNKNOWN


def explain_group(
    rollouts: Sequence[DumpedRollout], advantages: Sequence[Sequence[float]], estimator: str
) -> list[list[Why]]:
    """Explain the advantage of every turn of every rollout of a group.

    Args:
        rollouts: The whole group.
        advantages: Their advantages, as trained on or recomputed.
        estimator: The estimator that computed them.
    """
    seen = [() if one.dropped is not None else one.credited or one.turn_rewards for one in rollouts]
    working = explain(estimator, seen, rollouts[0].settings) if rollouts else None
    found: list[list[Why]] = []
    for number, (rollout, mine) in enumerate(zip(rollouts, advantages, strict=True)):
        if rollout.dropped is not None:
            found.append([Why((), f"Left out of the update: {rollout.dropped}.", None) for _ in mine])
        elif working is None:
            found.append([_statistics(rollouts, seen, number, turn) for turn in range(len(mine))])
        else:
            pairs = zip(working[number], mine, strict=True)
            found.append([_checked(tuple(terms), advantage) for terms, advantage in pairs])
    if any(map(_differs, rollouts)):
        found = [[replace(why, words=why.words + _WITH_KL) for why in some] for some in found]
    return found


def _differs(rollout: DumpedRollout) -> bool:
    """Return True if the rewards that the estimator saw are not those that were paid."""
    if rollout.dropped is not None or rollout.credited is None:
        return False
    return any(abs(a - b) > 1e-6 for a, b in zip(rollout.credited, rollout.turn_rewards, strict=True))


def _checked(terms: tuple[Term, ...], advantage: float) -> Why:
    total = sum(term.adds for term in terms)
    adds_up = abs(total - advantage) <= 1e-3 * max(1.0, abs(advantage))
    # The end of a rollout is worth a sentence only if others were paid for going on.
    told = [term for term in terms if term.kind != "ended" or term.adds]
    words = " ".join(map(_sentence, told))
    if len(told) > 1:
        words += f" Together {signed(total)}."
    if not adds_up:
        words += (
            f" This does not give the {signed(advantage)} that was trained on: rollouts of the group or settings are "
            "missing from the dump, or the rewards were changed later."
        )
    return Why(terms, words, adds_up)


def _sentence(term: Term) -> str:
    subject = {
        "turn": f"Turn {term.turn} was paid {_plain(term.value)}",
        "ended": f"The rollout ended with turn {term.turn}, so nothing was paid there for going on",
        "outcome": f"The last turn was paid {_plain(term.value)}, outcome included",
        "turns": f"The turns before the last were paid {_plain(term.value)}",
        "return": f"From turn {term.turn} on {_plain(term.value)} was paid",
        "total": f"The rollout was paid {_plain(term.value)} in all",
    }[term.kind]
    if term.baseline == "nobody":
        return f"{subject}; there is no other rollout to compare with: {signed(term.adds)}."
    compared = _BASELINES[term.baseline].format(count=term.count)
    if term.kind == "turn" and term.ended:
        compared = compared.replace(" averaged", f" ({term.ended} ended there: counted as 0) averaged")
    if not term.adds and term.std == 0.0:
        return f"{subject}, as in all {term.count} that are compared: nothing."
    spread = "" if term.std is None else f" ± {_plain(term.std)}"  # what the difference is divided by
    return f"{subject}; {compared} {_plain(term.mean)}{spread}: {signed(term.adds)}."


def _statistics(rollouts: Sequence[DumpedRollout], seen: Sequence[Sequence[float]], number: int, turn: int) -> Why:
    """Describe a turn by the statistics of its group, where the group does not determine the advantage."""
    alive = [one for one in seen if len(one) > turn]
    mine, to_come = seen[number][turn], sum(seen[number][turn:])
    here = statistics.fmean(one[turn] for one in alive)
    after = statistics.fmean(sum(one[turn:]) for one in alive)
    words = (
        f"This turn was paid {_plain(mine)}; the {len(alive)} rollouts that got this far averaged {_plain(here)}. "
        f"From here on {_plain(to_come)} was paid; they averaged {_plain(after)}."
    )
    if (values := rollouts[number].values) is not None:
        words += f" The critic expected {_plain(values[turn])} at its first token."
    return Why((), words, None)


def signed(value: float, digits: int = 2) -> str:
    """Format a number as +1.41 or −0.83, and without a sign if it rounds to 0."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def _plain(value: float) -> str:
    text = f"{value:.2f}"
    return text.replace("-", "−") if float(text) else "0.00"
