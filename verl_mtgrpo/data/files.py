"""Read JSON, JSONL, CSV, TSV and parquet files as a stream of records, with errors that say where."""

from __future__ import annotations

import csv
import gzip
import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from verl_mtgrpo.errors import DataError

LINES = (".jsonl", ".jsonlines")
"""Both suffixes of a file with one JSON record per line."""
SUFFIXES = (".json", *LINES, ".csv", ".tsv", ".parquet")
KNOWN = ".json, .jsonl, .jsonlines, .csv, .tsv or .parquet (all but the last also as .gz)"
_BOM = b"\xef\xbb\xbf"  # files saved on Windows may start with it
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_TAR = slice(257, 262)  # where a tar archive says "ustar"


def read_records(path: Path | str) -> Iterator[tuple[str, Any]]:
    """Yield ``(where, value)`` for every record of a file.

    A JSONL file gives its lines, a parquet file its rows, a CSV or TSV file its rows as text, keyed by
    its first line; a JSON file the elements of its list or, if it is not a list, the whole document. ``where``
    names the record for error messages. A ``.json`` file that holds one record per line is read as JSONL. A
    ``.jsonl.gz`` file may also be a compressed tar archive of JSONL files, as the Wikipedia dump of Search-R1
    is. Text that is not UTF-8 is refused: a replacement character would silently make the text unsearchable.

    Raises:
        DataError: The file is missing, empty, damaged or of an unknown kind.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not a file", fix=f"give the path of a {KNOWN} file")
    kind = _kind(path)
    try:
        if kind == ".parquet":
            yield from _parquet_rows(path)
        elif kind == ".json":
            yield from _json_records(path)
        elif kind in _DELIMITERS:
            yield from _table_rows(path, _DELIMITERS[kind])
        else:
            yield from _json_lines(path)
    except (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path} is a damaged gzip file ({error})", fix="download or write it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def short_name(path: Path | str) -> str:
    """Return the file name without folder and known suffixes: ``a/nq.jsonl.gz`` -> ``nq``."""
    name = Path(path).name
    for suffix in (".gz", *SUFFIXES):
        name = name.removesuffix(suffix)
    return name


def is_data_file(path: Path) -> bool:
    """Return True if :func:`read_records` reads files with this name."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    return suffix in SUFFIXES and not (suffix == ".parquet" and path.suffix == ".gz")


def describe(value: object) -> str:
    """Describe a record for error messages: its keys, or its type."""
    if isinstance(value, dict):
        keys = [str(key) for key in cast("dict[object, object]", value)]
        return f"the columns {', '.join(keys[:12])}{', ...' if len(keys) > 12 else ''}" if keys else "no columns"
    return f"a {type(value).__name__}"


def _kind(path: Path) -> str:
    """Return the kind of file by its suffix."""
    if is_data_file(path):
        return Path(path.name.removesuffix(".gz")).suffix.lower()
    raise DataError(f"{path} is of an unknown kind", expected=f"a {KNOWN} file")


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return path.open("rb")


def _json_records(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        text = _decode(file.read().removeprefix(_BOM), str(path), "file")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise DataError(f"{path} is not valid JSON: {error}") from error
        document = None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if document is None:
        yield from _json_lines(path)
    elif isinstance(document, list):
        for number, value in enumerate(cast("list[Any]", document), start=1):
            yield f"{path}, element {number}", value
    else:
        yield str(path), document


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        if path.suffix == ".gz":
            is_tar = file.read(512)[_TAR] == b"ustar"
            file.seek(0)
            if is_tar:
                yield from _json_lines_of_tar(path, file)
                return
        yield from _records_of_lines(str(path), file)


def _json_lines_of_tar(path: Path, file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    with tarfile.open(fileobj=file, mode="r|") as archive:  # a stream: nothing is unpacked to disk
        for member in archive:
            lines = archive.extractfile(member) if member.isfile() else None
            if lines is None:
                continue
            if Path(member.name).suffix not in LINES:
                raise DataError(
                    f"{path} is an archive that holds {member.name}",
                    expected=".jsonl files",
                    fix="unpack it",
                )
            yield from _records_of_lines(f"{path}, {member.name}", lines)


def _records_of_lines(name: str, lines: IO[bytes]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(_BOM)
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        text = _decode(line, where, "line")
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is not valid JSON: {error}", expected="one record in every line") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
            raise DataError(f"{where} cannot be read as JSON: {error}") from error
        yield where, record


def _table_rows(path: Path, delimiter: str) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        reader = csv.DictReader(_text_lines(path, file), delimiter=delimiter)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}, line {reader.line_num} has {'more' if None in row else 'fewer'} fields than the "
                        "first line has names",
                        fix="fix that line",
                    )
                yield f"{path}, line {reader.line_num}", row
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num + 1} is not a valid row: {error}") from error


def _text_lines(path: Path, lines: IO[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        yield _decode(line.removeprefix(_BOM) if number == 1 else line, f"{path}, line {number}", "line")


def _decode(raw: bytes, where: str, unit: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8 text ({error.reason} at byte {error.start + 1} of the {unit})",
            fix="convert the file to UTF-8, for example with: iconv -f LATIN1 -t UTF-8",
        ) from error


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
