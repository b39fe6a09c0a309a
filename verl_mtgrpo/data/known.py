"""Question sets that ``mtgrpo data`` knows by name, and where their files are: on the Hugging Face hub or in a folder.

Each has two editions. ``flashrag`` is FlashRAG's copy (arXiv 2405.13576), which Search-R1 and the second version of
the MT-GRPO paper train and test on; all its sets have the columns ``id, question, golden_answers``.
``original`` is the set's own repository or, if that cannot be loaded without running its code, the copy in
common use (2WikiMultihopQA, MuSiQue, Bamboogle).

Sources of names, configurations and splits: the cards of FlashRAG, NQ-open, TriviaQA, HotpotQA and Bamboogle, the
file lists of PopQA and MuSiQue, and for 2WikiMultihopQA code that loads it (public snapshots, November 2026).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_mtgrpo.data.files import SUFFIXES, is_data_file, read_records, short_name
from verl_mtgrpo.data.hub import PREFIX, dataset_records
from verl_mtgrpo.errors import DataError

EDITIONS = ("flashrag", "original")


@dataclass(frozen=True)
class HubSet:
    """One copy of a question set on the hub.

    Attributes:
        repo: Name of the dataset.
        config: Its configuration; None for the default one.
        test: The split to validate on: the test split, or the development split where no answers of the test split are
            public or there is none.
        train: The split to train on; None for a set meant for testing only.
    """

    repo: str
    config: str | None
    test: str
    train: str | None = "train"

    def spec(self, split: str) -> str:
        """Return ``hf:REPO:CONFIG:SPLIT``."""
        return f"{PREFIX}{self.repo}:{self.config or ''}:{split}"


def _flashrag(config: str, test: str, train: str | None = "train") -> HubSet:
    return HubSet("RUC-NLPIR/FlashRAG_datasets", config, test, train)


# The validation splits of a set's editions have equally many rows.
KNOWN: dict[str, dict[str, HubSet]] = {
    "nq": {
        "flashrag": _flashrag("nq", "test"),
        "original": HubSet("google-research-datasets/nq_open", "nq_open", "validation"),
    },
    "triviaqa": {
        "flashrag": _flashrag("triviaqa", "test"),
        # The configurations rc.* repeat a question for every document that contains its answer.
        "original": HubSet("mandarjoshi/trivia_qa", "unfiltered.nocontext", "validation"),
    },
    "popqa": {
        "flashrag": _flashrag("popqa", "test", train=None),
        "original": HubSet("akariasai/PopQA", None, "test", train=None),
    },
    "hotpotqa": {
        "flashrag": _flashrag("hotpotqa", "dev"),
        "original": HubSet("hotpotqa/hotpot_qa", "distractor", "validation"),
    },
    "2wikimultihopqa": {
        "flashrag": _flashrag("2wikimultihopqa", "dev"),
        "original": HubSet("framolfese/2WikiMultihopQA", None, "validation"),
    },
    "musique": {
        "flashrag": _flashrag("musique", "dev"),
        "original": HubSet("dgslibisey/MuSiQue", None, "validation"),
    },
    "bamboogle": {
        "flashrag": _flashrag("bamboogle", "test", train=None),
        "original": HubSet("chiayewken/bamboogle", None, "test", train=None),
    },
}

_DEV = {"dev", "validation", "valid", "val"}
_SHARD = re.compile(r"\d{4,5}(-of-\d{5})?")


def hub_records(name: str, edition: str, split: str) -> Iterator[tuple[str, Any]]:
    """Stream ``(where, row)`` of one split of a known set from the hub."""
    known = KNOWN[name][edition]
    folder = "DIR" if edition == "flashrag" else f"DIR/{name}"  # FlashRAG's repository has one folder per set
    include = f" --include '{known.config}/*'" if known.config else ""
    yield from dataset_records(
        known.spec(split),
        offline=f"download the files elsewhere (hf download {known.repo} --repo-type dataset{include} --local-dir "
        f"{folder}) and say where they are: mtgrpo data {name} --local DIR, which reads DIR/{name}",
    )


def local_files(local: Path, name: str, split: str) -> list[Path]:
    """Return the files of one split in ``local/name``, or that folder itself if ``DatasetDict.save_to_disk`` wrote it.

    A file belongs to the split whose name is a word of its path (``train.jsonl``, ``musique_ans_v1.0_train.jsonl``,
    ``default/train/0000.parquet``; ``dev`` and ``validation`` are the same). Several files are accepted only if
    they are numbered parts.

    Raises:
        DataError: There is no such file, or more than one candidate.
    """
    folder = local / name
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", expected=f"the files of {name} there, for example {split}.jsonl")
    if (folder / "dataset_dict.json").is_file():
        return [folder]
    wanted = _DEV if split in _DEV else {split}
    files = [path for path in sorted(folder.rglob("*")) if _is_visible(path, folder) and is_data_file(path)]
    found = [path for path in files if wanted & set(_words(path, folder))]
    if not found:
        there = ", ".join(str(path.relative_to(folder)) for path in files) or "no data file"
        raise DataError(
            f"{folder} has no file of the split {split!r} (found: {there})",
            expected=(
                f"a file with the word {split} in its name, of the kinds {', '.join(SUFFIXES)}. If the files are of "
                "another edition, set --edition"
            ),
        )
    if len({_SHARD.sub("#", str(path)) for path in found}) > 1:
        raise DataError(
            f"{folder} has several files of the split {split!r}: "
            f"{', '.join(str(path.relative_to(folder)) for path in found)}",
            fix="keep only one of them there",
        )
    return found


def local_records(files: list[Path], split: str) -> Iterator[tuple[str, Any]]:
    """Stream ``(where, record)`` of what :func:`local_files` found."""
    for file in files:
        yield from dataset_records(file, split=split) if file.is_dir() else read_records(file)


def _is_visible(path: Path, folder: Path) -> bool:
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)


def _words(path: Path, folder: Path) -> list[str]:
    inside = path.relative_to(folder)
    return re.findall("[a-z]+", f"{inside.parent}/{short_name(path)}".lower())
