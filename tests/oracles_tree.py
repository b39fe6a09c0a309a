"""Estimators on trees once more, as slow loops over explicit lists of nodes, to test the fast ones against.

A node is a tuple: the prompt, and the ids of its turn and of all turns before it. Everything is found again and again
by comparing tuples; nothing here uses the package.
"""

from __future__ import annotations

import math

from tests.oracles import norm, runs_of_ones

Node = tuple


class Tree:
    """Rows, their nodes and what these were paid."""

    def __init__(self, rewards: list[list[float]], masks: list[list[int]], groups: list, paths: list[str | None]):
        self.masks, self.groups = masks, groups
        self.turns = [runs_of_ones(mask) for mask in masks]
        self.paid: dict[Node, float] = {}
        self.rows: list[list[Node]] = []
        for i, turns in enumerate(self.turns):
            ids = paths[i].split("/") if paths[i] else [f"row {i}, turn {k}" for k in range(len(turns))]
            nodes = [(groups[i], *ids[: k + 1]) for k in range(len(turns))]
            for node, turn in zip(nodes, turns, strict=False):
                self.paid[node] = sum(rewards[i][t] for t in turn)
            self.rows.append(nodes)

    def nodes(self) -> list[Node]:
        return list(self.paid)

    def is_leaf(self, node: Node) -> bool:
        return not self.children(node)

    def children(self, node: Node) -> list[Node]:
        return [other for other in self.paid if len(other) == len(node) + 1 and other[:-1] == node]

    def siblings(self, node: Node) -> list[Node]:
        return [other for other in self.paid if len(other) == len(node) and other[:-1] == node[:-1]]

    def level(self, node: Node) -> list[Node]:
        return [other for other in self.paid if len(other) == len(node) and other[0] == node[0]]

    def through(self, node: Node) -> list[int]:
        return [i for i, nodes in enumerate(self.rows) if node in nodes]

    def leaves(self, group: object) -> list[int]:
        return [i for i, nodes in enumerate(self.rows) if nodes and self.groups[i] == group]

    def mean_below(self, node: Node, own: dict[Node, float], gamma: float) -> float:
        below = [self.mean_below(child, own, gamma) for child in self.children(node)]
        return own[node] + gamma * (sum(below) / len(below) if below else 0.0)

    def weight(self, node: Node, how: str) -> float:
        if how == "rows":
            return 1.0
        if how == "once":
            return 1.0 / len(self.through(node))
        share = 1.0  # how often the policy gets here: each state's turns share it equally
        for depth in range(2, len(node) + 1):
            share /= len(self.siblings(node[:depth]))
        return share * len(self.leaves(node[0])) / len(self.through(node))

    def spread(self, advantage: dict[Node, float] | list[list[float]]) -> list[list[float]]:
        """To tokens: one number per node, or a list of numbers per row."""
        out = [[0.0] * len(mask) for mask in self.masks]
        for i, nodes in enumerate(self.rows):
            for k, node in enumerate(nodes):
                for t in self.turns[i][k]:
                    out[i][t] = advantage[node] if isinstance(advantage, dict) else advantage[i][k]
        return out


def _std(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1)) if len(values) > 1 else 1.0


def _compared(tree: Tree, node: Node) -> list[Node]:
    siblings = tree.siblings(node)
    return siblings if len(siblings) > 1 else tree.level(node)


def mt_grpo_tree(
    tree: Tree,
    *,
    c: float = 1.0,
    alpha: float = 1.0,
    missing_turn: str = "zero",
    weight: str = "policy",
    scale: str = "std",
    epsilon: float = 1e-6,
) -> list[list[float]]:
    """Eq. 10-12: each turn among its siblings, the outcome among the leaves, added up along the row."""
    takes_part = [n for n in tree.nodes() if missing_turn == "zero" or not tree.is_leaf(n)]
    reward = {n: 0.0 if tree.is_leaf(n) else tree.paid[n] for n in tree.nodes()}
    term = dict.fromkeys(tree.nodes(), 0.0)
    for n in takes_part:
        among = [m for m in tree.siblings(n) if m in takes_part]
        if len(among) < 2:
            among = [m for m in tree.level(n) if m in takes_part]
        term[n] = norm([reward[m] for m in among], scale, epsilon)[among.index(n)]
    advantage: list[list[float]] = []
    for i, nodes in enumerate(tree.rows):
        leaves = tree.leaves(tree.groups[i])
        row = []
        for k, n in enumerate(nodes):
            outcomes = norm([tree.paid[tree.rows[j][-1]] for j in leaves], scale, epsilon)
            later = sum(alpha ** (m - k) * term[nodes[m]] for m in range(k, len(nodes)))
            whole = c * later + alpha ** (len(nodes) - 1 - k) * outcomes[leaves.index(i)]
            row.append(whole * tree.weight(n, weight))
        advantage.append(row)
    return tree.spread(advantage)


def mt_grpo_siblings(
    tree: Tree,
    *,
    c: float = 1.0,
    alpha: float = 1.0,
    weight: str = "policy",
    scale: str = "std",
    epsilon: float = 1e-6,
) -> list[list[float]]:
    """Everything that follows a turn against the same of its siblings, turn rewards and outcome apart."""
    terms = []
    for outcome in (False, True):
        own = {n: tree.paid[n] if tree.is_leaf(n) == outcome else 0.0 for n in tree.nodes()}
        worth = {n: tree.mean_below(n, own, alpha) for n in tree.nodes()}
        term = {}
        for n in tree.nodes():
            compared = _compared(tree, n)
            others = [worth[m] for m in compared if m != n]
            term[n] = worth[n] - (sum(others) / len(others) if others else 0.0)
            if scale == "std":
                term[n] /= _std([worth[m] for m in compared]) + epsilon
        terms.append(term)
    return tree.spread({n: (c * terms[0][n] + terms[1][n]) * tree.weight(n, weight) for n in tree.nodes()})


def turn_rloo_tree(
    tree: Tree, *, gamma: float = 1.0, weight: str = "policy", scale: str = "none", epsilon: float = 1e-6
) -> list[list[float]]:
    """The return of a turn less the mean of its other siblings'; else of the others of its level; else of outcomes."""
    worth = {n: tree.mean_below(n, tree.paid, gamma) for n in tree.nodes()}
    advantage = {}
    for n in tree.nodes():
        compared = _compared(tree, n)
        baselines = [worth[m] for m in compared if m != n]
        if not baselines:
            elsewhere = [i for i in tree.leaves(n[0]) if i not in tree.through(n)]
            baselines = [tree.paid[tree.rows[i][-1]] for i in elsewhere]
        advantage[n] = worth[n] - (sum(baselines) / len(baselines) if baselines else 0.0)
        if scale == "std":
            advantage[n] /= _std([worth[m] for m in compared]) + epsilon
        advantage[n] *= tree.weight(n, weight)
    return tree.spread(advantage)


def turn_gae_tree(
    tree: Tree,
    values: list[list[float]],
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    baseline: str = "siblings",
    weight: str = "policy",
) -> tuple[list[list[float]], list[list[float]]]:
    """λ-returns over nodes, not whitened, against the siblings' or the critic."""
    value = {n: values[i][tree.turns[i][k][0]] for i, nodes in enumerate(tree.rows) for k, n in enumerate(nodes)}

    def of(n: Node) -> float:
        children = tree.children(n)
        later = value[children[0]] if children else 0.0  # one state, one value
        below = sum(of(child) for child in children) / len(children) if children else 0.0
        return tree.paid[n] + gamma * later - value[n] + gamma * lam * below

    returns = {n: of(n) + value[n] for n in tree.nodes()}
    advantage = {}
    for n in tree.nodes():
        others = [returns[m] for m in tree.siblings(n) if m != n]
        by_critic = baseline == "critic" or not others
        advantage[n] = returns[n] - (value[n] if by_critic else sum(others) / len(others))
        advantage[n] *= tree.weight(n, weight)
    return tree.spread(advantage), tree.spread(returns)


def _scores(tree: Tree, i: int) -> float:
    return sum(tree.paid[n] for n in tree.rows[i])


def arpo(tree: Tree, *, attribution: str = "soft", epsilon: float = 1e-6) -> list[list[float]]:
    """GRPO over the leaves; shared turns: own, mean over the rows, or that once."""
    z: dict[int, float] = {}
    for group in set(tree.groups):
        rows = tree.leaves(group)
        if rows:
            z |= dict(zip(rows, norm([_scores(tree, i) for i in rows], "std", epsilon), strict=True))
    advantage = []
    for i, nodes in enumerate(tree.rows):
        row = []
        for n in nodes:
            mine = tree.through(n)
            mean = sum(z[j] for j in mine) / len(mine)
            row.append({"soft": z[i], "hard": mean, "once": mean / len(mine)}[attribution])
        advantage.append(row)
    return tree.spread(advantage)


def tree_grpo(tree: Tree, *, scale: str = "std", epsilon: float = 1e-6) -> list[list[float]]:
    """Normalised over the prompt, plus normalised over the rows with the same first turn, if there are several."""
    advantage = []
    for i, nodes in enumerate(tree.rows):
        total = 0.0
        if nodes:
            prompt = tree.leaves(tree.groups[i])
            own_tree = [j for j in prompt if tree.rows[j][0] == nodes[0]]
            total = norm([_scores(tree, j) for j in prompt], scale, epsilon)[prompt.index(i)]
            if len(own_tree) > 1:
                total += norm([_scores(tree, j) for j in own_tree], scale, epsilon)[own_tree.index(i)]
        advantage.append([total] * len(nodes))
    return tree.spread(advantage)


def at2po(
    tree: Tree,
    log_probs: list[list[float]],
    *,
    node_value: str = "child_softmax",
    mode: str = "node_value",
    epsilon: float = 1e-6,
) -> list[list[float]]:
    """Values of nodes from normalised leaves, for the prompt as the root too; four ways to an advantage."""
    z: dict[int, float] = {}
    for group in set(tree.groups):
        rows = tree.leaves(group)
        scores = [_scores(tree, i) for i in rows]
        if rows:
            mean = sum(scores) / len(scores)
            std = math.sqrt(sum((x - mean) ** 2 for x in scores) / len(scores))
            z |= {i: (x - mean) / (std + epsilon) for i, x in zip(rows, scores, strict=True)}
    surprise = {}
    for i, nodes in enumerate(tree.rows):
        for k, n in enumerate(nodes):
            tokens = tree.turns[i][k]
            surprise[n] = -sum(log_probs[i][t] for t in tokens) / len(tokens)

    def below(node: Node) -> list[int]:
        return [i for i in tree.leaves(node[0]) if len(node) == 1 or node in tree.rows[i]]

    def value(node: Node) -> float:  # (group,) is the prompt
        children = tree.children(node)
        if node_value == "leaf_mean" or not children:
            return sum(z[i] for i in below(node)) / len(below(node))
        weights = [math.exp(surprise[child]) if node_value == "child_softmax" else 1.0 for child in children]
        return sum(w * value(child) for w, child in zip(weights, children, strict=True)) / sum(weights)

    advantage = {}
    for n in tree.nodes():
        local, from_root = value(n) - value(n[:-1]), value(n) - value(n[:1])
        advantage[n] = {
            "node_value": value(n),
            "diff_parent": local,
            "diff_global": from_root,
            "diff_localglobal": local + from_root,
        }[mode]
    return tree.spread(advantage)
