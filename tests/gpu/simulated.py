"""Simulate a device: tensors that claim not to be on the host are computed there, and every transfer is counted.

Estimators have one form for the host and one for a device. ``device()`` runs the second without a GPU: a tensor on it
is a wrapper of device type "meta" around an ordinary tensor, so ``is_cpu`` is False, ``.numpy()`` fails, and everything
that would make the host wait for a GPU passes through one place, which writes it down. What counts is what torch
reports with ``torch.cuda.set_sync_debug_mode("warn")``: reading from the device, results whose size is data, and
copying to the device, also of a Python number, unless ``non_blocking`` (pytorch/pytorch#120996). What this device
cannot say: whether CUDA has a kernel for an operation, what that rounds to, and how fast it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")

# The size of what they return is data, so CUDA's versions wait for it. nonzero_static is told the size.
_SIZE_IS_DATA = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")


class _Tensor(torch.Tensor):
    """A tensor that claims to be on ``DEVICE``; ``inner`` has its data."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> _Tensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:  # torch refuses it for subclasses
        return self.cpu().tolist()

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"on the simulated device: {self.inner!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of the simulated device is used outside of `with device()`")


class _Device(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.trips: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flat = torch.utils._pytree.arg_tree_leaves(*args, **kwargs)
        here = any(isinstance(leaf, _Tensor) for leaf in flat)
        target = kwargs.get("device")
        to_device = target is not None and torch.device(target) == DEVICE
        if not here and not to_device:
            return func(*args, **kwargs)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        name = func._schema.name.removeprefix("aten::")
        leaves = target is not None and not to_device
        enters = to_device and not here and any(isinstance(leaf, torch.Tensor) for leaf in flat)
        self._count(name, flat, kwargs, leaves=leaves, enters=enters)
        kwargs.pop("non_blocking", None)
        result = func(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
        if func._schema.is_mutable and not func._schema.name.endswith("out") and args and name.endswith("_"):
            return args[0]
        if "out" in kwargs:
            return kwargs["out"]
        return result if leaves else tree_map(_wrap, result)

    def _count(self, name: str, flat: list[Any], kwargs: dict[str, Any], *, leaves: bool, enters: bool) -> None:
        """Record an operation that makes the host wait for the device."""
        masks = [leaf for leaf in flat if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool]
        if name == "_local_scalar_dense" or leaves:
            self.trips.append(f"{name}: from the device")
        elif (enters or (name == "copy_" and _mixed(flat))) and not kwargs.get("non_blocking"):
            self.trips.append(f"{name}: to the device, waiting for it")
        elif name in _SIZE_IS_DATA or (name in ("index", "index_put_") and any(mask is not flat[0] for mask in masks)):
            self.trips.append(f"{name}: the size of its result")
        elif name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.trips.append("repeat_interleave: the size of its result")


class _FromData(TorchFunctionMode):
    """Create tensors of Python numbers on the host and move them, as for CUDA; torch hides that from dispatch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.new_tensor and isinstance(args[0], _Tensor):
            kwargs = {"dtype": args[0].dtype, "device": DEVICE, **kwargs}
            func, args = torch.tensor, args[1:]
        target = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and target is not None and torch.device(target) == DEVICE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


def _mixed(flat: list[Any]) -> bool:
    """Return True if tensors of both sides meet, except 0-dimensional ones, which travel as arguments."""
    tensors = [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]
    return any(isinstance(t, _Tensor) for t in tensors) and any(not isinstance(t, _Tensor) for t in tensors)


def _unwrap(value: Any) -> Any:
    return value.inner if isinstance(value, _Tensor) else value


def _wrap(value: Any) -> Any:
    return _Tensor(value) if isinstance(value, torch.Tensor) and not isinstance(value, _Tensor) else value


@contextlib.contextmanager
def device() -> Iterator[list[str]]:
    """Give ``torch.device("meta")`` a separate memory inside the block; yield the transfers, in order."""
    mode = _Device()
    with torch.no_grad(), mode, _FromData():
        yield mode.trips
