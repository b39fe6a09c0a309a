"""Wrap one of verl's objects in order to change or observe one of its methods."""

from __future__ import annotations

from typing import Any


class Proxy:
    """Passes every attribute that a subclass does not define on to another object.

    Args:
        original: The other object.
    """

    def __init__(self, original: Any) -> None:
        self._original = original

    def __getattr__(self, name: str) -> Any:
        # copy and pickle ask for __setstate__ and the like. With those of the original they would copy the original,
        # and a copy that has no _original yet would look for it in an endless recursion.
        if name.startswith("__") or "_original" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self._original, name)
