"""Stream Hugging Face datasets as records, from the hub or from a folder that ``save_to_disk`` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_mtgrpo.errors import DataError

PREFIX = "hf:"
_OFFLINE = "download its files elsewhere and name their local paths: mtgrpo index FILE.jsonl --out DIR"


def is_dataset(spec: Path | str) -> bool:
    """Return True if ``spec`` is ``hf:NAME…`` or a folder, not a file."""
    return str(spec).startswith(PREFIX) or Path(spec).is_dir()


def dataset_records(spec: Path | str, *, split: str = "", offline: str = _OFFLINE) -> Iterator[tuple[str, Any]]:
    """Yield ``(where, row)`` for every row of a dataset; ``where`` names the row for error messages.

    Args:
        spec: ``hf:NAME``, ``hf:NAME:CONFIG`` or ``hf:NAME:CONFIG:SPLIT`` (an empty CONFIG is the default one),
            where NAME is a dataset of the hub or a local folder of data files: rows are streamed, nothing is
            stored. Or a folder written by ``Dataset.save_to_disk``. Without SPLIT the dataset's only split is
            taken, or ``train``.
        split: The split of a folder by ``DatasetDict.save_to_disk``; a name on the hub includes it.
        offline: What to do without a network, for the error message.

    Raises:
        DataError: There is no such dataset, configuration or split, or it cannot be reached.
    """
    text = str(spec)
    rows = _from_hub(text, offline) if text.startswith(PREFIX) else _from_disk(Path(text), split)
    number = 0
    try:
        for number, row in enumerate(rows, start=1):
            yield f"{text}, row {number}", dict(row)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{text} cannot be read after row {number}: {_short(error)}") from error


def _from_hub(spec: str, offline: str) -> Any:
    from datasets import load_dataset

    name, _, rest = spec.removeprefix(PREFIX).partition(":")
    config, _, split = rest.partition(":")
    if not name or ":" in split:
        raise DataError(f"{spec!r} names no dataset", expected="hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT")
    try:
        found: Any = load_dataset(name, config or None, streaming=True)
    except Exception as error:  # the hub's client has dozens of kinds, for the network, names and formats
        raise DataError(
            f"the dataset {name!r} cannot be opened ({_short(error)})",
            fix=f"check its name and configuration, or, without a network, {offline}",
        ) from error
    return _one_split(found, split, spec)


def _from_disk(path: Path, split: str) -> Any:
    from datasets import DatasetDict, load_from_disk

    try:
        found: Any = load_from_disk(str(path))
    except Exception as error:
        raise DataError(
            f"{path} is a folder that Dataset.save_to_disk did not write ({_short(error)})",
            fix=f"for a folder of data files write hf:{path}, otherwise name the files themselves",
        ) from error
    return _one_split(found, split, str(path)) if isinstance(found, DatasetDict) else found


def _one_split(splits: Any, split: str, spec: str) -> Any:
    names = [str(name) for name in splits]
    wanted = split or (names[0] if len(names) == 1 else "train")
    if wanted not in names:
        raise DataError(
            f"{spec} has the splits {', '.join(names)}, but no {wanted!r}",
            fix="name one of them: hf:NAME:CONFIG:SPLIT",
        )
    return splits[wanted]


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
