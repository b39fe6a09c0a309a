"""Take statistics over the rollouts that belong together.

A **group** is the set of rollouts of one prompt, or any other rollouts with the same label. Every statistic
here is taken per group and per column (turn), over the entries that ``valid`` marks.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verl_mtgrpo.credit.checks import check_choice
from verl_mtgrpo.errors import CreditInputError

SCALES = ("std", "none")

ROUNDING = 1e-5
"""Below this a number has no sign: a difference from a group's mean as a share of the group's range, and an advantage
as it is. A value in the middle of its group, and terms that cancel, leave this much through rounding and epsilons."""


@dataclass(frozen=True)
class Groups:
    """The groups of a batch, and the rows of each.

    Attributes:
        id_B: ``(B,)`` int64 in ``[0, size)``.
        order_B: ``(B,)`` int64. The rows, sorted so that those of a group are together.
        length_G: ``(groups,)`` int64. The number of rows of each group.
    """

    id_B: Tensor
    order_B: Tensor
    length_G: Tensor

    @property
    def size(self) -> int:
        """Return the number of groups."""
        return len(self.length_G)

    def sum(self, values_BK: Tensor) -> Tensor:
        """Sum over the rows of each group, ``(groups, K)``."""
        return self._reduce("sum", values_BK)

    def minimum(self, values_BK: Tensor) -> Tensor:
        """Return the smallest entry of each group and column, ``(groups, K)``."""
        return self._reduce("min", values_BK)

    def to_rows(self, values_GK: Tensor) -> Tensor:
        """Hand each row its group's values, ``(B, K)``."""
        return values_GK[self.id_B]

    def of_turns(self, turns: int) -> Groups:
        """Return the groups of ``(B, turns)`` values flattened to ``(B · turns, 1)``: all turns of a group together."""
        within = torch.arange(turns, device=self.id_B.device)
        return Groups(
            self.id_B.repeat_interleave(turns),
            (self.order_B[:, None] * turns + within).reshape(-1),
            self.length_G * turns,
        )

    def _reduce(self, how: str, values_BK: Tensor) -> Tensor:
        if not values_BK.numel():
            return values_BK.new_zeros((self.size, values_BK.shape[1]))
        # In a fixed order, so that results are reproducible; on a GPU those of index_add_ are not.
        return torch.segment_reduce(values_BK[self.order_B], how, lengths=self.length_G, axis=0, unsafe=True)


def group_rows(index: Sequence[Hashable] | np.ndarray | Tensor, rows: int, device: torch.device) -> Groups:
    """Give each group a number.

    Args:
        index: One label per row (verl's ``uid``): strings, ints, numpy objects or an integer tensor. A tensor on a
            GPU costs one more synchronisation; labels on the host cost none.
        rows: The number of labels that is expected.
        device: Where to put the result.

    Raises:
        CreditInputError: ``index`` has a different length.
    """
    if len(index) != rows:
        raise CreditInputError(
            f"index holds {len(index)} group labels for {rows} rollouts",
            expected="one label per rollout",
        )
    return group_numbered(_number(index), device)


def group_numbered(ids: np.ndarray, device: torch.device) -> Groups:
    """Return the groups of labels that are the integers from 0 already, ``(B,)``; each of them occurs."""
    lengths = np.bincount(ids) if len(ids) else ids
    order = np.argsort(ids, kind="stable")
    # non_blocking: a plain copy to a GPU waits for all its earlier work.
    id_B, order_B, length_G = (
        torch.from_numpy(x.astype(np.int64)).to(device, non_blocking=True) for x in (ids, order, lengths)
    )
    return Groups(id_B, order_B, length_G)


def _number(index: Sequence[Hashable] | np.ndarray | Tensor) -> np.ndarray:
    """Return the labels as integers from 0, ``(rows,)``, on the host."""
    if isinstance(index, Tensor):
        index = index.cpu().numpy()
    if isinstance(index, np.ndarray) and index.dtype.kind in "iu":
        return np.unique(index.reshape(-1), return_inverse=True)[1]
    # A dictionary takes labels of any kind, even mixed; np.unique cannot, because it sorts them.
    labels = index.tolist() if isinstance(index, np.ndarray) else index
    number: dict[Hashable, int] = {}
    return np.fromiter((number.setdefault(label, len(number)) for label in labels), np.int64, len(labels))


def normalize_within_group(
    values_BK: Tensor, valid_BK: Tensor, groups: Groups, *, scale: str, epsilon: float
) -> Tensor:
    """Compute norm(x) = (x - mean) / (std + epsilon) over the valid entries of a group, per column.

    std is the unbiased one (N-1). A single entry has mean 0 and std 1, as verl's ``grpo`` treats a group of
    one; equal entries give exactly 0. ``scale="none"`` only centres.

    Args:
        values_BK: ``(B, K)`` float32.
        valid_BK: ``(B, K)`` bool, True at entries that take part.
        groups: The group of each row.
        scale: ``"std"`` or ``"none"``.
        epsilon: Added to std, outside the square root.

    Returns:
        ``(B, K)`` float32, exactly 0 where not valid.
    """
    check_choice("scale", scale, SCALES)
    shifted_BK, n_GK = _shift(values_BK, valid_BK, groups)
    mean_GK = (groups.sum(shifted_BK) / n_GK.clamp(min=1)).masked_fill(n_GK == 1, 0.0)
    centred_BK = (shifted_BK - groups.to_rows(mean_GK)).masked_fill(~valid_BK, 0.0)
    if scale == "none":
        return centred_BK
    return divided(centred_BK, groups.to_rows(_std(centred_BK, n_GK, groups)) + epsilon)


def divided(centred: Tensor, by: Tensor) -> Tensor:
    """Return ``centred / by``, exactly 0 where ``centred`` is 0, even for 0 / 0 (equal entries without an epsilon)."""
    return (centred / by).masked_fill_(centred == 0, 0.0)


def std_within_group(values_BK: Tensor, valid_BK: Tensor, groups: Groups) -> Tensor:
    """Return std_{N-1} of the valid entries of each row's group, per column, ``(B, K)``; 1 for a single entry."""
    centred_BK = normalize_within_group(values_BK, valid_BK, groups, scale="none", epsilon=0.0)
    return groups.to_rows(_std(centred_BK, groups.sum(valid_BK.to(values_BK.dtype)), groups))


def minus_mean_of_others(values_BK: Tensor, valid_BK: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """Compute x_i minus the mean of x_j over the other valid entries j ≠ i of the group, per column (leave-one-out).

    Returns:
        ``(result_BK, alone_BK)``: float32, exactly 0 where not valid, and x_i itself where there is no
        other entry; ``alone_BK`` is True there. Equal entries give exactly 0.
    """
    shifted_BK, n_GK = _shift(values_BK, valid_BK, groups)
    n_BK, sum_BK = groups.to_rows(n_GK), groups.to_rows(groups.sum(shifted_BK))
    others_BK = (sum_BK - shifted_BK) / (n_BK - 1).clamp(min=1)
    alone_BK = valid_BK & (n_BK == 1)
    return (shifted_BK - others_BK.masked_fill(alone_BK, 0.0)).masked_fill(~valid_BK, 0.0), alone_BK


def mean_of_others(values_B1: Tensor, valid_B1: Tensor, groups: Groups) -> Tensor:
    """Return the mean of x_j over the other valid rows j ≠ i of the group, ``(B, 1)``; 0 where there are none."""
    result_B1, alone_B1 = minus_mean_of_others(values_B1, valid_B1, groups)
    return (values_B1 - result_B1).masked_fill(alone_B1 | ~valid_B1, 0.0)


def _shift(values_BK: Tensor, valid_BK: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """Subtract the smallest valid entry of each group and column, unless it is the only one; 0 where not valid.

    Equal entries then cancel exactly, and a large common offset does not cost small differences their digits.

    Returns:
        The shifted values ``(B, K)``, and the number of valid entries ``(groups, K)``.
    """
    n_GK = groups.sum(valid_BK.to(values_BK.dtype))
    low_GK = groups.minimum(values_BK.masked_fill(~valid_BK, torch.inf)).masked_fill(n_GK <= 1, 0.0)
    return (values_BK - groups.to_rows(low_GK)).masked_fill(~valid_BK, 0.0), n_GK


def _std(centred_BK: Tensor, n_GK: Tensor, groups: Groups) -> Tensor:
    variance_GK = groups.sum(centred_BK.square()) / (n_GK - 1).clamp(min=1)
    return variance_GK.sqrt().masked_fill(n_GK == 1, 1.0)
