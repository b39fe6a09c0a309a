"""Find the turns that rollouts of one prompt share: a forest of nodes, each of which is one turn, counted once.

Rollouts that branch off in the middle have the same tokens up to there, and verl trains on each of them as a row of its
own. ``node_path`` says which turns are the same: one id per turn, from the first to the last, separated by ``/``, such
as ``"0/0.2/0.2.0"``. Within a prompt, equal ids are one **node**: the same turn, written in the same state. Its
**children** are the turns that were sampled after it, nodes with one parent are **siblings**, and the first turns of a
prompt's rollouts are siblings too, because they were all written in the same state: the prompt. A **leaf** is the last
turn of a row. A row without a path is a chain of nodes of its own, so rollouts that share nothing are the special case
in which every node has one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from reprlib import Repr

import numpy as np
import torch
from torch import Tensor

from verl_mtgrpo.credit.batch import TurnBatch
from verl_mtgrpo.credit.checks import check_choice, refusal
from verl_mtgrpo.credit.groups import (
    Groups,
    divided,
    group_numbered,
    group_rows,
    minus_mean_of_others,
    normalize_within_group,
    std_within_group,
)
from verl_mtgrpo.errors import CreditInputError

_SHOWN = Repr()
_SHOWN.maxstring = _SHOWN.maxother = 200  # errors shorten paths: that of a deep tree has a megabyte

NodePath = Sequence[str | None] | np.ndarray
"""One path per row: ids of its turns, separated by ``/``; None or empty: the row shares no turn."""

WEIGHTS = ("policy", "rows", "once")
SHARES = ("soft", "hard", "once")
REDUCTIONS = ("mean", "max", "min", "softmax")
TOLERANCE = 1e-3
"""By this much, relative to their size or to 1, rows may differ in the reward of a turn that they share: a KL penalty
in the reward comes from log-probabilities, which a GPU computes a little differently in every row."""


@dataclass(frozen=True)
class Forest:
    """The distinct turns (nodes) of a batch, numbered from 0 in the order in which rows and turns first name them.

    Attributes:
        node_BK: ``(B, K)`` int64, the node of each turn; N, one past the last, where the row has no turn.
        row_N: ``(N,)`` int64, the first row through each node.
        turn_N: ``(N,)`` int64, the node's turn, from 0.
        parent_N: ``(N,)`` int64, the node of the turn before; -1 for first turns.
        children_N: ``(N,)`` int64, the number of the group in ``siblings`` that holds the node's children; -1 at
            leaves.
        cells: The turns of all rows, ``(B · K,)``, grouped by their node.
        siblings: The nodes grouped by the state in which they were written: those with the same parent, and the first
            turns of a prompt.
        level: The nodes grouped by prompt and turn.
        prompts: The rows grouped by prompt.
    """

    node_BK: Tensor
    row_N: Tensor
    turn_N: Tensor
    parent_N: Tensor
    children_N: Tensor
    cells: Groups
    siblings: Groups
    level: Groups
    prompts: Groups

    @property
    def size(self) -> int:
        """Return N, the number of nodes."""
        return len(self.row_N)

    @property
    def rows_N1(self) -> Tensor:
        """Return d, the number of rows through each node, ``(N, 1)`` int64."""
        return self.cells.length_G[: self.size, None]

    @property
    def siblings_N1(self) -> Tensor:
        """Return the number of nodes that were written in the same state, this one included, ``(N, 1)`` int64."""
        return self.siblings.to_rows(self.siblings.length_G[:, None])

    @property
    def once_BK(self) -> Tensor:
        """Return ``(B, K)`` bool, True at the first row through each node: every node is True in one place."""
        once = torch.zeros_like(self.node_BK, dtype=torch.bool)
        once[self.row_N, self.turn_N] = True
        return once

    def of_nodes(self, values_BK: Tensor) -> Tensor:
        """Return the value of each node, ``(N, 1)``, read in the first row through it."""
        return values_BK[self.row_N, self.turn_N][:, None]

    def to_rows(self, values_N1: Tensor) -> Tensor:
        """Give every turn of every row its node's value: ``(B, K)``, 0 (False) where there is no turn."""
        padded = torch.cat([values_N1[:, 0], values_N1.new_zeros(1)])
        return padded[self.node_BK]

    def mean_of_rows(self, values_BK: Tensor) -> Tensor:
        """Return the mean over the rows through each node, ``(N, 1)``; the value itself where there is one row."""
        return self.cells.sum(values_BK.reshape(-1, 1))[: self.size] / self.rows_N1

    def share(self, advantage_BK: Tensor, how: str) -> Tensor:
        """Credit turns that several rows share, ``(B, K)``.

        Args:
            advantage_BK: ``(B, K)``, the advantage of each row at each of its turns.
            how: ``"soft"``: each row keeps its own. ``"hard"``: every row gets the mean over the rows through the node.
                ``"once"``: that mean divided by the number of these rows, so that the node counts as one turn.
        """
        check_choice("how", how, SHARES)
        if how == "soft":
            return advantage_BK
        mean_N1 = self.mean_of_rows(advantage_BK)
        return self.to_rows(mean_N1 / self.rows_N1 if how == "once" else mean_N1)

    def weight(self, how: str) -> Tensor:
        """Return by how much to multiply a node's advantage in every row through it, ``(B, K)`` float32.

        ``"rows"``: 1, a node counts once per row through it. ``"once"``: 1/d. ``"policy"``: a node counts as often as
        the policy would get there. The children of a state share its weight equally, so with M rows of the prompt and
        s(n) siblings, n included::

            weight of n in each of its d rows = M / (d · Π s(m))      over n and the nodes before it

        It is 1 in a tree with the same number of children at each level, and on chains. Elsewhere it makes up for
        rollouts that stop early and so branch less: of two first turns, one that ends the rollout is one row and one
        that branches three times is three, although the policy takes each as often.
        """
        check_choice("how", how, WEIGHTS)
        if how == "rows":
            return self.to_rows(torch.ones_like(self.rows_N1, dtype=torch.float32))
        rows_N1 = self.rows_N1.double()
        if how == "once":
            return self.to_rows((1 / rows_N1).float())
        siblings_BK = self.to_rows(self.siblings_N1).clamp(min=1).double()  # 1 behind the end of a row
        shares_N1 = self.of_nodes(siblings_BK.cumprod(dim=1))
        leaves_B1 = self.prompts.to_rows(self.prompts.sum((self.node_BK < self.size)[:, :1].double()))
        leaves_N1 = self.of_nodes(leaves_B1.expand(self.node_BK.shape))
        return self.to_rows((leaves_N1 / (shares_N1 * rows_N1)).float())

    def value(
        self, own_N1: Tensor, how: str = "mean", *, discount: float = 1.0, scores_N1: Tensor | None = None
    ) -> Tensor:
        """Return V(n) = own(n) + γ · (V of the children of n, reduced to one number), ``(N, 1)``.

        Args:
            own_N1: ``(N, 1)``, what the node itself is worth: rewards of turns, or the outcome at leaves and 0 before.
            how: ``"mean"``, ``"max"`` or ``"min"`` over the children, or ``"softmax"``: their mean with weights
                softmax(scores).
            discount: γ, per turn.
            scores_N1: ``(N, 1)``, for ``"softmax"``.
        """
        own_N1, dtype = own_N1.double(), own_N1.dtype  # equal sums, added up in other orders, are the same in the end
        value_N1 = own_N1
        inner_N1, family_N = self.children_N[:, None] >= 0, self.children_N.clamp(min=0)
        for turn in range(self.node_BK.shape[1] - 2, -1, -1):  # the last turns have no children
            later_N1 = self.over_siblings(value_N1, how, scores_N1)[family_N]
            value_N1 = (own_N1 + discount * later_N1).where(inner_N1 & (self.turn_N[:, None] == turn), value_N1)
        return value_N1.to(dtype)

    def over_siblings(self, value_N1: Tensor, how: str = "mean", scores_N1: Tensor | None = None) -> Tensor:
        """Reduce the values of siblings to one number per state, ``(states, 1)``; arguments as in :meth:`value`."""
        check_choice("how", how, REDUCTIONS)
        groups = self.siblings
        if how == "max":
            return -groups.minimum(-value_N1)
        if how == "min":
            return groups.minimum(value_N1)
        if how == "mean":
            return groups.sum(value_N1) / groups.length_G[:, None]
        if scores_N1 is None:
            raise refusal("scores_N1", "softmax got no scores", expected="one score per node")
        highest_N1 = groups.to_rows(-groups.minimum(-scores_N1))
        weight_N1 = (scores_N1 - highest_N1).exp()
        return groups.sum(weight_N1 * value_N1) / groups.sum(weight_N1)

    def norm(self, values_N1: Tensor, valid_N1: Tensor, *, scale: str, epsilon: float) -> Tensor:
        """Normalise over the siblings of each node, ``(N, 1)``: :func:`~.groups.normalize_within_group`.

        A node that is the only valid one in its state is compared with the nodes of the same turn of its prompt, as
        ``mt_grpo`` compares rollouts: those are other states, but the best there is.
        """
        among, elsewhere = (
            normalize_within_group(values_N1, valid_N1, groups, scale=scale, epsilon=epsilon)
            for groups in (self.siblings, self.level)
        )
        several_S1 = self.siblings.sum(valid_N1.float()) > 1
        return among.where(self.siblings.to_rows(several_S1), elsewhere)

    def minus_others(self, values_N1: Tensor) -> tuple[Tensor, Tensor]:
        """Return x minus the mean of x over the other siblings, and where there was no other node, both ``(N, 1)``.

        A node without siblings is compared with the other nodes of its turn and prompt; without those it keeps x.
        """
        every_N1 = torch.ones_like(values_N1, dtype=torch.bool)
        among_N1, alone_N1 = minus_mean_of_others(values_N1, every_N1, self.siblings)
        elsewhere_N1, nobody_N1 = minus_mean_of_others(values_N1, every_N1, self.level)
        return elsewhere_N1.where(alone_N1, among_N1), nobody_N1

    def divided_by_std(self, centred_N1: Tensor, values_N1: Tensor, epsilon: float) -> Tensor:
        """Divide by the standard deviation of the nodes that :meth:`minus_others` compares, plus epsilon."""
        every_N1 = torch.ones_like(values_N1, dtype=torch.bool)
        among_N1, elsewhere_N1 = (
            std_within_group(values_N1, every_N1, groups) for groups in (self.siblings, self.level)
        )
        return divided(centred_N1, among_N1.where(self.siblings_N1 > 1, elsewhere_N1) + epsilon)


def read_forest(batch: TurnBatch, node_path: NodePath) -> Forest:
    """Build the forest of a batch, and check that rows agree about what they share.

    Args:
        batch: Turns, groups and rewards.
        node_path: One path per row. That of a row without a generated token is not read.

    Raises:
        CreditInputError: a path has another number of ids than the row has turns; an id is at two turns or behind two
            different turns; a row ends with a turn that another row has too; or rows differ in the place, the length
            or the reward of a turn that they share.
    """
    groups, turns = batch.groups, batch.turns
    if len(node_path) != len(turns.count_B):
        raise refusal(
            "node_path", f"node_path holds {len(node_path)} paths for {len(turns.count_B)} rows", expected="one per row"
        )
    device = turns.count_B.device
    prompt_B = groups.id_B.cpu().numpy()
    node_BK, row_N, turn_N = _number_nodes(node_path, turns.count_B.tolist(), prompt_B, turns.max_turns)
    parent_BK = np.pad(node_BK, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    parent_N = parent_BK[row_N, turn_N]
    _check_shape(node_BK, parent_BK, turn_N, parent_N, node_path)
    size = len(row_N)
    state_N = np.unique(np.where(parent_N >= 0, parent_N, size + prompt_B[row_N]), return_inverse=True)[1].reshape(-1)
    children_N = np.full(size, -1)
    children_N[parent_N[parent_N >= 0]] = state_N[parent_N >= 0]  # the same for all children of a node
    level_N = prompt_B[row_N] * max(turns.max_turns, 1) + turn_N
    forest = Forest(
        *(torch.from_numpy(array).to(device) for array in (node_BK, row_N, turn_N, parent_N, children_N)),
        cells=group_numbered(node_BK.reshape(-1), device),
        siblings=group_numbered(state_N, device),
        level=group_rows(level_N, size, device),
        prompts=groups,
    )
    _check_turns(forest, batch, node_path)
    return forest


def _number_nodes(
    node_path: NodePath, count_B: list[int], prompt_B: np.ndarray, turns: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ``node_BK`` of :class:`Forest`, and the row and turn in which each node occurs first."""
    number: dict[tuple[int, str], int] = {}
    nodes: list[int] = []
    size = 0
    for row, (path, turns_of_row, prompt) in enumerate(zip(node_path, count_B, prompt_B.tolist(), strict=True)):
        if not path or not turns_of_row:
            nodes += range(size, size + turns_of_row)
            size += turns_of_row
            continue
        ids = str(path).split("/")
        if len(ids) != turns_of_row:
            raise refusal(
                "node_path",
                f"row {row} has {turns_of_row} turns (runs of 1 in response_mask), but its node_path is "
                f"{_SHOWN.repr(path)}",
                expected="one id per turn, separated by '/'",
            )
        for one in ids:
            node = number.setdefault((prompt, one), size)
            size += node == size
            nodes.append(node)
    node_R = np.asarray(nodes, dtype=np.int64)
    alive_BK = np.arange(turns) < np.asarray(count_B, dtype=np.int64).reshape(-1, 1)
    row_R, turn_R = np.nonzero(alive_BK)
    node_BK = np.full(alive_BK.shape, size)
    node_BK[row_R, turn_R] = node_R
    first_N = np.flatnonzero(np.diff(np.maximum.accumulate(node_R), prepend=-1)) if size else row_R
    return node_BK, row_R[first_N], turn_R[first_N]


def _check_shape(
    node_BK: np.ndarray, parent_BK: np.ndarray, turn_N: np.ndarray, parent_N: np.ndarray, node_path: NodePath
) -> None:
    """Refuse ids that are not nodes of a tree, and rows that end inside it."""
    row_R, turn_R = np.nonzero(node_BK < len(turn_N))
    node_R = node_BK[row_R, turn_R]
    wrong = (turn_N[node_R] != turn_R) | (parent_N[node_R] != parent_BK[row_R, turn_R])
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        first = int(np.flatnonzero((node_BK == node_R[at]).any(axis=1))[0])
        raise _refusal(
            node_path,
            (first, int(row_R[at])),
            f"name the same turn ({_SHOWN.repr(node_path[row_R[at]].split('/')[turn_R[at]])}) at different places",  # type: ignore[union-attr]
            "rows that share a turn share all turns before it, and no row has a turn twice",
        )
    last_R = np.append(row_R[1:] != row_R[:-1], True)[: len(row_R)]  # the row ends here
    shared = last_R & (np.bincount(node_R, minlength=len(turn_N) + 1)[node_R] > 1)
    if shared.any():
        at = int(np.flatnonzero(shared)[0])
        other = next(r for r in np.flatnonzero((node_BK == node_R[at]).any(axis=1)).tolist() if r != row_R[at])
        raise _refusal(
            node_path,
            (int(row_R[at]), other),
            "share the last turn of the first one",
            "every row ends with a turn of its own, which no other row has",
        )


def _check_turns(forest: Forest, batch: TurnBatch, node_path: NodePath) -> None:
    """Refuse rows that differ in the place, the length or the reward of a turn that they share."""
    named = {
        "first token": batch.turns.first_BK,
        "number of tokens": batch.turns.tokens_BK,
        "reward": batch.reward_BK,
    }
    differs: dict[str, Tensor] = {}
    for what, values_BK in named.items():
        first_BK = forest.to_rows(forest.of_nodes(values_BK))
        allowed_BK = TOLERANCE * first_BK.abs().clamp(min=1) if what == "reward" else 0
        differs[what] = (values_BK - first_BK).abs() > allowed_BK
    if not torch.stack([one.any() for one in differs.values()]).any():  # one trip to the host
        return
    what, differs_BK = next((what, one) for what, one in differs.items() if one.any())
    row, turn = differs_BK.nonzero()[0].tolist()
    first = int(forest.row_N[forest.node_BK[row, turn]])
    one, other = (f"{named[what][r, turn].item():g}" for r in (first, row))
    raise _refusal(
        node_path,
        (first, row),
        f"share turn {turn + 1}, but its {what} is {one} in the first and {other} in the second",
        "the same tokens and the same reward wherever a turn is shared",
    )


def _refusal(node_path: NodePath, rows: tuple[int, int], what: str, expected: str) -> CreditInputError:
    first, second = rows
    which = f"rows {first} and {second}" if first != second else f"row {first}"
    return refusal(
        "node_path",
        f"{which} ({_SHOWN.repr(node_path[first])}, {_SHOWN.repr(node_path[second])}) {what}",
        expected=expected,
        fix="the agent loop has to give a new id to every turn that it samples, and the same id to every copy of it",
    )
