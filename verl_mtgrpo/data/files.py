"""Reading JSON, JSONL and parquet files as a stream of records, with errors that say where."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from verl_mtgrpo.errors import DataError

KNOWN = ".json, .jsonl or .parquet (the first two also as .gz)"


def read_records(path: Path | str) -> Iterator[tuple[str, Any]]:
    """Yield ``(where, value)`` for every record of a file.

    A JSONL file gives its lines, a parquet file its rows, a JSON file the elements of its list or, if
    it is no list, the whole document. ``where`` names the record for error messages. A ``.json`` file
    that holds one record a line is read as JSONL.

    Raises:
        DataError: The file is missing, empty, damaged or of an unknown kind.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not a file; give the path of a {KNOWN} file")
    kind = _kind(path)
    try:
        if kind == ".parquet":
            yield from _parquet_rows(path)
        elif kind == ".json":
            yield from _json_records(path)
        else:
            yield from _json_lines(path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file ({error}); fetch or write it again") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start} of a block); "
            "convert it, for example with: iconv -c -t UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def short_name(path: Path | str) -> str:
    """File name without folder and known suffixes: ``a/nq.jsonl.gz`` -> ``nq``."""
    name = Path(path).name
    for suffix in (".gz", ".jsonl", ".json", ".parquet"):
        name = name.removesuffix(suffix)
    return name


def describe(value: object) -> str:
    """What a record looks like, for error messages: its keys, or its type."""
    if isinstance(value, dict):
        keys = [str(key) for key in cast("dict[object, object]", value)]
        return f"the columns {', '.join(keys[:12])}{', ...' if len(keys) > 12 else ''}" if keys else "no columns"
    return f"a {type(value).__name__}"


def _kind(path: Path) -> str:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in (".json", ".jsonl") or (suffix == ".parquet" and path.suffix != ".gz"):
        return suffix
    raise DataError(f"{path} is of an unknown kind; expected a {KNOWN} file")


def _open(path: Path) -> IO[str]:
    # utf-8-sig: files saved on Windows may start with a byte-order mark.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _json_records(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        try:
            document = json.load(file)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise DataError(f"{path} is not valid JSON: {error}") from error
            document = None
    if document is None:
        yield from _json_lines(path)
    elif isinstance(document, list):
        for number, value in enumerate(cast("list[Any]", document), start=1):
            yield f"{path}, element {number}", value
    else:
        yield str(path), document


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{where} is not valid JSON: {error}; one record a line is expected") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a parquet file: {error}") from error
