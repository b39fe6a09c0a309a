"""Note what a user should hear about a corpus while its passages stream by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from verl_mtgrpo.passages import Passage

LONG_CHARS = 100_000
"""A passage that is longer is warned of: no model reads one hit of that length, and the words of others drown in it."""
_MOST_NAMED = 20


class Notes:
    """What was noticed in a corpus: files that were left out, and passages that are much too long or empty."""

    def __init__(self) -> None:
        self.files: dict[Path, str] = {}
        """File that was left out -> the reason."""
        self.others: Counter[str] = Counter()
        """Files of other kinds, by suffix."""
        self.long = self.empty = 0
        self._longest = (0, "")

    def left_out(self, path: Path, reason: str) -> None:
        """Note a document that could not be read."""
        self.files[path] = reason

    def other_kind(self, path: Path) -> None:
        """Note a file that is no document."""
        self.others[path.suffix.lower() or "no suffix"] += 1

    def watching(self, passages: Iterable[Passage]) -> Iterator[Passage]:
        """Yield the passages, and note which of them are too long or empty."""
        for passage in passages:
            size = len(passage.text)
            self.long += size > LONG_CHARS
            self.empty += not passage.text.strip()
            self._longest = max(self._longest, (size, passage.id))
            yield passage

    def reasons(self) -> str:
        """Return every file that was left out with its reason, on one line."""
        return "; ".join(f"{path} {reason}" for path, reason in list(self.files.items())[:_MOST_NAMED])

    def lines(self) -> Iterator[str]:
        """Yield one warning per line."""
        if self.files:
            yield f"{len(self.files)} documents could not be read and are not in the index:"
            yield from (f"  {path} {reason}" for path, reason in list(self.files.items())[:_MOST_NAMED])
            if len(self.files) > _MOST_NAMED:
                yield f"  and {len(self.files) - _MOST_NAMED} more"
        if self.others:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.others.items()))
            yield f"{self.others.total()} files of other kinds were skipped: {kinds}"
        if self.long:
            size, name = self._longest
            yield (
                f"{self.long} passages have more than {LONG_CHARS:,} characters, the longest {size:,} (id {name!r}): a "
                "search returns whole passages, and the tool cuts them. Split them, or give the text as .txt or .md"
            )
        if self.empty:
            yield f"{self.empty} passages have no text"
