"""What a calibration is written as: tables, and a sentence of advice for each finding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from verl_mtgrpo.report.calibration import Balance, Calibration, Conflict, Correlation
from verl_mtgrpo.report.tables import markdown_table
from verl_mtgrpo.report.why import signed

TITLE = "Do turn rewards and the outcome agree?"

CORRELATED = 0.1
"""A correlation nearer to 0 than this is none."""
CHANCE = 2.0
"""One that is nearer to 0 than this many of its errors may be chance, and nothing is said about it."""
CONFLICTS = 0.25
"""From this share of a turn's rollouts on, opposite signs are a finding …"""
CONFLICT_ROLLOUTS = 30
"""… if at least this many rollouts have a term there."""
UNEQUAL = 3.0
"""Weights that differ by less than this factor count about alike."""

_NOTHING = "–"
_READ = (
    "r is the correlation among rollouts of one prompt, from −1 over 0 (none) to 1; ± is about how far from 0 it gets "
    "by chance."
)
_CORRELATION, _SIGN, _STD = (
    "correlation with the outcome",
    "sign of the turn's own term and of its advantage",
    "std within groups",
)
_TITLES = {
    _CORRELATION: {
        "r": "Pearson's, of both minus their mean over the group",
        "± by chance": "1 / √(rollouts − groups); an r below twice that says nothing",
        "groups": "those in which both differ",
        "rollouts": "those of these groups",
    },
    _SIGN: {
        "opposite": "of the rollouts in the next column, those whose advantage has the other sign",
        "rollouts with a term": "those paid more or less at this turn than their group, which went on after it",
    },
    _STD: {
        "turn terms": "how much the part of advantages varies that turn rewards add",
        "outcome": "how much the part varies that the outcome adds",
        "weight": "what weighs turn rewards against the outcome",
        "alike at": "the weight at which both would vary as much",
    },
}
"""What columns of these tables mean."""
_ALONE = (
    "There is nothing to compare: every group has a single rollout. Sample two or more per question; in a validation: "
    "actor_rollout_ref.rollout.val_kwargs.n=4 with do_sample=True."
)


def as_dict(calibration: Calibration) -> dict[str, Any]:
    """Return the numbers and the advice in JSON's types."""
    return {**asdict(calibration), "advice": advice(calibration)}


def for_page(calibration: Calibration) -> dict[str, Any]:
    """Return what page/calibration.js draws."""
    return {
        "about": about(calibration),
        "advice": advice(calibration),
        "tables": [
            {"head": head, "rows": rows, "titles": [_TITLES[head[0]].get(name, "") for name in head]}
            for head, rows in tables(calibration)
        ],
        "undefined": undefined_lines(calibration),
    }


def about(calibration: Calibration) -> str:
    """Return which rollouts these are, whose advantages, and how to read what follows."""
    first, last = calibration.steps
    when = f"of step {first}" if first == last else f"of the steps {first} to {last}, while the policy changed"
    if calibration.training:
        return f"Training rollouts {when}, with the advantages that they were trained on. {_READ}"
    return f"Validation rollouts {when}; nothing is trained on them, so advantages are recomputed as mt_grpo. {_READ}"


def correlation_table(calibration: Calibration) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the correlations that are defined: rewards by turn, then the strongest components."""
    known = [one for one in calibration.correlations if one.r is not None]
    ordered = sorted(known, key=lambda one: (one.turn is None, -abs(one.r or 0.0) if one.turn is None else 0.0))
    rows = [[one.name, _number(one.r), f"± {one.error:.2f}", str(one.groups), str(one.rollouts)] for one in ordered]
    return [_CORRELATION, "r", "± by chance", "groups", "rollouts"], rows


def undefined_lines(calibration: Calibration) -> list[str]:
    """Return, for each reason why correlations are undefined, which ones."""
    names: dict[str, list[str]] = defaultdict(list)
    for one in calibration.correlations:
        if one.undefined:
            names[one.undefined].append(one.name)
    return [f"Undefined, because {reason}: {', '.join(some)}." for reason, some in names.items()]


def conflict_table(calibration: Calibration) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the signs by turn."""
    return [_SIGN, "opposite", "rollouts with a term"], [
        [f"turn {one.turn}", _NOTHING if one.share is None else f"{100 * one.share:.0f} %", str(one.rollouts)]
        for one in calibration.conflicts
    ]


def balance_table(calibration: Calibration) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the weights."""
    header = [_STD, "turn terms", "outcome", "weight", "now", "alike at", "groups"]
    return header, [
        [
            one.estimator,
            f"{one.turn_std:.3f}",
            f"{one.outcome_std:.3f}",
            one.weight,
            f"{one.now:g}",
            _NOTHING if one.alike is None else f"{one.alike:.3g}",
            str(one.groups),
        ]
        for one in calibration.balances
    ]


def advice(calibration: Calibration) -> list[str]:
    """Return a sentence for each finding."""
    if not calibration.comparable:
        return [_ALONE]
    paid = [one for one in calibration.correlations if one.turn is not None]
    found = [*_on_rewards(paid), *_on_the_tool({one.name: one for one in calibration.correlations})]
    total = next(one for one in paid if one.turn == 0)
    found += map(_on_signs, calibration.conflicts)
    found += [_on_weights(one, total) for one in calibration.balances]
    return [sentence for sentence in found if sentence]


def _on_rewards(paid: Sequence[Correlation]) -> Iterator[str]:
    if all(one.r is None for one in paid):
        yield f"What turns were paid cannot be compared with the outcome: {paid[-1].undefined}."
    by_turn = [one for one in paid if one.turn and one.r is not None]
    # With one such turn the total says nothing that it does not say.
    for one in by_turn if len(by_turn) == 1 else paid:
        who, do, correlate = (
            ("Turn rewards", "do", "correlate")
            if one.turn == 0
            else (f"What turn {one.turn} was paid", "does", "correlates")
        )
        if _below(one):
            yield (
                f"{who} {correlate} negatively with the outcome in group-mates ({_of(one)}): rollouts that earn more "
                "this way do worse in the end. Either this pays for the wrong thing, or for a skill that does not pay "
                "off yet: read such rollouts before you change a weight."
            )
        elif _above(one):
            yield f"{who} {correlate} positively with the outcome in group-mates ({_of(one)}): both ask for the same."
        elif one.error is not None and CHANCE * one.error <= CORRELATED:
            yield (
                f"{who} {do} not correlate with the outcome in group-mates ({_of(one)}): in these rollouts the "
                "outcome does not depend on what this pays for."
            )


def _on_the_tool(named: Mapping[str, Correlation]) -> Iterator[str]:
    used, hit = named.get("tool/used"), named.get("tool/hit")
    if used and _below(used):
        yield (
            f"Using the tool correlates negatively with the outcome in group-mates ({_of(used)}): the outcome alone "
            "teaches this policy to stop using it."
        )
    if hit and _above(hit):
        yield (
            f"An answer in the results (tool/hit) correlates positively with the outcome in group-mates ({_of(hit)}): "
            "a turn reward for it asks for what the outcome asks for."
        )


def _on_signs(one: Conflict) -> str:
    if one.share is None or one.share < CONFLICTS or one.rollouts < CONFLICT_ROLLOUTS:
        return ""
    return (
        f"At turn {one.turn}, {100 * one.share:.0f} % of the {one.rollouts} rollouts that earned more or less there "
        "than their group-mates have an advantage of the opposite sign: what came later outweighs what the turn was "
        "paid; if the turn reward is to be trusted, give it more weight."
    )


def _on_weights(one: Balance, total: Correlation) -> str:
    if not one.turn_std:
        return ""  # another sentence says so
    if one.alike is None:
        return f"For {one.estimator}, no weight makes turn rewards and the outcome count alike: {one.undefined}."
    ratio = one.now * one.turn_std / one.outcome_std
    how = (
        f"{one.weight} = {one.alike:.3g} (now {one.now:g})"
        if one.weight == "turn_coef"
        else f"turn rewards {one.alike:.3g} times as large"
    )
    counts = f"For {one.estimator}, turn rewards vary {ratio:.2g} times as much as the outcome within groups"
    if 1 / UNEQUAL < abs(ratio) < UNEQUAL:
        return f"{counts}, so both count about alike; exactly alike: {how}."
    but = ""
    if one.alike > abs(one.now) and _below(total):
        but = "; that is no reason to do it while they correlate negatively"
    return f"{counts}; both count alike with {how}{but}."


def to_markdown(calibrations: Sequence[Calibration]) -> list[str]:
    """Return the section's paragraphs."""
    parts: list[str] = []
    for one in calibrations:
        parts += [about(one), "\n".join(f"- {sentence}" for sentence in advice(one))]
        parts += [markdown_table(*table) for table in tables(one)]
        parts += undefined_lines(one)
    return parts


def tables(calibration: Calibration) -> list[tuple[list[str], list[list[str]]]]:
    """Return header and rows of every table that has rows."""
    every = (correlation_table, conflict_table, balance_table)
    return [table for make in every if (table := make(calibration))[1]]


def _above(one: Correlation) -> bool:
    return one.r is not None and one.error is not None and one.r >= max(CORRELATED, CHANCE * one.error)


def _below(one: Correlation) -> bool:
    return one.r is not None and one.error is not None and -one.r >= max(CORRELATED, CHANCE * one.error)


def _of(one: Correlation) -> str:
    return f"r = {_number(one.r)} ± {one.error:.2f}, {one.groups} groups"


def _number(value: float | None) -> str:
    return _NOTHING if value is None else signed(value)
