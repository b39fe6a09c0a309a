"""Text that can leave this process."""

from __future__ import annotations


def encodable(text: str) -> str:
    """Return the text with ``?`` for each half surrogate pair: JSON can smuggle those in, UTF-8 cannot carry them."""
    return text.encode("utf-8", "replace").decode("utf-8")
