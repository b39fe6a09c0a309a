"""Strategies of growing a tree of rollouts: which states get another child, and when. Knows nothing of verl.

A node is one turn: what the policy generated in one state, and the tool results after it. The loop
(:mod:`.rollout.tree_loop`) advances all live leaves by one turn, then asks the strategy which states branch, and begins
one new leaf at each. When no leaf is live it asks for more, until the tree has its leaves or wants no more.
All draws come from :meth:`Growth.draw`, so a tree depends on its seed and on what was generated, never on what happened
to finish first.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.settings import BranchSettings

_N = "actor_rollout_ref.rollout.n"
_BRANCH = "trainer.turn.branch"
_BITS = 64
"""Numbers of leaves that need more bits than this are not worth writing out."""


@dataclass(eq=False)
class Node:
    """One turn of a tree, or its root, the prompt.

    Attributes:
        name: Its id within the tree: ``0.2.0`` is the first child of the third child of node 0; empty for the root.
        parent: The node before it; None for the root.
        depth: Number of the turn, from 1; 0 for the root.
        state: The rollout after it, ready for the next turn; None for the root, and if the rollout ended here.
        log_probs: Of its generated tokens; empty if the server returned none, or its turn failed.
        tokens: Number of its generated tokens.
        children: Number of children that were begun.
    """

    name: str = ""
    parent: Node | None = None
    depth: int = 0
    state: Any = None
    log_probs: Sequence[float] = ()
    tokens: int = 0
    children: int = 0

    def child(self) -> Node:
        """Return a new child, numbered in the order of beginning."""
        name = f"{self.name}.{self.children}" if self.name else str(self.children)
        self.children += 1
        return Node(name, self, self.depth + 1)

    @property
    def lineage(self) -> list[Node]:
        """The nodes from the first turn to this one; empty for the root."""
        found: list[Node] = []
        node: Node = self
        while node.parent is not None:
            found.append(node)
            node = node.parent
        return found[::-1]

    @property
    def is_first_child(self) -> bool:
        """True for the child that its parent would have without any branch."""
        return self.name.rpartition(".")[2] == "0"


def surprisal(log_probs: Sequence[float], tokens: int | None = None) -> float:
    """Return the mean of -log p over the first ``tokens`` tokens of a turn, or over all of them, in nats."""
    first = log_probs[:tokens]
    return -math.fsum(first) / len(first)


def branch_probability(signal: float, *, probability: float, weight: float) -> float:
    """Return P = α + β·ΔH, clipped to [0, 1] (ARPO, arXiv 2507.19849).

    Args:
        signal: ΔH, the surprisal of a turn after a tool result minus that of the rollout's first turn, in nats.
        probability: α.
        weight: β.
    """
    return min(1.0, max(0.0, probability + weight * signal))


@dataclass
class Growth:
    """A strategy for one tree. It is asked after every turn and whenever no leaf is live.

    Attributes:
        settings: ``trainer.turn.branch``.
        leaves: Number of leaves that the tree is to have.
        of: What its draws depend on beside the seed: step and question.
        max_turns: The limit of turns of a rollout; 0 if there is none.
        signals: What was measured at each state that might have branched, for the metrics.
        decided: Number of states that might have branched.
        fired: Number of those that were to.
    """

    settings: BranchSettings
    leaves: int
    of: str = ""
    max_turns: int = 0
    signals: list[float] = field(default_factory=list)
    decided: int = 0
    fired: int = 0

    def __post_init__(self) -> None:
        """Prepare what the strategy needs for a tree."""

    def start(self) -> int:
        """Return how many rollouts begin at the prompt."""
        return min(self.leaves, initial_of(self.settings, self.leaves))

    def after_turn(self, done: Sequence[Node], room: int) -> list[Node]:
        """Return the nodes at which a new leaf begins, once for each.

        Args:
            done: The turns that have just been written.
            room: How many more leaves the tree may have.
        """
        return []

    def when_over(self, nodes: Sequence[Node], room: int) -> list[Node]:
        """Return where new leaves begin now that every rollout has ended; an empty list ends the tree.

        Args:
            nodes: The root and all turns that were begun, in that order.
            room: How many more leaves the tree may have.
        """
        return [nodes[0]] * room

    def draw(self, node: str) -> random.Random:
        """Return the draws that are made for a node; other nodes, questions, steps and seeds have other ones."""
        return random.Random(f"{self.settings.seed} {self.of} {node}")


class Chains(Growth):
    """No branches: every rollout begins at the prompt."""

    def start(self) -> int:
        """Return all leaves."""
        return self.leaves


class Full(Growth):
    """The paper's tree (arXiv 2505.11821, Appendix D, Figure 7): every state has several children at the first turns.

    A rollout that ends early leaves the tree with fewer leaves, and nothing takes their place: a rollout that began
    somewhere else would not be a sibling.
    """

    def __post_init__(self) -> None:
        """Read the settings."""
        self.widths = widths_of(self.settings, self.leaves, self.max_turns)

    def start(self) -> int:
        """Return the children of the prompt."""
        return self.widths[0]

    def after_turn(self, done: Sequence[Node], room: int) -> list[Node]:
        """Give every state its children: the rollout that is there, and others."""
        states = [node for node in done if node.state is not None and node.depth < len(self.widths)]
        return [node for node in states for _ in range(self.widths[node.depth] - 1)]

    def when_over(self, nodes: Sequence[Node], room: int) -> list[Node]:
        """End the tree."""
        return []


class Surprise(Growth):
    """ARPO (arXiv 2507.19849): branch after a tool result if the policy is less certain there than at the start.

    The first turn after a tool result is written whole, and the first ``tokens`` of it are the measurement. If the
    state branches, siblings of that turn are generated from the same state. So no token is generated only to measure,
    and a state is measured once. Of more branches than there is room for, chance decides which are made.
    """

    def after_turn(self, done: Sequence[Node], room: int) -> list[Node]:
        """Decide for each state that has just got its first child, as long as there is room."""
        chosen: list[tuple[float, Node]] = []
        for node in done if room else ():
            first = node.lineage[0]
            if node.depth < 2 or not node.is_first_child or not node.log_probs or not first.log_probs:
                continue
            rank = self._decide(node, first)
            if rank is not None and node.parent is not None:
                chosen.append((rank, node.parent))
        chosen.sort(key=lambda one: one[0])
        return [parent for _, parent in chosen for _ in range((self.settings.width or 2) - 1)]

    def _decide(self, node: Node, first: Node) -> float | None:
        """Return a number that says how early a branch is served, None for no branch."""
        settings = self.settings
        signal = surprisal(node.log_probs, settings.tokens) - surprisal(first.log_probs, settings.tokens)
        p = branch_probability(signal, probability=settings.probability, weight=settings.weight)
        coin = self.draw(node.name).random()
        fires = coin < p if settings.decide == "coin" else p > settings.threshold
        self.signals.append(signal)
        self.decided += 1
        self.fired += fires
        return coin if fires else None


class _Rounds(Growth):
    """Branches in rounds over finished rollouts; what they leave is filled with rollouts from the prompt."""

    def __post_init__(self) -> None:
        """Read the settings."""
        self.rounds = self.settings.rounds

    def when_over(self, nodes: Sequence[Node], room: int) -> list[Node]:
        """Return the branches of the next round."""
        if not self.rounds or not room:
            return [nodes[0]] * room
        share, self.rounds = math.ceil(room / self.rounds), self.rounds - 1
        states = [node for node in nodes[1:] if node.state is not None]
        return self._round(states, share) or [nodes[0]] * room

    def _round(self, states: list[Node], share: int) -> list[Node]:
        raise NotImplementedError


class Uncertain(_Rounds):
    """AT2PO (arXiv 2601.04767): the turns that the policy was least certain of are generated again.

    The score of a turn is its surprisal minus ``sibling_penalty`` for each sibling that it has. Answers are never
    generated again: of a rollout without a tool call nothing branches.
    """

    def _round(self, states: list[Node], share: int) -> list[Node]:
        scored = [(self._score(node), node.name, node) for node in states if node.log_probs]
        scored.sort(key=lambda one: (-one[0], one[1]))
        self.signals += [surprisal(node.log_probs) for _, _, node in scored]
        self.decided += len(scored)
        self.fired += len(scored[:share])
        return [node.parent for _, _, node in scored[:share] if node.parent is not None]

    def _score(self, node: Node) -> float:
        siblings = node.parent.children - 1 if node.parent is not None else 0
        return surprisal(node.log_probs) - self.settings.sibling_penalty * siblings


class Random(_Rounds):
    """Tree-GRPO (arXiv 2509.21240): from random turns of each first turn's tree, the rest is generated again."""

    def _round(self, states: list[Node], share: int) -> list[Node]:
        trees: dict[str, list[Node]] = defaultdict(list)
        for node in states:
            trees[node.lineage[0].name].append(node)
        if not trees:
            return []
        self.decided += len(states)
        self.fired += share
        draw, names = self.draw(f"round {self.rounds}"), list(trees)
        return [draw.choice(trees[names[number % len(names)]]) for number in range(share)]


STRATEGIES: dict[str, type[Growth]] = {
    "none": Chains,
    "full": Full,
    "arpo": Surprise,
    "at2po": Uncertain,
    "random": Random,
}
"""``trainer.turn.branch.grow`` -> how a tree grows."""
NEED_LOG_PROBS = ("arpo", "at2po")
"""Those that look at the log-probs of what was generated."""


def initial_of(settings: BranchSettings, leaves: int) -> int:
    """Return how many rollouts begin at the prompt before any branch."""
    return max(1, leaves // 2) if settings.initial is None else settings.initial


def turns_of(settings: BranchSettings, max_turns: int) -> int:
    """Return at how many turns a full tree branches, from the first."""
    return settings.turns or max(1, (max_turns or 3) - 1)


def widths_of(settings: BranchSettings, leaves: int, max_turns: int) -> list[int]:
    """Return how many children the states of a full tree have, for each turn that branches.

    Args:
        settings: ``trainer.turn.branch``.
        leaves: Number of leaves, the product of the widths that are not set.
        max_turns: The limit of turns of a rollout; 0 if there is none.
    """
    turns = turns_of(settings, max_turns)
    if settings.width is not None:
        return [settings.width] * turns
    turns = min(turns, leaves + 1)  # more could not branch
    widths, rest, factor = [1] * turns, leaves, 2
    factors: list[int] = []
    while rest > 1:
        while rest % factor:
            factor += 1
        factors.append(factor)
        rest //= factor
    for factor in reversed(factors):
        widths[widths.index(min(widths))] *= factor
    return sorted(widths, reverse=True)


def check_growth(settings: BranchSettings, leaves: int, max_turns: int = 0) -> None:
    """Raise ``ConfigError`` if a tree cannot have that many leaves.

    Args:
        settings: ``trainer.turn.branch``.
        leaves: ``actor_rollout_ref.rollout.n``.
        max_turns: ``actor_rollout_ref.rollout.multi_turn.max_assistant_turns``; 0 if there is no limit.
    """
    if settings.grow == "full":
        turns, width = turns_of(settings, max_turns), settings.width
        if max_turns and turns > max_turns:
            raise ConfigError(
                f"{_BRANCH}.turns={settings.turns}, but a rollout has at most {max_turns} turns "
                "(actor_rollout_ref.rollout.multi_turn.max_assistant_turns)",
                fix=f"set {_BRANCH}.turns to {max(1, max_turns - 1)}, or to null: all turns but the last branch then",
            )
        most = width**turns if width is not None and turns * width.bit_length() <= _BITS else None
        if width is not None and most != leaves:
            counted = f" = {most}" if most is not None else ""
            raise ConfigError(
                f"{_BRANCH}.grow=full with width={width} at {turns} turns grows "
                f"{width}^{turns}{counted} leaves per prompt, but {_N}={leaves}",
                fix=(
                    f"set {f'{_N}={most}, or ' if most is not None else ''}a smaller width or fewer turns: leaves "
                    f"multiply with every turn that branches ({_BRANCH}.grow=arpo stays within any budget)"
                ),
            )
    elif settings.grow != "none" and initial_of(settings, leaves) > leaves:
        raise ConfigError(
            f"{_BRANCH}.initial={settings.initial} is more than {_N}={leaves}",
            fix=f"set it to less than {_N}; what is left of that are branches",
        )
