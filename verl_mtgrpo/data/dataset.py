"""Question files -> a folder with ``train.parquet``, ``val.parquet`` and a manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from verl_mtgrpo.data.questions import Question, read_questions, sample_questions, split_questions
from verl_mtgrpo.data.rows import DEFAULT_SYSTEM_PROMPT, make_row, write_parquet
from verl_mtgrpo.errors import ConfigError


def write_dataset(
    files: Sequence[Path],
    out: Path,
    *,
    val_fraction: float = 0.1,
    max_train: int | None = None,
    max_val: int | None = None,
    seed: int = 0,
    data_source: str | None = None,
    system_prompt: str | None = DEFAULT_SYSTEM_PROMPT,
    progress: bool = False,
) -> dict[str, Any]:
    """Read question sets, split them and write verl's parquet files; return the manifest.

    The same files and options give byte-identical results. A split without questions gets no file.

    Args:
        files: Question sets; all end up in the same two files.
        out: Folder for the results, made if missing.
        val_fraction: Share of every set that goes to validation, by article where that is known.
        max_train: At most this many training rows, chosen by hash.
        max_val: At most this many validation rows.
        seed: Decides who goes where.
        data_source: Name for verl's metrics; default: each file's name.
        system_prompt: First message of every prompt; empty or None for none.
        progress: Show a progress bar while reading.
    """
    questions: list[Question] = []
    sources: list[dict[str, Any]] = []
    for file in _with_progress(files, progress):
        read = list(read_questions(file, source=data_source))
        questions += read
        sources.append({"file": file.name, "sha256": _sha256(file), "questions": len(read)})
    train, val = split_questions(questions, val_fraction=val_fraction, seed=seed)
    if max_train is not None:
        train = sample_questions(train, limit=max_train, seed=seed)
    if max_val is not None:
        val = sample_questions(val, limit=max_val, seed=seed)
    if val_fraction < 1 and not train:
        raise ConfigError(
            f"no question is left for training: {len(questions)} read and a validation fraction of {val_fraction}; "
            "lower the fraction"
        )
    splits = {
        name: _write_split(part, out / f"{name}.parquet", name, system_prompt)
        for name, part in (("train", train), ("val", val))
    }
    manifest: dict[str, Any] = {
        "format": "verl-mtgrpo/dataset",
        "version": 1,
        "sources": sources,
        "seed": seed,
        "val_fraction": val_fraction,
        "system_prompt": system_prompt or "",
        "splits": {name: info for name, info in splits.items() if info},
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (out / "manifest.json").write_text(text, encoding="utf-8")
    return manifest


def _write_split(questions: list[Question], path: Path, split: str, system_prompt: str | None) -> dict[str, Any]:
    if not questions:
        path.unlink(missing_ok=True)  # of an earlier run with other options
        return {}
    rows = [
        make_row(
            question.question,
            question.answers,
            index=index,
            split=split,
            id=question.id,
            data_source=question.source,
            system_prompt=system_prompt,
            article=question.article or "",
        )
        for index, question in enumerate(questions)
    ]
    count = write_parquet(rows, path)
    articles = len({question.article for question in questions if question.article})
    return {"file": path.name, "rows": count, "articles": articles, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _with_progress(files: Sequence[Path], progress: bool) -> Iterable[Path]:
    if not progress:
        return files
    from tqdm import tqdm

    return tqdm(files, desc="reading", unit=" files", disable=None)
