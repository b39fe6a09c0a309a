"""Turn the arguments of `mtgrpo data` into parts of the data set: each read from one place, for one split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from verl_mtgrpo.data.files import read_records, short_name
from verl_mtgrpo.data.hub import PREFIX, dataset_records, is_dataset
from verl_mtgrpo.data.known import EDITIONS, KNOWN, hub_records, local_files, local_records
from verl_mtgrpo.data.questions import Question, questions_of
from verl_mtgrpo.data.verl_rows import has_number_as_truth
from verl_mtgrpo.errors import ConfigError, DataError
from verl_mtgrpo.retrieval.store import file_sha256

Role = Literal["train", "val", "divide"]
"""Where a part goes; ``divide``: a fraction of it, chosen by hash, to validation."""
_OFFLINE = "download its files elsewhere and name their local paths: mtgrpo data FILE.jsonl --out DIR"


@dataclass(frozen=True)
class Part:
    """Questions from one place that go to one split.

    Attributes:
        source: Name of the set: the rows' ``data_source``.
        role: Where they go.
        origin: Where they come from, for the manifest; file names instead of local paths.
        name: What to call it in messages.
        records: Opens the part as ``(where, record)`` pairs.
        named: True if ``source`` names all its questions; otherwise verl rows keep their ``data_source``.
    """

    source: str
    role: Role
    origin: dict[str, Any]
    name: str
    records: Callable[[], Iterator[tuple[str, Any]]]
    named: bool = True


class PartReader:
    """Iterates over a part's questions once, and then knows their number and checksum."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.count = 0
        self.numbers = 0
        """Verl rows with a number as ground truth, which becomes text."""
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[Question]:
        part = self.part
        for question in questions_of(self._records(), source=part.source, name=part.name, named=part.named):
            self.count += 1
            self._digest.update(json.dumps([question.id, question.question, question.answers]).encode() + b"\n")
            yield question

    def _records(self) -> Iterator[tuple[str, Any]]:
        for where, record in self.part.records():
            self.numbers += has_number_as_truth(record)
            yield where, record

    def manifest(self) -> dict[str, Any]:
        """Return what the manifest says about the part: origin, role, number of questions and their SHA-256."""
        return {
            **self.part.origin,
            "role": self.part.role,
            "questions": self.count,
            **({"numbers_written_as_text": self.numbers} if self.numbers else {}),
            "questions_sha256": self._digest.hexdigest(),
        }


def plan_parts(
    sources: Sequence[Path | str],
    tests: Sequence[Path | str],
    *,
    edition: str,
    local: Path | None,
    data_source: str | None,
) -> list[Part]:
    """Return the parts that ``sources`` and ``tests`` name, in their order; each split of a known set only once.

    Args:
        sources: Known sets, with their own training and validation splits, or files and datasets to divide.
        tests: Known sets, files or datasets that go to validation as a whole.
        edition: Which copy of the known sets.
        local: Folder with the known sets' files, one folder per set; None for the hub.
        data_source: Name of all parts; None for each one's own.
    """
    if edition not in EDITIONS:
        raise ConfigError(f"the edition is {edition!r}", expected=f"one of {', '.join(EDITIONS)}")
    if local is not None and not any(str(spec) in KNOWN for spec in [*sources, *tests]):
        raise ConfigError(
            f"{local} should hold files of known sets ({', '.join(KNOWN)}), but none of them is requested",
            fix="name one of them",
        )
    parts: dict[object, Part] = {}
    for spec, testing in [*((spec, False) for spec in sources), *((spec, True) for spec in tests)]:
        text = str(spec)
        if text in KNOWN:
            roles: list[Role] = ["val"] if testing or KNOWN[text][edition].train is None else ["train", "val"]
            for role in roles:
                parts.setdefault((text, role), _known_part(text, role, edition, local, data_source))
        else:
            parts[len(parts)] = _given_part(text, "val" if testing else "divide", data_source)
    return list(parts.values())


def _known_part(name: str, role: Role, edition: str, local: Path | None, data_source: str | None) -> Part:
    known = KNOWN[name][edition]
    split = (known.train if role == "train" else None) or known.test
    origin: dict[str, Any] = {"set": name, "edition": edition}
    if local is None:
        origin |= {"dataset": known.repo, "config": known.config or "default", "split": split}
        return Part(data_source or name, role, origin, f"{name} ({split})", lambda: hub_records(name, edition, split))
    files = local_files(local, name, split)
    origin |= {"files": [str(file.relative_to(local)) for file in files], "split": split}
    return Part(data_source or name, role, origin, f"{name} ({split})", lambda: local_records(files, split))


def _given_part(text: str, role: Role, data_source: str | None) -> Part:
    named = data_source is not None
    if text.startswith(PREFIX):
        repo, _, rest = text.removeprefix(PREFIX).partition(":")
        name = repo.rstrip("/").rpartition("/")[2]
        origin = {"dataset": name if Path(repo).exists() else repo, "config_and_split": rest}
        return Part(data_source or name, role, origin, text, lambda: dataset_records(text, offline=_OFFLINE), named)
    path = Path(text)
    if is_dataset(path):
        return Part(data_source or path.name, role, {"folder": path.name}, text, lambda: dataset_records(path), named)
    if not path.is_file():
        raise DataError(
            f"{text!r} is neither a known set ({', '.join(KNOWN)}) nor an existing file or folder nor "
            f"{PREFIX}NAME on the Hugging Face hub",
            fix="correct the name or the path",
        )
    origin = {"file": path.name, "sha256": file_sha256(path)}
    return Part(data_source or short_name(path), role, origin, text, lambda: read_records(path), named)
