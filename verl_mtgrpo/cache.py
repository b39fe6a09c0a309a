"""What was worked out before, on disk, by what was asked: scores of a judge, answers of a search service."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.threads import CACHE, apart

logger = logging.getLogger(__name__)


class JsonCache:
    """JSON values by key in one SQLite file, which the processes of one machine may share.

    A value that cannot be read back counts as missing. Not for network file systems (SQLite's locks).

    Raises:
        ConfigError: the file cannot be opened, or is no SQLite database.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path = Path(path)
        self._complained = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"the cache {path} cannot be used: {error}", fix="choose another path, or none"
            ) from error

    @staticmethod
    def key(*asked: Any) -> str:
        """Return a key for the request: equal for equal JSON."""
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def get(self, key: str) -> Any | None:
        """Return the value kept for ``key``, or None."""
        row = self._db.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
        try:
            return None if row is None else json.loads(row[0])
        except ValueError:
            return None

    async def aget(self, key: str) -> Any | None:
        """Do :meth:`get` in a thread: SQLite waits up to 30 s while another process is writing."""
        return await apart(CACHE, self.get, key)

    async def aput(self, key: str, value: Any) -> None:
        """Do :meth:`put` in a thread."""
        await apart(CACHE, self.put, key, value)

    def put(self, key: str, value: Any) -> None:
        """Store a value; a later one replaces it. One that cannot be written (full disk) is requested again."""
        try:
            self._db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (key, json.dumps(value)))
        except sqlite3.Error as error:
            if not self._complained:
                logger.warning("the cache %s can no longer be written: %s; nothing more is cached", self._path, error)
            self._complained = True
