"""A key-value cache for batched decoding: buffers that grow, rows that come and go.

Hugging Face's DynamicCache copies itself at every token (``torch.cat``); here a token is written in
place. All rows share one number of columns; a shorter row starts later (left padding, kept by the
caller as ``start``).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_GROWTH = 64  # columns added when a buffer is full, so that growing is rare


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, (rows, heads, columns, head size); ``used`` columns are valid."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor | None = None, values: torch.Tensor | None = None) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.used = 0 if keys is None else keys.shape[2]
        self.is_initialized = keys is not None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make empty buffers; Hugging Face calls this before the first token."""
        self.keys = key_states[:, :, :0]
        self.values = value_states[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns; return views of all valid columns."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.buffers
        end = self.used + key_states.shape[2]
        if end > keys.shape[2]:
            keys = self.keys = _grow(keys, self.used, end + _GROWTH)
            values = self.values = _grow(values, self.used, end + _GROWTH)
        keys[:, :, self.used : end] = key_states
        values[:, :, self.used : end] = value_states
        self.used = end
        return keys[:, :, :end], values[:, :, :end]

    @property
    def buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, with the columns that are not used yet."""
        assert self.keys is not None and self.values is not None  # somebody has called update
        return self.keys, self.values

    def part(self, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of some columns."""
        keys, values = self.buffers
        return keys[:, :, columns], values[:, :, columns]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the key length and offset that Hugging Face builds masks with."""
        return self.used + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of valid columns."""
        return self.used

    def get_max_cache_shape(self) -> int:
        """Return -1: the cache has no maximum length."""
        return -1


class BatchCache(Cache):
    """A Hugging Face cache whose rows can be selected and joined."""

    def __init__(self, layers: list[_Layer]) -> None:
        super().__init__(layers=[*layers])
        self._ours = layers

    @classmethod
    def empty(cls, layers: int) -> BatchCache:
        """Return a cache without rows."""
        return cls([_Layer() for _ in range(layers)])

    @property
    def columns(self) -> int:
        """Number of valid columns."""
        return self._ours[0].used

    def select(self, rows: torch.Tensor, *, first_column: int) -> BatchCache:
        """Return a copy with only these rows (int64 indices), without the columns before ``first_column``."""
        span = slice(first_column, self.columns)
        return BatchCache(
            [_Layer(*(buffer.index_select(0, rows) for buffer in layer.part(span))) for layer in self._ours]
        )

    @staticmethod
    def join(first: BatchCache, second: BatchCache) -> BatchCache:
        """Return the rows of the first, then of the second, both left-padded to the longer one."""
        columns = max(first.columns, second.columns)
        pairs = (
            zip(a.part(slice(a.used)), b.part(slice(b.used)), strict=True)
            for a, b in zip(first._ours, second._ours, strict=True)
        )
        return BatchCache([_Layer(*(_join(one, other, columns) for one, other in pair)) for pair in pairs])


def _grow(buffer: torch.Tensor, used: int, columns: int) -> torch.Tensor:
    rows, heads, _, size = buffer.shape
    grown = buffer.new_empty(rows, heads, columns, size)
    grown[:, :, :used] = buffer[:, :, :used]
    return grown


def _join(a: torch.Tensor, b: torch.Tensor, columns: int) -> torch.Tensor:
    # Zeros instead of uninitialised memory: padding is masked, but 0 * nan would still be nan.
    joined = a.new_zeros(a.shape[0] + b.shape[0], a.shape[1], columns, a.shape[3])
    joined[: a.shape[0], :, columns - a.shape[2] :] = a
    joined[a.shape[0] :, :, columns - b.shape[2] :] = b
    return joined
