"""An index folder on disk: its manifest, and how a new index replaces an old one.

Layout::

    <index>/manifest.json     what the index is; names the data folder in use
    <index>/data-<random>/    the search engine's files
    <index>/.lock             held by the process that is building

A build writes a new data folder next to the one in use and then replaces the manifest, which is one atomic
rename. If the build is killed at any moment before that, the old index stays complete, and the next build
removes what was left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Generator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

from filelock import FileLock, Timeout

from verl_mtgrpo.atomic import atomic_write, is_draft
from verl_mtgrpo.errors import IndexFormatError, MTGRPOError, NoIndexError, RetrievalError, StorageError
from verl_mtgrpo.retrieval.addresses import meant_address

MANIFEST = "manifest.json"
_LOCK = ".lock"
_DATA = re.compile(r"data-[0-9a-f]{12}")
REBUILD = "build it with: mtgrpo index CORPUS --out {path}"
"""The fix for an index that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an index of any kind contains.

    Attributes:
        count: The number of passages.
        source: Where the passages came from, as given to the build.
        checksum: SHA-256 over ids, titles and texts in order (``content.Checksum``).
        engine: The search engine and its version.
        data: Name of the data folder inside the index folder.
        format: Name of the kind of index.
        version: Version of that kind's layout and schema.
        files: SHA-256 of every file in the data folder, filled in by the build. ``checksum`` covers only the
            passages, these also cover what is computed from them (postings, vectors); only a check reads them.
    """

    count: int
    source: str
    checksum: str
    engine: str
    data: str
    format: str
    version: int
    files: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class BM25Manifest(Manifest):
    """Manifest of a :class:`~verl_mtgrpo.retrieval.BM25Index`.

    Attributes:
        analyser: Name of the rule that turned text into words.
    """

    analyser: str
    format: str = "verl-mtgrpo/bm25"
    version: int = 2


@dataclass(frozen=True, kw_only=True)
class DenseManifest(Manifest):
    """Manifest of a :class:`~verl_mtgrpo.retrieval.DenseIndex`.

    Attributes:
        kind: ``flat`` (exact) or ``hnsw`` (a graph: faster, approximate).
        dimension: Length of the vectors.
        model: sentence-transformers model of queries (and of passages, where no vectors were given).
        query_prefix: Text put before every query; None for the model's own.
        passage_prefix: Text put before every passage; None for the model's own.
    """

    kind: str
    dimension: int
    model: str | None
    query_prefix: str | None
    passage_prefix: str | None
    format: str = "verl-mtgrpo/dense"
    version: int = 1


M = TypeVar("M", bound=Manifest)
_OURS = {BM25Manifest.format: "BM25Index", DenseManifest.format: "DenseIndex"}


def read_format(path: Path) -> str:
    """Return the kind of index at ``path``; raise ``IndexFormatError`` if verl-mtgrpo did not write it."""
    name = _read_fields(path).get("format")
    if name not in _OURS:
        raise NoIndexError(
            f"{path} is not an index of verl-mtgrpo: its {MANIFEST} says format={name!r}",
            expected=f"one of {', '.join(_OURS)}",
            fix=REBUILD.format(path=path),
        )
    return name


def read_manifest(path: Path, kind: type[M]) -> M:
    """Read the manifest at ``path``; raise ``IndexFormatError`` if there is no index of this kind and version."""
    rebuild = REBUILD.format(path=path)
    data = _read_fields(path)
    name, version = data.get("format"), data.get("version")
    if name != kind.format:
        if name in _OURS:
            raise IndexFormatError(
                f"{path} is an index of the kind {_OURS[name]}, not {_OURS[kind.format]}",
                fix=f"open it with {_OURS[name]}.open, or either kind with verl_mtgrpo.retrieval.open_retriever",
            )
        raise NoIndexError(
            f"{path} is not an index of verl-mtgrpo: its {MANIFEST} says format={name!r}",
            expected=repr(kind.format),
            fix=rebuild,
        )
    if version != kind.version:
        newer = isinstance(version, int) and version > kind.version
        advice = "upgrade verl-mtgrpo, or rebuild: " if newer else "rebuild: "
        raise IndexFormatError(
            f"the index at {path} has format version {version!r}, this verl-mtgrpo reads version {kind.version}",
            fix=f"{advice}{rebuild}",
        )
    try:
        return kind(**data)
    except TypeError as error:
        raise IndexFormatError(f"{path / MANIFEST} is damaged ({error})", fix=rebuild) from error


def _read_fields(path: Path) -> dict[str, Any]:
    rebuild = REBUILD.format(path=path)
    if not path.exists():
        address = meant_address(str(path))
        to_do = f"for a search service write {address}; for an index folder, {rebuild}" if address else rebuild
        raise NoIndexError(f"there is no index at {path}", fix=to_do)
    if path.is_file():
        folder = path.with_name(path.name.partition(".")[0] + "-index")
        raise IndexFormatError(
            f"{path} is a file, but an index is a folder",
            fix=f"if the file is a corpus, build an index of it and use that: mtgrpo index {path} --out {folder}",
        )
    try:
        raw = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NoIndexError(f"{path} is not an index of verl-mtgrpo: it has no {MANIFEST}", fix=rebuild) from None
    except (OSError, ValueError) as error:
        raise IndexFormatError(f"{path / MANIFEST} cannot be read ({error})", fix=rebuild) from error
    return cast("dict[str, Any]", raw) if isinstance(raw, dict) else {}


class Staging:
    """A data folder under construction; a context manager around one build.

    Inside the ``with`` block write into :attr:`folder`, then call :meth:`publish`. If the block is left
    without publishing, the new folder is removed and the old index kept.
    """

    def __init__(self, out: Path, kind: type[Manifest]) -> None:
        self.out = out
        self._format: str = kind.format
        self.folder = out / f"data-{secrets.token_hex(6)}"
        self._created = False
        self._published = False
        self._lock = FileLock(out / _LOCK)

    def __enter__(self) -> Staging:
        _refuse_foreign_folder(self.out, self._format)
        self._created = not self.out.exists()
        self.out.mkdir(parents=True, exist_ok=True)
        self._hold_lock()
        self._remove_unused(keep=_data_in_use(self.out, self._format))
        self.folder.mkdir()
        return self

    def publish(self, manifest: Manifest) -> None:
        """Make the new folder the index, and remove the one it replaces."""
        manifest = replace(manifest, files=hash_files(self.folder))
        text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
        with atomic_write(self.out / MANIFEST) as draft:
            draft.write_text(text, encoding="utf-8")
        self._published = True
        self._remove_unused(keep=manifest.data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._published:
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._created:
                with contextlib.suppress(OSError):
                    (self.out / _LOCK).unlink(missing_ok=True)
                    self.out.rmdir()
        self._lock.release()

    def _hold_lock(self) -> None:
        """Hold the folder's lock; the operating system releases it if the process is killed."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise RetrievalError(
                f"another process is building an index in {self.out}", fix="wait for it or give another --out"
            ) from None
        except (OSError, NotImplementedError):  # a file system without locks
            pass

    def _remove_unused(self, keep: str | None) -> None:
        for entry in self.out.iterdir():
            if _DATA.fullmatch(entry.name) and entry.name != keep:
                shutil.rmtree(entry, ignore_errors=True)
            elif is_draft(entry.name, of=MANIFEST):
                entry.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(folder: Path, *kinds: type[Exception]) -> Generator[None]:
    """Turn errors of ``kinds``, which an engine raises when it cannot write, into a ``StorageError`` that says so."""
    try:
        yield
    except MTGRPOError:
        raise
    except kinds as error:
        free = shutil.disk_usage(folder).free / 1e6
        raise StorageError(
            f"the index could not be written to {folder.parent}: {error}",
            fix=f"most often the disk is full ({free:.0f} MB are free now): make room, or give another --out",
        ) from error


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in ``folder``, by name, except lock files, which come and go."""
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if not path.name.endswith(".lock")}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _refuse_foreign_folder(out: Path, format: str) -> None:
    """Raise if ``out`` holds something other than an index of this kind: never write into it or clear it."""
    if not out.exists():
        return
    if not out.is_dir():
        raise IndexFormatError(f"{out} is a file, but an index is a folder", fix="give another --out")
    names = sorted(entry.name for entry in out.iterdir() if not _DATA.fullmatch(entry.name))
    foreign = [name for name in names if name not in (MANIFEST, _LOCK) and not is_draft(name, of=MANIFEST)]
    if foreign:
        raise IndexFormatError(
            f"{out} already holds other files ({', '.join(foreign[:3])})",
            fix="give --out a new folder, an empty one, or an index to replace",
        )
    _data_in_use(out, format)


def _data_in_use(out: Path, format: str) -> str | None:
    """Return the data folder that an existing manifest names, whatever its version; None if there is none."""
    manifest = out / MANIFEST
    if not manifest.exists():
        return None
    try:
        raw = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        raw = None
    data = cast("dict[str, Any]", raw) if isinstance(raw, dict) else {}
    name = data.get("format")
    if name != format and name in _OURS:
        raise IndexFormatError(
            f"{out} holds an index of another kind ({_OURS[name]})",
            fix="give another --out, or remove that folder first",
        )
    if name != format:
        raise IndexFormatError(
            f"{manifest} was not written by verl-mtgrpo",
            fix="give another --out, or remove that folder first",
        )
    return str(data.get("data"))
