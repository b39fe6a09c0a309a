"""Work out the advantages of one group whose rollouts share turns: estimators on trees, number by number.

As in :mod:`.explain`, this is plain Python that repeats the arithmetic of :mod:`verl_mtgrpo.credit.tree` and
:mod:`verl_mtgrpo.credit.leaves` in another way: no tensors, and nodes that are looked up one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from verl_mtgrpo.report.terms import Norm, Rewards, Term, Working, divided, float32, mean_of, std_of, sum_of, weighted
from verl_mtgrpo.report.tree import Tree

PerTurn = Sequence[Sequence[float]]
"""For each rollout of a group a number for each turn."""
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Grown:
    """The rollouts of one group as the estimator saw them. Those that were dropped have no turns.

    Attributes:
        tree: Their nodes.
        rewards: What each turn was paid.
        values: The critic's value at the first token of each turn; None without a critic.
        surprisal: The mean of -log π over the tokens of each turn; None if the dump does not say.
    """

    tree: Tree
    rewards: Rewards
    values: PerTurn | None = None
    surprisal: PerTurn | None = None

    def of_nodes(self, numbers: PerTurn) -> list[float]:
        """Return the number of each node, read in the first rollout that has it."""
        tree = self.tree
        return [numbers[rows[0]][turn] for rows, turn in zip(tree.rollouts, tree.turns, strict=True)]

    def is_last(self, node: int) -> bool:
        """Return True if rollouts end with the node."""
        return node not in self.tree.children

    def kept(self) -> list[int]:
        """Return the rollouts that were not dropped."""
        return [row for row, mine in enumerate(self.tree.nodes) if mine]

    def ahead(self, own: Sequence[float], discount: float, average: Callable[..., float] | None = None) -> list[float]:
        """Return x(n) = own(n) + γ · average of x over the children of n, for each node."""
        found = list(own)
        for node in range(self.tree.size - 1, -1, -1):  # children have larger numbers
            if children := self.tree.children.get(node):
                values = [found[child] for child in children]
                later = mean_of(values) if average is None else average(children, values)
                found[node] = own[node] + discount * later
        return [float32(value) for value in found]

    def weights(self, how: str) -> list[float]:
        """Return what each node counts in each of its rollouts (:meth:`verl_mtgrpo.credit.forest.Forest.weight`)."""
        rows = [len(some) for some in self.tree.rollouts]
        if how != "policy":
            return [1.0 / n if how == "once" else 1.0 for n in rows]
        visits: list[float] = []
        for node, parent in enumerate(self.tree.parents):
            visits.append((visits[parent] if parent >= 0 else 1.0) / len(self.tree.siblings(node)))
        return [len(self.kept()) * share / n for share, n in zip(visits, rows, strict=True)]

    def per_turn(self, terms_of: Callable[[int, int, int], list[Term]], weights: Sequence[float]) -> Working:
        """Return the terms of every turn, from a function of rollout, turn and node, times the weight of the node."""
        return [
            [
                [weighted(term, term.weight * weights[node]) for term in terms_of(row, turn, node)]
                for turn, node in enumerate(mine)
            ]
            for row, mine in enumerate(self.tree.nodes)
        ]

    def per_node(self, terms_of: Callable[[int], list[Term]], weights: Sequence[float] | None = None) -> Working:
        """Return the terms of every turn, from a function of its node."""
        tree = self.tree
        every = [
            [replace(term, leaves=len(tree.rollouts[node])) for term in terms_of(node)] for node in range(tree.size)
        ]
        return self.per_turn(lambda row, turn, node: every[node], weights or [1.0] * tree.size)

    def others(self, node: int) -> tuple[str, list[int]]:
        """Return what a leave-one-out baseline of a node is called and made of."""
        among = [one for one in self.tree.siblings(node) if one != node]
        if among:
            return "other_siblings", among
        return "other_places", [one for one in self.tree.places[self.tree.turns[node]] if one != node]


def mt_grpo_tree(group: Grown, settings: Settings) -> Working:
    """Work out A_{i,k} = w (c Σ_{l≥k} α^{l-k} Â^I_{n_l} + α^{K-k} Â^O_i), or the same with ``baseline=siblings``."""
    if settings["baseline"] == "siblings":
        return _mt_grpo_siblings(group, settings)
    coef, discount = float(settings["turn_coef"]), float(settings["discount"])
    norm, excludes = Norm(settings), settings["missing_turn"] == "exclude"
    paid = [0.0 if group.is_last(node) else reward for node, reward in enumerate(group.of_nodes(group.rewards))]
    outcomes = [one[-1] for one in group.rewards if one]

    def of_node(node: int) -> Term | None:
        if excludes and group.is_last(node):
            return None
        baseline, compared = "siblings", _valid(group, group.tree.siblings(node), excludes)
        if len(compared) == 1:
            baseline, compared = "place", _valid(group, group.tree.places[group.tree.turns[node]], excludes)
        kind = "ended" if group.is_last(node) else "turn"
        values = [paid[one] for one in compared]
        term = norm.term(kind, group.tree.turns[node] + 1, paid[node], values, baseline=baseline)
        return replace(term, ended=sum(map(group.is_last, compared)))

    of_nodes = [of_node(node) for node in range(group.tree.size)]

    def terms_of(row: int, turn: int, node: int) -> list[Term]:
        mine, length = group.tree.nodes[row], len(group.rewards[row])
        outcome = norm.term("outcome", length, group.rewards[row][-1], outcomes)
        later = enumerate(of_nodes[one] for one in mine[turn:])
        return [
            *(weighted(term, coef * discount**distance) for distance, term in later if term),
            weighted(outcome, discount ** (length - 1 - turn)),
        ]

    return group.per_turn(terms_of, group.weights(settings["weight"]))


def _mt_grpo_siblings(group: Grown, settings: Settings) -> Working:
    """Work out A_n = w (c (I_n - mean of the others' I) + (O_n - mean of the others' O))."""
    discount, paid = float(settings["discount"]), group.of_nodes(group.rewards)
    parts = [
        (kind, coef, group.ahead([x if group.is_last(n) is ends else 0.0 for n, x in enumerate(paid)], discount))
        for kind, coef, ends in (("intermediate", float(settings["turn_coef"]), False), ("outcomes", 1.0, True))
    ]

    def terms_of(node: int) -> list[Term]:
        baseline, others = group.others(node)
        return [
            weighted(_against_others(group, kind, node, worth, baseline, [worth[n] for n in others], settings), coef)
            for kind, coef, worth in parts
        ]

    return group.per_node(terms_of, group.weights(settings["weight"]))


def turn_rloo_tree(group: Grown, settings: Settings) -> Working:
    """Work out A_n = w (G_n - mean of the other siblings' G)."""
    worth = group.ahead(group.of_nodes(group.rewards), float(settings["discount"]))

    def terms_of(node: int) -> list[Term]:
        baseline, others = group.others(node)
        values = [worth[one] for one in others]
        if not values:
            baseline, mine = "others_outcome", set(group.tree.rollouts[node])
            values = [group.rewards[row][-1] for row in group.kept() if row not in mine]
        return [_against_others(group, "return", node, worth, baseline, values, settings)]

    return group.per_node(terms_of, group.weights(settings["weight"]))


def turn_gae_tree(group: Grown, settings: Settings) -> Working | None:
    """Work out A_n = w (Q_n - mean of the other siblings' Q), or minus the critic's V_n; None if it is whitened."""
    if settings["whiten"] or group.values is None:
        return None
    discount, values = float(settings["discount"]), group.of_nodes(group.values)
    errors = [
        reward + (discount * own[turn + 1] if turn + 1 < len(own) else 0.0) - own[turn]
        for reward, own, turn in (
            (reward, group.values[rows[0]], turn)
            for reward, rows, turn in zip(
                group.of_nodes(group.rewards), group.tree.rollouts, group.tree.turns, strict=True
            )
        )
    ]
    ahead = group.ahead(errors, discount * float(settings["lam"]))
    worth = [estimate + value for estimate, value in zip(ahead, values, strict=True)]

    def terms_of(node: int) -> list[Term]:
        baseline, others = group.others(node)
        if settings["baseline"] == "critic" or baseline != "other_siblings":
            turn = group.tree.turns[node] + 1
            return [Term("lambda_return", turn, worth[node], values[node], None, 1, ahead[node], baseline="critic")]
        compared = [worth[one] for one in others]
        return [_against_others(group, "lambda_return", node, worth, baseline, compared, {})]

    return group.per_node(terms_of, group.weights(settings["weight"]))


def arpo(group: Grown, settings: Settings) -> Working:
    """Work out norm(total) over the group: each rollout's own, or of a turn the mean over the rollouts that have it."""
    norm, how = Norm({"epsilon": settings["epsilon"]}), settings["attribution"]
    totals = [sum_of(one) for one in group.rewards]
    kept = [totals[row] for row in group.kept()]
    if how == "soft":
        return group.per_turn(
            lambda row, turn, node: [norm.term("total", 0, totals[row], kept)], [1.0] * group.tree.size
        )

    def terms_of(node: int) -> list[Term]:
        mean = mean_of([totals[row] for row in group.tree.rollouts[node]])
        return [norm.term("totals", group.tree.turns[node] + 1, mean, kept)]

    return group.per_node(terms_of, group.weights("once" if how == "once" else "rows"))


def tree_grpo(group: Grown, settings: Settings) -> Working:
    """Work out norm(total) over the group plus norm(total) over the rollouts with the same first turn."""
    norm = Norm(settings)
    totals = [sum_of(one) for one in group.rewards]
    kept = [totals[row] for row in group.kept()]

    def terms_of(row: int, turn: int, node: int) -> list[Term]:
        mates = group.tree.rollouts[group.tree.nodes[row][0]]
        terms = [norm.term("total", 0, totals[row], kept)]
        if len(mates) > 1:
            terms.append(norm.term("total", 0, totals[row], [totals[one] for one in mates], baseline="tree"))
        return terms

    return group.per_turn(terms_of, [1.0] * group.tree.size)


def at2po(group: Grown, settings: Settings) -> Working | None:
    """Work out the value of a node, an average of its leaves' totals, minus what the mode compares it with.

    All values are averages of (total - mean) / std over leaves, so this is one difference of averages of totals,
    divided by the standard deviation (of N, as AT2PO's code has it).
    """
    how, mode = settings["node_value"], settings["mode"]
    totals = [sum_of(one) for one in group.rewards]
    kept = [totals[row] for row in group.kept()]
    average = _softmax_average(group) if how == "child_softmax" else None
    if how == "child_softmax" and average is None:
        return None
    if len(kept) < 2:
        return group.per_node(lambda node: [Term("totals", 1, kept[0], kept[0], None, 1, 0.0, baseline="nobody")])
    low = min(kept)  # averages of equal numbers are exactly that number
    if how == "leaf_mean":
        worth = [mean_of([totals[row] - low for row in rows]) for rows in group.tree.rollouts]
        prompt = mean_of(kept) - low
    else:
        leaf = [totals[rows[0]] - low if group.is_last(n) else 0.0 for n, rows in enumerate(group.tree.rollouts)]
        worth = group.ahead(leaf, 1.0, average)
        first = group.tree.children[-1]
        values = [worth[node] for node in first]
        prompt = mean_of(values) if average is None else average(first, values)
    std = math.sqrt(math.fsum((x - mean_of(kept)) ** 2 for x in kept) / len(kept))

    def minus(node: int, baseline: str, other: float) -> Term:
        normalized = divided(worth[node] - other, std + float(settings["epsilon"]))
        count = len(kept) if baseline == "group" else 1
        turn = group.tree.turns[node] + 1
        return Term("totals", turn, low + worth[node], low + other, std, count, normalized, baseline=baseline)

    def terms_of(node: int) -> list[Term]:
        parent = group.tree.parents[node]
        of_parent = minus(node, "parent", worth[parent]) if parent >= 0 else minus(node, "prompt", prompt)
        of_prompt = minus(node, "prompt", prompt)
        return {
            "node_value": [minus(node, "group", mean_of(kept) - low)],
            "diff_parent": [of_parent],
            "diff_global": [of_prompt],
            "diff_localglobal": [of_prompt, of_parent],
        }[mode]

    return group.per_node(terms_of)


EXPLAINED_ON_TREES: Mapping[str, Callable[[Grown, Settings], Working | None]] = {
    "mt_grpo_tree": mt_grpo_tree,
    "turn_rloo_tree": turn_rloo_tree,
    "turn_gae_tree": turn_gae_tree,
    "arpo": arpo,
    "tree_grpo": tree_grpo,
    "at2po": at2po,
}
"""How to work out the advantages of a group whose rollouts may share turns."""


def _valid(group: Grown, nodes: Iterable[int], without_last: bool) -> list[int]:
    return [node for node in nodes if not (without_last and group.is_last(node))]


def _against_others(
    group: Grown,
    kind: str,
    node: int,
    worth: Sequence[float],
    baseline: str,
    others: Sequence[float],
    settings: Settings,
) -> Term:
    """Return the term of a node minus the mean of others, divided by the standard deviation if the settings say so."""
    mean = mean_of(others) if others else 0.0
    centred, std = worth[node] - mean, None
    if settings.get("scale") == "std":
        among = group.tree.siblings(node)
        compared = among if len(among) > 1 else group.tree.places[group.tree.turns[node]]
        std = std_of([worth[one] for one in compared])
        centred = divided(centred, std + float(settings["epsilon"]))
    name = baseline if others else "nobody"
    return Term(kind, group.tree.turns[node] + 1, worth[node], mean, std, len(others), centred, baseline=name)


def _softmax_average(group: Grown) -> Callable[[Sequence[int], Sequence[float]], float] | None:
    """Return the mean over children with weights softmax(surprisal); None if the dump does not have the surprisal."""
    if group.surprisal is None:
        return None
    surprisal = group.of_nodes(group.surprisal)

    def average(nodes: Sequence[int], values: Sequence[float]) -> float:
        highest = max(surprisal[node] for node in nodes)
        weights = [math.exp(surprisal[node] - highest) for node in nodes]
        return math.fsum(w * x for w, x in zip(weights, values, strict=True)) / math.fsum(weights)

    return average
