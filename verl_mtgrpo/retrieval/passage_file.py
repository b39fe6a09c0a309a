"""Passages on disk, memory-mapped and looked up by number (an Arrow file)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

_ROWS = 1024
"""Passages of a batch; all batches but the last have this many, so a number tells where its passage is."""

Fields = tuple[str, str, str]
"""(id, title, text)"""


class PassageWriter:
    """Writes passages one after the other; use as a context manager."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        # large_string: 1024 long texts may exceed the 2 GB of a plain string column.
        self._schema = pa.schema([(name, pa.large_string()) for name in ("id", "title", "text")])
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, self._schema)
        self._rows: list[Fields] = []

    def add(self, fields: Fields) -> None:
        """Append one passage."""
        self._rows.append(fields)
        if len(self._rows) == _ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            columns = [pa.array(column, pa.large_string()) for column in zip(*self._rows, strict=True)]
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
            self._rows.clear()

    def __enter__(self) -> PassageWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
        self._writer.close()
        self._file.close()


class PassageFile:
    """Reads a file that :class:`PassageWriter` wrote. Processes share its pages; threads may share the object."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._reader: Any = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        batches = self._reader.num_record_batches
        self._count = (batches - 1) * _ROWS + self._reader.get_batch(batches - 1).num_rows if batches else 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Fields:
        batch = self._reader.get_batch(number // _ROWS)
        id, title, text = (column[number % _ROWS].as_py() for column in batch.columns)
        return id, title, text

    def __iter__(self) -> Iterator[Fields]:
        for at in range(self._reader.num_record_batches):
            columns = self._reader.get_batch(at).to_pydict()
            yield from zip(columns["id"], columns["title"], columns["text"], strict=True)
