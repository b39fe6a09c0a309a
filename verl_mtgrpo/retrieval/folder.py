"""The base of all indexes on disk: opened on first use, shared by threads, pickled as a path."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from verl_mtgrpo.errors import IndexFormatError
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.retrieval.store import REBUILD, M, read_manifest
from verl_mtgrpo.threads import SEARCH, apart

E = TypeVar("E")


class IndexFolder(ABC, Generic[M, E]):
    """An index folder (see ``store``) and the engine that is opened on it.

    Threads may share one object. It pickles as its path: the copy opens the index at its first search,
    and raises if other content has been built there in the meantime.
    """

    _kind: type[M]

    def __init__(self, path: Path, manifest: M) -> None:
        self._path = path
        self._manifest: M = manifest
        self._opened: E | None = None
        self._opening = threading.Lock()

    @abstractmethod
    def _open_data(self, manifest: M) -> E:
        """Open the data folder that ``manifest`` names; raise ``FileNotFoundError`` if it is gone."""

    @abstractmethod
    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query in order, up to ``k`` passages, best first, with their scores."""

    @abstractmethod
    def passages(self) -> Iterator[Passage]:
        """Yield all passages in the order in which they were added."""

    @abstractmethod
    def finds_itself(self) -> bool:
        """Search for the content of a stored passage; return True if it, or an equally good one, ranks first."""

    @property
    def path(self) -> Path:
        """The index folder."""
        return self._path

    @property
    def manifest(self) -> M:
        """What the index contains: number of passages, source, checksum."""
        return self._manifest

    def __len__(self) -> int:
        return self._manifest.count

    async def asearch(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Search as :meth:`search` does, in a thread: the engine releases Python's lock while it searches."""
        return await apart(SEARCH, self.search, queries, k)

    def _engine(self) -> E:
        with self._opening:
            if self._opened is None:
                self._opened = self._load()
            return self._opened

    def _load(self) -> E:
        for _ in range(3):
            current = read_manifest(self._path, self._kind)
            if current.checksum != self._manifest.checksum:
                raise IndexFormatError(
                    f"the index at {self._path} was replaced by one with other passages since it was first opened",
                    fix="restart the program so that all its workers use the same one",
                )
            try:
                return self._open_data(current)
            except FileNotFoundError:
                continue  # replaced between reading the manifest and opening the data: look again
        raise IndexFormatError(
            f"the index at {self._path} is damaged: its data folder {self._manifest.data} is missing or incomplete",
            fix=REBUILD.format(path=self._path),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self._path, "manifest": self._manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        IndexFolder.__init__(self, state["path"], state["manifest"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._path)!r}, {len(self)} passages)"
