"""Prepare the passages of an index: clean, count, hash, refuse duplicate ids."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from typing import TypeVar

from verl_mtgrpo.errors import DataError, RetrievalError
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.text import encodable

_T = TypeVar("_T")


class Checksum:
    """SHA-256 over ids, titles and texts in order: equal for equal content, whatever file it came from.

    The files themselves are not hashed: the same passages in another compression or layout give an
    index that answers the same.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, fields: tuple[str, str, str]) -> None:
        """Add the next passage's (id, title, text)."""
        for value in fields:
            raw = value.encode()
            self._digest.update(len(raw).to_bytes(8, "little") + raw)

    def hexdigest(self) -> str:
        """Return the checksum of what was added so far, as 64 hex digits."""
        return self._digest.hexdigest()


class Content:
    """Keeps track of the passages of a build as they stream by: their number, checksum and duplicate ids."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._checksum = Checksum()
        # 8 bytes per passage; a set of the ids themselves would not fit in memory for millions
        self._id_hashes: array[int] = array("Q")

    @property
    def count(self) -> int:
        """Number of passages so far."""
        return len(self._id_hashes)

    @property
    def checksum(self) -> str:
        """Checksum of the passages so far."""
        return self._checksum.hexdigest()

    def add(self, passage: Passage) -> tuple[str, str, str]:
        """Add the next passage; return its id, title and text as they will be stored."""
        fields = (
            clean_text(passage.id, "a passage's id"),
            clean_text(passage.title, "a passage's title"),
            clean_text(passage.text, "a passage's text"),
        )
        self._checksum.add(fields)
        self._id_hashes.append(int.from_bytes(hashlib.blake2b(fields[0].encode(), digest_size=8).digest(), "little"))
        return fields

    def refuse_if_empty(self) -> None:
        """Raise ``DataError`` if no passage was added."""
        if not self._id_hashes:
            raise DataError(
                f"the corpus is empty: {self._source} has no passages",
                fix="check that it is the right file",
            )

    def refuse_repeated_ids(self, id_at: Callable[[int], str]) -> None:
        """Raise ``DataError`` naming the first id that two passages share; ``id_at`` reads a stored one."""
        import numpy as np

        hashes = np.frombuffer(self._id_hashes, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        for at in np.flatnonzero(hashes[order][1:] == hashes[order][:-1]):
            first, second = int(order[at]), int(order[at + 1])
            name = id_at(first)
            if name == id_at(second):  # otherwise two different ids share a hash
                raise DataError(
                    f"two passages have the id {name!r} (passage {first + 1} and passage {second + 1} of "
                    f"{self._source})",
                    fix="ids must be unique: remove the duplicate, or give the passages different ids",
                )


def clean_text(text: object, what: str) -> str:
    """Return the text as UTF-8 can encode it; raise ``RetrievalError``naming ``what`` if it is not a string."""
    if not isinstance(text, str):
        raise RetrievalError(f"{what} is a {type(text).__name__} ({str(text)[:40]!r})", expected="a string")
    return encodable(text)
