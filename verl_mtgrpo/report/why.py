"""Explain in words why a turn got its advantage, and check the explanation against what was trained on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from verl_mtgrpo.report.explain import explain
from verl_mtgrpo.report.explain_roles import Output
from verl_mtgrpo.report.pairs import ESTIMATOR as PAIRS
from verl_mtgrpo.report.pairs import explain_pairs
from verl_mtgrpo.report.rollouts import DumpedRollout
from verl_mtgrpo.report.terms import Part, Rewards, Term, Working
from verl_mtgrpo.report.tree import Tree, tree_of

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
_WITH_DENSE = " Rewards are shown as the estimator saw them, with dense ones: here {parts}, beside the {paid} paid."
_BASELINES = {
    "alive": "the {count} rollouts that got this far averaged",
    "group": "the {count} rollouts averaged",
    "others": "the {count} others that got this far averaged",
    "others_outcome": "no other rollout got this far, and the last turns of the {count} others averaged",
    "turns_of_group": "all {count} turns of the group averaged",
    "siblings": "the {count} turns sampled in this state averaged",
    "place": "no other turn was sampled in this state, and the {count} turns at this place averaged",
    "other_siblings": "the {count} others sampled in this state averaged",
    "other_places": "no other turn was sampled in this state, and the {count} others at this place averaged",
    "tree": "the {count} rollouts with the same first turn averaged",
    "parent": "the turn before it is worth",
    "prompt": "the prompt is worth",
    "critic": "the critic expected",
    "before": "where the turn began it expected",
    "outputs_of_role": "the {count} outputs of this role averaged",
    "other_outputs_of_role": "the {count} other outputs of this role averaged",
    "turn_of_role": "the {count} outputs of this role with this turn averaged",
    "other_turn_of_role": "the {count} other outputs of this role with this turn averaged",
}
_NOT_LEARNT = "Nothing is learnt from this output. What it was paid and what came back to it flows on to what it read."
_PENALTY = " Of what it was paid, {taken} was taken for its form."
_READERS = 6
"""Readers of an output that a sentence names."""


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
    seen = [_seen(one) for one in rollouts]
    tree, note = tree_of(rollouts)
    working = None if note or not rollouts else _working(rollouts, seen, estimator)
    found: list[list[Why]] = []
    for number, (rollout, mine) in enumerate(zip(rollouts, advantages, strict=True)):
        if rollout.dropped is not None:
            found.append([Why((), f"Left out of the update: {rollout.dropped}.", None) for _ in mine])
        elif not rollout.learnt:
            found.append([Why((), _NOT_LEARNT, None) for _ in mine])
        elif working is None:
            same = [row for row, one in enumerate(rollouts) if one.role == rollout.role]  # roles are not compared
            of_role, paid = [rollouts[row] for row in same], [seen[row] for row in same]
            at = same.index(number)
            found.append([_statistics(of_role, paid, at, turn, tree) for turn in range(len(mine))])
        else:
            pairs = zip(working[number], mine, strict=True)
            found.append([_checked(tuple(terms), advantage, rollouts) for terms, advantage in pairs])
    if tree is not None:
        found = [
            [_with_share(why, len(tree.rollouts[node])) for why, node in zip(some, mine, strict=True)]
            for some, mine in zip(found, tree.nodes, strict=True)
        ]
    found = [_with_penalty(one, some) for one, some in zip(rollouts, found, strict=True)]
    if any(one.dense for one in rollouts):
        found = [_with_dense(one, some) for one, some in zip(rollouts, found, strict=True)]
    if any(map(_has_kl, rollouts)):
        found = [[replace(why, words=why.words + _WITH_KL) for why in some] for some in found]
    return found


def _seen(rollout: DumpedRollout) -> Sequence[float]:
    """Return what the estimator saw of a rollout: of an output that nothing is learnt from, what it was paid."""
    if rollout.dropped is not None:
        return ()
    return rollout.credited or rollout.turn_rewards if rollout.learnt else rollout.turn_rewards


def _with_penalty(rollout: DumpedRollout, reasons: list[Why]) -> list[Why]:
    """Say of each turn of an output what its role lost for the form of its outputs."""
    if rollout.dropped is not None or not rollout.penalty:
        return reasons
    return [replace(why, words=why.words + _PENALTY.format(taken=_plain(rollout.penalty))) for why in reasons]


def _with_dense(rollout: DumpedRollout, reasons: Sequence[Why]) -> list[Why]:
    """Say of each turn of a rollout that was trained on what its dense rewards were."""
    if rollout.dropped is not None or not rollout.dense:
        return [*reasons]
    told: list[Why] = []
    for turn, why in enumerate(reasons):
        parts = ", ".join(f"{name} {signed(values[turn], 3)}" for name, values in rollout.dense.items())
        words = _WITH_DENSE.format(parts=parts, paid=_plain(rollout.turn_rewards[turn]))
        told.append(replace(why, words=why.words + words))
    return told


def _working(rollouts: Sequence[DumpedRollout], seen: Rewards, estimator: str) -> Working | None:
    """Return the terms of a group, from all that its rollouts say of themselves."""
    if estimator == PAIRS:
        return explain_pairs(rollouts)
    values, after, surprisal = (
        None if None in some else [one or () for one in some]
        for some in (
            [() if one.dropped is not None else one.values for one in rollouts],
            [() if one.dropped is not None else one.values_after for one in rollouts],
            [() if one.dropped is not None else one.surprisal for one in rollouts],
        )
    )
    paths = [one.node_path for one in rollouts]
    outputs = [
        Output(one.role, one.output_id, one.fed_by, learnt=one.learnt, kept=one.dropped is None) for one in rollouts
    ]
    return explain(
        estimator,
        seen,
        rollouts[0].settings,
        paths=paths,
        values=values,
        after=after,
        surprisal=surprisal,
        outputs=outputs if any(one.role for one in rollouts) else None,
    )


def _with_share(why: Why, rollouts: int) -> Why:
    """Say of a turn that it is in several rollouts."""
    return replace(why, words=f"{why.words} This turn is in {rollouts} rollouts.") if rollouts > 1 else why


def _has_kl(rollout: DumpedRollout) -> bool:
    """Return True if the rewards that the estimator saw are not those that were paid, with the dense ones."""
    if rollout.dropped is not None or rollout.credited is None or not rollout.learnt:
        return False
    known = [sum(parts) for parts in zip(rollout.turn_rewards, *rollout.dense.values(), strict=True)]
    return any(abs(a - b) > 1e-5 * max(1.0, abs(b)) for a, b in zip(rollout.credited, known, strict=True))


def _checked(terms: tuple[Term, ...], advantage: float, rollouts: Sequence[DumpedRollout]) -> Why:
    total = sum(term.adds for term in terms)
    adds_up = abs(total - advantage) <= 1e-3 * max(1.0, abs(advantage))
    # The end of a rollout is worth a sentence only if others were paid for going on.
    told = [term for term in terms if term.kind != "ended" or term.adds]
    words = " ".join(_sentence(term, rollouts) for term in told)
    if len(told) > 1:
        words += f" Together {signed(total)}."
    if not adds_up:
        words += (
            f" This does not give the {signed(advantage)} that was trained on: rollouts of the group or settings are "
            "missing from the dump, or the rewards were changed later."
        )
    return Why(terms, words, adds_up)


def _sentence(term: Term, rollouts: Sequence[DumpedRollout]) -> str:
    if term.kind == "pair":
        return _of_pair(term)
    digits = _digits(term)
    value = _plain(term.value, digits)
    from_turn = f" from turn {term.turn} on" if term.turn else ""
    subject = {
        "turn": f"Turn {term.turn} was paid {value}",
        "ended": f"The rollout ended with turn {term.turn}, so nothing was paid there for going on",
        "outcome": f"The last turn was paid {value}, outcome included",
        "turns": f"The turns before the last were paid {value}",
        "return": f"From turn {term.turn} on {value} was paid",
        "total": f"The rollout was paid {value} in all",
        "intermediate": f"From turn {term.turn} on {value} was paid before the last turns",
        "outcomes": f"The last turns behind turn {term.turn} were paid {value}, outcome included",
        "totals": f"Rollouts with this turn are worth {value} in all",
        "lambda_return": f"The return from turn {term.turn} on is estimated at {value}",
        "after": f"When turn {term.turn} was written, the critic expected {value}",
        "worth": f"This output is worth {value}{from_turn}",
        "own": f"It was paid {value} itself{from_turn}, apart from the outcome",
    }[term.kind]
    if term.parts:
        subject += ": " + " plus ".join(_part(part, rollouts) for part in term.parts)
    if term.leaves > 1:
        subject += f", averaged over the branches to {term.leaves} rollouts"
    times = "" if term.weight == 1.0 else f", times {_plain(term.weight)}"
    if term.baseline == "no_output":
        return f"{subject}; there is no other output of this role to compare with: nothing."
    if term.baseline == "nobody":
        return f"{subject}; there is no other rollout to compare with{times}: {signed(term.adds)}."
    compared = _BASELINES[term.baseline].format(count=term.count)
    if term.kind == "turn" and term.ended:
        compared = compared.replace(" averaged", f" ({term.ended} ended there: counted as 0) averaged")
    if not term.adds and term.std == 0.0:
        return f"{subject}, as in all {term.count} that are compared: nothing."
    spread = "" if term.std is None else f" ± {_plain(term.std, digits)}"  # what the difference is divided by
    return f"{subject}; {compared} {_plain(term.mean, digits)}{spread}{times}: {signed(term.adds)}."


def _digits(term: Term) -> int:
    """Return how many digits (2 to 4) the numbers of a term need, so that a reader who does the sum gets it."""
    for digits in (2, 3, 4):
        value, mean = round(term.value, digits), round(term.mean, digits)
        std = 1.0 if term.std is None else round(term.std, digits)
        if std and abs((value - mean) / std * term.weight - term.adds) <= 0.01 * max(1.0, abs(term.adds)):
            return digits
    return 2 if term.std is None else 4


def _of_pair(term: Term) -> str:
    """Say what is learnt from an action of a pair."""
    if term.baseline != "pair":
        return {
            "equal": "The policy wrote what the expert wrote, so there is nothing to learn from.",
            "no_pair": "The other action of its pair is not there, so there is nothing to compare it with.",
        }[term.baseline]
    expert, own = term.parts
    margin = expert.weight * expert.value + own.weight * own.value
    return (
        f"Compared with its reference, the policy has moved by {signed(expert.value)} towards the expert's action and "
        f"by {signed(own.value)} towards its own (log ratios), so D = {expert.weight:g} · "
        f"({_plain(expert.value)} − {_plain(own.value)}) = {_plain(margin)}; "
        f"{signed(term.weight, 3)} · σ(−D) {term.value:.3f}: {signed(term.adds, 3)}."
    )


def _part(part: Part, rollouts: Sequence[DumpedRollout]) -> str:
    """Say what a summand of an output's worth is, and name the outputs that it came from."""
    times = "" if part.weight == 1.0 else f"{_plain(part.weight)} · "
    if part.kind == "outcome":
        return f"its last turn was paid {_plain(part.value)}, outcome included"
    if part.kind == "own":
        return f"it was paid {times}{_plain(part.value)} itself"
    named = [f"{rollouts[at].role} {rollouts[at].number} {_plain(worth)}" for at, worth in part.readers]
    if len(named) == 1:
        return f"{_plain(part.value)} came back from what read it ({named[0]})"
    listed = ", ".join(named[:_READERS]) + (f" and {len(named) - _READERS} more" if len(named) > _READERS else "")
    return f"{_plain(part.value)} came back from what read it (the {part.reduce} of {listed})"


def _statistics(
    rollouts: Sequence[DumpedRollout], seen: Sequence[Sequence[float]], number: int, turn: int, tree: Tree | None
) -> Why:
    """Describe a turn by the statistics of its group, where the group does not determine the advantage."""
    kept = [row for row, one in enumerate(seen) if len(one) > turn]
    compared = f"the {len(kept)} rollouts that got this far"
    if tree is not None and tree.is_shared:  # one rollout for each turn that was sampled in the state
        siblings = tree.siblings(tree.nodes[number][turn])
        first = (next((row for row in tree.rollouts[node] if row in kept), None) for node in siblings)
        kept = [row for row in first if row is not None]
        compared = f"the {len(kept)} turns sampled in this state"
    mine, to_come = seen[number][turn], sum(seen[number][turn:])
    here = statistics.fmean(seen[row][turn] for row in kept)
    after = statistics.fmean(sum(seen[row][turn:]) for row in kept)
    words = (
        f"This turn was paid {_plain(mine)}; {compared} averaged {_plain(here)}. "
        f"From here on {_plain(to_come)} was paid; they averaged {_plain(after)}."
    )
    if (values := rollouts[number].values) is not None:
        words += f" The critic expected {_plain(values[turn])} at its first token."
    if (behind := rollouts[number].values_after) is not None:
        words += f" When the turn was written, the critic expected {_plain(behind[turn])}."
    return Why((), words, None)


def signed(value: float, digits: int = 2) -> str:
    """Format a number as +1.41 or −0.83, and without a sign if it rounds to 0."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def _plain(value: float, digits: int = 2) -> str:
    """Format a number with two decimals, and with up to ``digits`` if they are not 0."""
    text = f"{value:.{digits}f}"
    while text[-1] == "0" and len(text.partition(".")[2]) > 2:
        text = text[:-1]
    return text.replace("-", "−") if float(text) else "0.00"
