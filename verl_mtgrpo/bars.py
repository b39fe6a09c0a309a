"""Progress bars for long work on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

_T = TypeVar("_T")


def with_progress(
    items: Iterable[_T], progress: bool, *, label: str = "indexing", unit: str = "passages", total: int | None = None
) -> Iterable[_T]:
    """Return the same items, with a progress bar if ``progress``; ``total`` is their number, if known."""
    if not progress:
        return items
    from tqdm import tqdm

    return tqdm(items, desc=label, unit=f" {unit}", total=total, mininterval=0.5, disable=None)
