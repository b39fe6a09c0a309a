"""Check that an index on disk is what its manifest says."""

from __future__ import annotations

from pathlib import Path

from verl_mtgrpo.errors import IndexFormatError
from verl_mtgrpo.retrieval.bm25 import BM25Index
from verl_mtgrpo.retrieval.content import Checksum
from verl_mtgrpo.retrieval.dense import DenseIndex
from verl_mtgrpo.retrieval.store import REBUILD, BM25Manifest, hash_files, read_format


def check_index(path: Path | str) -> BM25Index | DenseIndex:
    """Read everything stored at ``path`` and return the opened index.

    Compares the SHA-256 of every file, and the number and checksum of the passages as the engine reads
    them back. Takes about as long as reading the files twice.

    Raises:
        IndexFormatError: There is no index that this version can read, or it is damaged.
    """
    path = Path(path)
    kind = BM25Index if read_format(path) == BM25Manifest.format else DenseIndex
    index = kind.open(path)
    _check_files(path / index.manifest.data, index.manifest.files, path)
    checksum, count = Checksum(), 0
    for passage in index.passages():
        checksum.add((passage.id, passage.title, passage.text))
        count += 1
    if (count, checksum.hexdigest()) != (index.manifest.count, index.manifest.checksum):
        raise IndexFormatError(
            f"the index at {path} is damaged: the engine reads {count} passages with the checksum "
            f"{checksum.hexdigest()[:12]}…, its manifest says {index.manifest.count} with "
            f"{index.manifest.checksum[:12]}…",
            fix=REBUILD.format(path=path),
        )
    if not index.finds_itself():
        raise IndexFormatError(
            f"the index at {path} is damaged: a search for the text of its first passages does not find them",
            fix=REBUILD.format(path=path),
        )
    return index


def _check_files(data: Path, expected: dict[str, str], path: Path) -> None:
    found = hash_files(data)
    missing = sorted(set(expected) - set(found))
    changed = sorted(name for name, value in found.items() if expected.get(name) != value)
    if missing or changed:
        what = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"changed: {', '.join(changed)}"] * bool(changed)
        raise IndexFormatError(
            f"the index at {path} is damaged: "
            f"files in {data.name} have changed since they were written ({'; '.join(what)})",
            fix=REBUILD.format(path=path),
        )
