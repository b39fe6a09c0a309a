"""Work out the advantages of one group number by number.

This repeats the arithmetic in plain Python, independent of the tensors that train: a report shows it next to the
advantage that was trained on, and says so if the two differ. Estimators on trees are in :mod:`.explain_trees`, those
of roles in :mod:`.explain_roles`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from verl_mtgrpo.report.explain_roles import EXPLAINED_WITH_ROLES, Output, read_outputs
from verl_mtgrpo.report.explain_trees import EXPLAINED_ON_TREES, Grown, PerTurn
from verl_mtgrpo.report.terms import (
    Norm,
    Rewards,
    Term,
    Working,
    divided,
    float32,
    mean_of,
    returns_of,
    std_of,
    sum_of,
    weighted,
)
from verl_mtgrpo.report.tree import read_tree

CRITICS = "turn_td"
"""The estimator whose advantages a critic of states and turns knows."""
MOST_TURNS = 500
"""Turns of a rollout that is explained. Every turn has a term for each turn after it, so their number is a square."""


def explain(
    estimator: str,
    rewards: Rewards,
    settings: Mapping[str, Any],
    *,
    paths: Sequence[str | None] | None = None,
    values: PerTurn | None = None,
    after: PerTurn | None = None,
    surprisal: PerTurn | None = None,
    outputs: Sequence[Output] | None = None,
) -> Working | None:
    """Return the terms of every advantage of one group.

    Args:
        estimator: Its name in verl, one of :data:`EXPLAINED`, :data:`~.explain_trees.EXPLAINED_ON_TREES` or
            :data:`~.explain_roles.EXPLAINED_WITH_ROLES`.
        rewards: The group, as the estimator saw it.
        settings: The knobs that differ from the estimator's defaults.
        paths: The ``node_path`` of each rollout, for estimators on trees; None: no rollouts share a turn.
        values: The critic's value at the first token of each turn, for ``turn_gae_tree`` and ``turn_td``.
        after: Its value behind the last token of each turn, for ``turn_td``.
        surprisal: The mean of -log π over the tokens of each turn, for ``at2po``.
        outputs: What the rollouts say of their roles, for estimators with roles; None: they are no outputs of roles.

    Returns:
        None if the advantages depend on more than what is given (a critic, the batch), the paths make no tree, the
        names of outputs make no sense, a rollout has more than :data:`MOST_TURNS` turns, or the estimator is unknown.
    """
    from verl_mtgrpo.credit import ESTIMATORS  # late: torch takes seconds to import, and reading dumps does not need it

    if max(map(len, rewards), default=0) > MOST_TURNS:
        return None
    defaults = ESTIMATORS[estimator].knobs if estimator in ESTIMATORS else {}
    # Rewards are float32 where they are trained on: what is equal there has to be equal here.
    seen, knobs = [[float32(reward) for reward in one] for one in rewards], {**defaults, **settings}
    if estimator in EXPLAINED:
        return EXPLAINED[estimator](seen, knobs)
    if estimator == CRITICS:
        return None if knobs["whiten"] or values is None or after is None else _turn_td(values, after)
    try:
        if estimator in EXPLAINED_WITH_ROLES and outputs is not None:
            return EXPLAINED_WITH_ROLES[estimator](read_outputs(outputs, seen), knobs)
        if estimator not in EXPLAINED_ON_TREES:
            return None
        tree = read_tree(paths or [None] * len(seen), [len(one) for one in seen])
    except ValueError:
        return None
    return EXPLAINED_ON_TREES[estimator](Grown(tree, seen, values, surprisal), knobs)


def _mt_grpo(rewards: Rewards, settings: Mapping[str, Any]) -> Working:
    """Work out A_k = c Σ_{l≥k} α^{l-k} Â^I_l + α^{K-k} Â^O (:func:`verl_mtgrpo.credit.mt_grpo`)."""
    coef, discount = float(settings["turn_coef"]), float(settings["discount"])
    norm = Norm(settings)
    excludes = settings["missing_turn"] == "exclude"
    outcomes = [one[-1] for one in rewards if one]

    def at_turn(one: Sequence[float], turn: int) -> Term | None:
        ended = turn == len(one) - 1
        if ended and excludes:
            return None
        going_on = [other[turn] for other in rewards if len(other) > turn + 1]
        stopped = 0 if excludes else sum(len(other) == turn + 1 for other in rewards)
        mine, kind = (0.0, "ended") if ended else (one[turn], "turn")
        term = norm.term(kind, turn + 1, mine, [*going_on, *[0.0] * stopped], baseline="alive")
        return replace(term, ended=stopped)

    def of_rollout(one: Sequence[float]) -> list[list[Term]]:
        outcome = norm.term("outcome", len(one), one[-1], outcomes)
        terms = [at_turn(one, turn) for turn in range(len(one))]
        return [
            [
                *(weighted(term, coef * discount**later) for later, term in enumerate(terms[turn:]) if term),
                weighted(outcome, discount ** (len(one) - 1 - turn)),
            ]
            for turn in range(len(one))
        ]

    return [of_rollout(one) if one else [] for one in rewards]


def _turn_td(before: PerTurn, after: PerTurn) -> Working:
    """Work out A_k = Q_k - V_k (:func:`verl_mtgrpo.credit.turn_td.turn_td`)."""
    return [
        [
            [Term("after", turn, q, v, None, 1, q - v, baseline="before")]
            for turn, (v, q) in enumerate(zip(mine, later, strict=True), start=1)
        ]
        for mine, later in zip(before, after, strict=True)
    ]


def _mt_grpo_v1(rewards: Rewards, settings: Mapping[str, Any]) -> Working:
    """Work out c · norm(R^T) + norm(R^O) for turn 1, norm(R^O) for later ones, norm(R^T + R^O) for a single turn."""
    coef = float(settings["turn_coef"])
    norm = Norm(settings)
    kept = [one for one in rewards if one]
    turns, outcomes = [sum_of(one[:-1]) for one in kept], [one[-1] for one in kept]
    totals = [turn + outcome for turn, outcome in zip(turns, outcomes, strict=True)]

    def of_rollout(one: Sequence[float]) -> list[list[Term]]:
        if len(one) == 1:
            return [[norm.term("total", 0, one[0], totals)]]
        outcome = norm.term("outcome", len(one), one[-1], outcomes)
        first = weighted(norm.term("turns", 0, sum_of(one[:-1]), turns), coef)
        return [[first, outcome], *([outcome] for _ in one[1:])]

    return [of_rollout(one) if one else [] for one in rewards]


def _turn_rloo(rewards: Rewards, settings: Mapping[str, Any]) -> Working:
    """Work out A_k = G_k minus the mean G_k of the others alive at k (:func:`verl_mtgrpo.credit.turn_rloo`)."""
    discount, epsilon = float(settings["discount"]), float(settings["epsilon"])
    scaled = settings["scale"] == "std"
    returns = [returns_of(one, discount) for one in rewards]

    def at_turn(row: int, turn: int) -> Term:
        value = returns[row][turn]
        others = [other[turn] for j, other in enumerate(returns) if j != row and len(other) > turn]
        baseline = "others"
        if not others:
            others = [other[-1] for j, other in enumerate(rewards) if j != row and other]
            baseline = "others_outcome" if others else "nobody"
        mean = mean_of(others) if others else 0.0
        std = std_of([one[turn] for one in returns if len(one) > turn]) if scaled else None
        normalized = value - mean if std is None else divided(value - mean, std + epsilon)
        return Term("return", turn + 1, value, mean, std, len(others), normalized, baseline=baseline)

    return [[[at_turn(row, turn)] for turn in range(len(one))] for row, one in enumerate(rewards)]


def _gtpo(rewards: Rewards, settings: Mapping[str, Any]) -> Working:
    """Work out A_k = norm(G_k) over every turn of the group (:func:`verl_mtgrpo.credit.gtpo`)."""
    discount = float(settings["discount"])
    norm = Norm(settings)
    returns = [returns_of(one, discount) for one in rewards]
    every = [value for one in returns for value in one]
    return [
        [
            [norm.term("return", turn, value, every, baseline="turns_of_group")]
            for turn, value in enumerate(one, start=1)
        ]
        for one in returns
    ]


def _grpo(rewards: Rewards, settings: Mapping[str, Any]) -> Working:
    """Work out verl's ``grpo``: norm(total) over the rollouts of the group; dropped ones have left the batch."""
    scale = "std" if settings.get("norm_adv_by_std_in_grpo", True) else "none"
    norm = Norm({"scale": scale, "epsilon": settings.get("epsilon", 1e-6)})
    totals = [sum_of(one) for one in rewards if one]
    return [[[norm.term("total", 0, sum_of(one), totals)] for _ in one] for one in rewards]


EXPLAINED: Mapping[str, Callable[[Rewards, Mapping[str, Any]], Working]] = {
    "mt_grpo": _mt_grpo,
    "mt_grpo_v1": _mt_grpo_v1,
    "turn_rloo": _turn_rloo,
    "gtpo": _gtpo,
    "grpo": _grpo,
}
"""How to work out the advantages of a group. An estimator that is not here is explained by its words only."""
