"""Stand where one of verl's objects stands, to look at one method of it."""

from __future__ import annotations

from typing import Any


class Proxy:
    """Answers for another object in everything that a subclass does not define itself.

    Args:
        original: The object that it stands for.
    """

    def __init__(self, original: Any) -> None:
        self._original = original

    def __getattr__(self, name: str) -> Any:
        # copy and pickle ask for __setstate__ and the like: those of the original would copy the original, and a
        # copy that holds nothing yet would look for its original without end.
        if name.startswith("__") or "_original" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self._original, name)
