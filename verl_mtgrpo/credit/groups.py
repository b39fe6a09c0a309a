"""Statistics over the rollouts that belong together.

A **group** is the set of rollouts of one prompt (same ``uid``), or any other integer grouping. Every
statistic here is taken per group and per column (turn), over the entries that ``valid`` marks.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verl_mtgrpo.errors import CreditInputError


@dataclass(frozen=True)
class Groups:
    """Which group each row belongs to.

    Attributes:
        id_B: ``(B,)`` int64 in ``[0, size)``.
        size: Number of groups.
    """

    id_B: Tensor
    size: int

    def sum(self, values_BK: Tensor) -> Tensor:
        """Sum over the rows of each group, ``(groups, K)``."""
        out = values_BK.new_zeros((self.size, values_BK.shape[1]))
        return out.index_add_(0, self.id_B, values_BK)

    def minimum(self, values_BK: Tensor) -> Tensor:
        """Smallest entry of each group and column, ``(groups, K)``."""
        out = values_BK.new_full((self.size, values_BK.shape[1]), torch.inf)
        index = self.id_B[:, None].expand_as(values_BK)
        return out.scatter_reduce_(0, index, values_BK, reduce="amin")

    def to_rows(self, values_GK: Tensor) -> Tensor:
        """Hand each row its group's values, ``(B, K)``."""
        return values_GK[self.id_B]


def group_rows(index: Sequence[Hashable] | np.ndarray | Tensor, rows: int, device: torch.device) -> Groups:
    """Number the groups in order of first appearance.

    Args:
        index: One label per row (verl's ``uid``): strings, ints, numpy objects or an integer tensor.
        rows: How many labels are expected.
        device: Where the result lives.

    Raises:
        CreditInputError: ``index`` has another length.
    """
    labels = index.tolist() if isinstance(index, np.ndarray | Tensor) else list(index)
    if len(labels) != rows:
        raise CreditInputError(
            f"index holds {len(labels)} group labels for {rows} rollouts; expected one uid per rollout"
        )
    number: dict[Hashable, int] = {}
    ids = [number.setdefault(label, len(number)) for label in labels]
    return Groups(id_B=torch.tensor(ids, dtype=torch.int64, device=device), size=len(number))


def normalize_within_group(
    values_BK: Tensor, valid_BK: Tensor, groups: Groups, *, scale: str, epsilon: float
) -> Tensor:
    """norm(x) = (x - mean) / (std + epsilon) over the valid entries of a group, per column.

    std is the unbiased one (N-1). A set of one entry has mean 0 and std 1, as verl's ``grpo`` treats a
    group of one; equal entries give exactly 0. ``scale="none"`` only centres.

    Args:
        values_BK: ``(B, K)`` float32.
        valid_BK: ``(B, K)`` bool, True where the entry takes part.
        groups: The group of each row.
        scale: ``"std"`` or ``"none"``.
        epsilon: Added to std, outside the root.

    Returns:
        ``(B, K)`` float32, exactly 0 where not valid.
    """
    if scale not in ("std", "none"):
        raise CreditInputError(f"scale is {scale!r}, expected 'std' or 'none'")
    n_GK = groups.sum(valid_BK.to(values_BK.dtype))
    single_GK = n_GK == 1
    # Shifting by the group's minimum first makes equal entries cancel exactly and keeps a large common
    # offset from eating the digits of small differences.
    low_GK = groups.minimum(values_BK.masked_fill(~valid_BK, torch.inf))
    low_GK = low_GK.masked_fill(single_GK | (n_GK == 0), 0.0)
    shifted_BK = (values_BK - groups.to_rows(low_GK)).masked_fill(~valid_BK, 0.0)
    mean_GK = (groups.sum(shifted_BK) / n_GK.clamp(min=1)).masked_fill(single_GK, 0.0)
    centred_BK = (shifted_BK - groups.to_rows(mean_GK)).masked_fill(~valid_BK, 0.0)
    if scale == "none":
        return centred_BK
    variance_GK = groups.sum(centred_BK.square()) / (n_GK - 1).clamp(min=1)
    std_GK = variance_GK.sqrt().masked_fill(single_GK, 1.0)
    return centred_BK / (groups.to_rows(std_GK) + epsilon)
