"""Find the runs of equal values in a mask, sum over each, and give each a value. One pass over the batch.

The mask is read row after row as one sequence, ``(B·T,)``; a run never extends beyond its row. Each primitive
has two forms with the same result: one in numpy for the host, where it is several times faster than torch
and reading a number costs nothing, and one in torch for a device. Both add in a fixed order, so that the
same input always gives the same bits; ``scatter_add_`` and ``index_add_`` of floats on a GPU do not.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def find_runs(response_mask: Tensor, *scalars: Tensor) -> tuple[Tensor, int | None, bool, list[int]]:
    """Find the runs of a ``(B, T)`` mask, neither axis empty, with one host synchronisation.

    Args:
        response_mask: ``(B, T)`` of any dtype.
        scalars: Integer scalar tensors to fetch in the same synchronisation.

    Returns:
        ``start_R`` int64, the first position of each run; K, the largest number of nonzero runs in a row, or
        None on a host, where it is cheaper to count them later; True if the mask holds something other
        than 0 and 1; the values of the scalars.
    """
    if response_mask.is_cpu:
        return _find_on_host(response_mask, *scalars)
    return _find_on_device(response_mask, *scalars)


def sum_runs(values: Tensor, start_R: Tensor) -> Tensor:
    """Sum ``(B, T)`` float32 values over each run, ``(R,)``."""
    flat = values.detach().reshape(-1)
    if flat.is_cpu:
        return torch.from_numpy(np.add.reduceat(flat.numpy(), start_R.numpy()))
    return torch.segment_reduce(flat, "sum", lengths=run_lengths(start_R, flat.numel()), unsafe=True)


def repeat_runs(values_R: Tensor, start_R: Tensor, shape: tuple[int, int]) -> Tensor:
    """Give every position its run's value, ``shape`` = (B, T)."""
    size = shape[0] * shape[1]
    lengths = run_lengths(start_R, size)
    if values_R.is_cpu:
        return torch.from_numpy(np.repeat(values_R.numpy(), lengths.numpy())).view(shape)
    return torch.repeat_interleave(values_R, lengths, output_size=size).view(shape)


def run_lengths(start_R: Tensor, size: int) -> Tensor:
    """Return the length of each run, ``(R,)`` int64; they add up to ``size``."""
    # new_full fills on the device; new_tensor would copy from the host and wait for all earlier work of a GPU.
    return torch.diff(start_R, append=start_R.new_full((1,), size))


def _find_on_host(response_mask: Tensor, *scalars: Tensor) -> tuple[Tensor, None, bool, list[int]]:
    mask, begins = _runs_begin(response_mask)
    start_R = torch.from_numpy(np.flatnonzero(begins.numpy()))
    return start_R, None, bool(_not_zero_or_one(response_mask, mask)), [int(scalar) for scalar in scalars]


def _find_on_device(response_mask: Tensor, *scalars: Tensor) -> tuple[Tensor, int, bool, list[int]]:
    mask, begins = _runs_begin(response_mask)
    most = (begins & mask).sum(dim=1).max()
    found = (torch.count_nonzero(begins), most, _not_zero_or_one(response_mask, mask), *scalars)
    runs, most, bad, *fetched = torch.stack([number.long() for number in found]).tolist()
    return torch.nonzero_static(begins.view(-1), size=runs).view(-1), most, bool(bad), fetched


def _runs_begin(response_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mask as bool, and True at the first token of each run, both contiguous ``(B, T)``."""
    mask = (response_mask != 0).contiguous()
    begins = torch.ones_like(mask)
    torch.ne(mask[:, 1:], mask[:, :-1], out=begins[:, 1:])
    return mask, begins


def _not_zero_or_one(response_mask: Tensor, mask: Tensor) -> Tensor:
    """Return a scalar, not 0 if the mask holds something other than 0 and 1."""
    if response_mask.dtype == torch.bool:
        return torch.zeros((), dtype=torch.bool, device=mask.device)
    if response_mask.dtype.is_floating_point:
        return (response_mask != mask).any()
    low, high = response_mask.aminmax()  # of integers, one pass
    return (low < 0) | (high > 1)
