"""Read the first of a user's own questions and calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_mtgrpo.errors import DataError

_READ = 256


def first_rows(named: str | Path | Sequence[Any] | None) -> list[dict[str, Any]]:
    """Return the first rows of the first parquet file that exists; none if there is no such file here."""
    import pyarrow.parquet as pq

    for path in files_here(named):
        batch = next(pq.ParquetFile(path).iter_batches(batch_size=_READ), None)
        return batch.to_pylist() if batch is not None else []
    return []


def files_here(named: str | Path | Sequence[Any] | None) -> list[Path]:
    """Return those of the named parquet files that exist here."""
    listed = [named] if isinstance(named, str | Path) else list(named or [])
    paths = (Path(str(one)).expanduser() for one in listed)
    return [path for path in paths if path.suffix == ".parquet" and path.is_file()]


def read_calls(path: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Return the arguments of good calls by the tool's name, one ``{"name": …, "arguments": {…}}`` per line.

    Raises:
        DataError: A line is something else.
    """
    calls: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path else [], 1):
        try:
            said = json.loads(line)
            name, arguments = said["name"], dict(said["arguments"])
        except (ValueError, KeyError, TypeError) as error:
            expected = '{"name": "tool", "arguments": {"argument": "value"}}'
            raise DataError(f"{path}, line {number} is {line[:80]!r}", expected=expected) from error
        calls.setdefault(str(name), []).append(arguments)
    return calls
