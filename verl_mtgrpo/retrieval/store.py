"""An index folder on disk: its manifest, and how a new index replaces an old one.

Layout::

    <index>/manifest.json     what the index is; names the data folder in use
    <index>/data-<random>/    files of the search engine
    <index>/.lock             held by the process that builds

A build writes a new data folder beside the one in use and then replaces the manifest, which is one
atomic rename. Killed at any moment before that, it leaves the old index whole; the next build clears
away what it left.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from verl_mtgrpo.errors import IndexFormatError, RetrievalError

try:
    import fcntl
except ImportError:  # not on Windows: two builds at once are then the user's to avoid
    fcntl = None

FORMAT = "verl-mtgrpo/bm25"
VERSION = 1
MANIFEST = "manifest.json"
_LOCK = ".lock"
_DATA = re.compile(r"data-[0-9a-f]{12}")
_REBUILD = "build it with: mtgrpo index CORPUS --out {path}"


@dataclass(frozen=True)
class Manifest:
    """What an index is.

    Attributes:
        count: Number of passages.
        analyser: Name of the rule that turned text into words.
        source: Where the passages came from, as given to the build.
        checksum: SHA-256 over ids, titles and texts in order: equal for equal content.
        engine: The search engine and its version.
        data: Name of the data folder inside the index folder.
        format: Always ``FORMAT``.
        version: Version of this layout and schema.
    """

    count: int
    analyser: str
    source: str
    checksum: str
    engine: str
    data: str
    format: str = FORMAT
    version: int = VERSION


def read_manifest(path: Path) -> Manifest:
    """Read what index is at ``path``; ``IndexFormatError`` if there is none that this version can use."""
    rebuild = _REBUILD.format(path=path)
    if not path.exists():
        raise IndexFormatError(f"there is no index at {path}; {rebuild}")
    try:
        raw = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise IndexFormatError(f"{path} is no index of verl-mtgrpo: it has no {MANIFEST}; {rebuild}") from None
    except (OSError, ValueError) as error:
        raise IndexFormatError(f"{path / MANIFEST} cannot be read ({error}); {rebuild}") from error
    data = cast("dict[str, Any]", raw) if isinstance(raw, dict) else {}
    if data.get("format") != FORMAT:
        raise IndexFormatError(
            f"{path} is no index of verl-mtgrpo: its {MANIFEST} says format={data.get('format')!r}, "
            f"expected {FORMAT!r}; {rebuild}"
        )
    version = data.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        advice = "upgrade verl-mtgrpo, or rebuild: " if newer else "rebuild: "
        raise IndexFormatError(
            f"the index at {path} has format version {version!r}, this verl-mtgrpo reads version {VERSION}; "
            f"{advice}{rebuild}"
        )
    try:
        return Manifest(**data)
    except TypeError as error:
        raise IndexFormatError(f"{path / MANIFEST} is damaged ({error}); {rebuild}") from error


class Staging:
    """A data folder under construction; a context manager around one build.

    Inside the ``with`` block write into :attr:`folder`, then call :meth:`publish`. Leaving the block
    without having published removes the new folder and keeps the old index.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out / f"data-{secrets.token_hex(6)}"
        self._created = False
        self._published = False
        self._lock: int | None = None

    def __enter__(self) -> Staging:
        _refuse_foreign_folder(self.out)
        self._created = not self.out.exists()
        self.out.mkdir(parents=True, exist_ok=True)
        self._lock = _lock_folder(self.out)
        self._remove_unused(keep=_data_in_use(self.out))
        self.folder.mkdir()
        return self

    def publish(self, manifest: Manifest) -> None:
        """Make the new folder the index, and remove the one it replaces."""
        text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
        draft = self.out / f"{MANIFEST}.new"
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, self.out / MANIFEST)
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
        if self._lock is not None:
            os.close(self._lock)

    def _remove_unused(self, keep: str | None) -> None:
        for entry in self.out.iterdir():
            if _DATA.fullmatch(entry.name) and entry.name != keep:
                shutil.rmtree(entry, ignore_errors=True)


def _refuse_foreign_folder(out: Path) -> None:
    """Never write into, or clear, a folder that holds something else."""
    if not out.exists():
        return
    if not out.is_dir():
        raise IndexFormatError(f"{out} is a file; an index is a folder: give another --out")
    ours = {MANIFEST, f"{MANIFEST}.new", _LOCK}
    foreign = sorted(e.name for e in out.iterdir() if e.name not in ours and not _DATA.fullmatch(e.name))
    if foreign:
        raise IndexFormatError(
            f"{out} already holds other files ({', '.join(foreign[:3])}); "
            "give --out a new folder, an empty one, or an index to replace"
        )
    _data_in_use(out)


def _data_in_use(out: Path) -> str | None:
    """Data folder that an existing manifest names, whatever its version; None if there is none."""
    manifest = out / MANIFEST
    if not manifest.exists():
        return None
    try:
        raw = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        raw = None
    data = cast("dict[str, Any]", raw) if isinstance(raw, dict) else {}
    if data.get("format") != FORMAT:
        raise IndexFormatError(
            f"{manifest} was not written by verl-mtgrpo; give another --out, or remove that folder first"
        )
    return str(data.get("data"))


def _lock_folder(out: Path) -> int | None:
    """Hold the folder's lock until the returned descriptor is closed; the system drops it on a kill."""
    if fcntl is None:
        return None
    descriptor = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RetrievalError(
            f"another process is building an index in {out}; wait for it or give another --out"
        ) from None
    except OSError:  # a file system without locks
        pass
    return descriptor
