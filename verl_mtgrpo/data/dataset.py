"""Write question sets to a folder with ``train.parquet``, ``val.parquet`` and a manifest."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from verl_mtgrpo.bars import with_progress
from verl_mtgrpo.data.answerable import AnswerCheck
from verl_mtgrpo.data.questions import Question, QuestionSample, check_limit, in_validation
from verl_mtgrpo.data.rows import DEFAULT_SYSTEM_PROMPT, SEARCH_TOOL, make_row, write_parquet
from verl_mtgrpo.data.sources import Part, PartReader, plan_parts
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.retrieval.store import file_sha256
from verl_mtgrpo.rewards.answers import normalize


def write_dataset(
    sources: Sequence[Path | str],
    out: Path,
    *,
    tests: Sequence[Path | str] = (),
    edition: str = "flashrag",
    local: Path | None = None,
    val_fraction: float | None = None,
    max_train: int | None = None,
    max_val: int | None = None,
    seed: int = 0,
    data_source: str | None = None,
    system_prompt: str | None = DEFAULT_SYSTEM_PROMPT,
    tools: Sequence[str] = (),
    check: AnswerCheck | None = None,
    only_answerable: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Read question sets, split them and write verl's parquet files; return the manifest.

    A training question that a validation set also asks (in the same words, ignoring case, punctuation, articles and
    white space) is left out, even if ``max_val`` leaves out the validation question. Questions about articles (SQuAD)
    that are divided here count as asked only if they were given as a test: the same words ask something else of
    another article.

    The same questions and options give byte-identical results. A split without questions gets no file.

    Args:
        sources: Known sets (:data:`~verl_mtgrpo.data.known.KNOWN`), with their own splits, or files, folders and
            datasets to divide; all of them go into the same two files.
        out: Folder for the results, made if missing.
        tests: Known sets, files, folders and datasets for validation only.
        edition: Which copy of the known sets, of :data:`~verl_mtgrpo.data.known.EDITIONS`.
        local: Folder with the known sets' files; None for the Hugging Face hub.
        val_fraction: Share of every divided set that goes to validation, by article if that is known; default 0.1,
            or 0 with ``tests``.
        max_train: At most this many training rows, chosen by hash.
        max_val: At most this many validation rows.
        seed: Decides which question goes where.
        data_source: Name for verl's metrics; default: the name of each set or file.
        system_prompt: First message of every prompt; empty or None for none.
        tools: The only tools a row may call; empty for all tools of the run.
        check: Counts the questions that an index can answer; None to skip the check.
        only_answerable: Train only on questions that ``check`` found an answer for, and on yes/no questions.
        progress: Show progress bars.

    Raises:
        ConfigError: The options do not fit together, or nothing is left to train on.
        DataError: A set cannot be read.
    """
    if only_answerable and check is None:
        raise ConfigError(
            "only answerable questions are wanted, but there is no index to look them up in", fix="name an index"
        )
    fraction = (0.0 if tests else 0.1) if val_fraction is None else val_fraction
    parts = plan_parts(sources, tests, edition=edition, local=local, data_source=data_source)
    check_limit(max_train)
    # With only_answerable the limit applies to what is left after the check.
    chosen = _Choice(None if only_answerable else max_train, max_val, seed, progress)
    chosen.read(parts, fraction)
    train, val = chosen.train.in_order(), chosen.val.in_order()
    if check is not None:
        val = [
            question
            for question, _ in check.check(with_progress(val, progress, label="checking val", unit="questions"), "val")
        ]
        train = _check_train(chosen.train, check, max_train, progress, keep_all=not only_answerable)
    if not train and any(part.role == "train" or (part.role == "divide" and fraction < 1) for part in parts):
        raise _nothing_left(chosen, fraction, only_answerable)
    splits = {
        name: _write_split(part, out / f"{name}.parquet", name, system_prompt, tools)
        for name, part in (("train", train), ("val", val))
    }
    manifest: dict[str, Any] = {
        "format": "verl-mtgrpo/dataset",
        "version": 1,
        "sources": [reader.manifest() for reader in chosen.readers],
        "seed": seed,
        "val_fraction": fraction if any(part.role == "divide" for part in parts) else None,
        "system_prompt": system_prompt or "",
        "tools": list(tools),
        "left_out_as_asked_in_validation": dict(chosen.repeated),
        "only_answerable": only_answerable,
        "splits": {name: info for name, info in splits.items() if info},
    }
    if check is not None:
        manifest["answerability"] = check.manifest()
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (out / "manifest.json").write_text(text, encoding="utf-8")
    return manifest


class _Choice:
    """Reads parts and chooses the questions of both splits: validation first, to keep its questions out of training.

    Only divided parts are held in memory as a whole.
    """

    def __init__(self, max_train: int | None, max_val: int | None, seed: int, progress: bool) -> None:
        self.train, self.val = QuestionSample(max_train, seed), QuestionSample(max_val, seed)
        self.repeated: Counter[str] = Counter()
        """How many training questions are left out because validation asks them too, by set."""
        self.readers: list[PartReader] = []
        self._seed, self._progress = seed, progress
        self._asked: set[bytes] = set()

    def read(self, parts: Sequence[Part], val_fraction: float) -> None:
        """Read all parts; divide those to be divided together, so that no article ends up on both sides."""
        self.readers = [PartReader(part) for part in parts]
        whole = [list(self._stream(reader)) if reader.part.role == "divide" else [] for reader in self.readers]
        divided = [question for questions in whole for question in questions]
        to_val = iter(in_validation(divided, val_fraction=val_fraction, seed=self._seed))
        halves = [[(question, next(to_val)) for question in questions] for questions in whole]
        for reader, half in zip(self.readers, halves, strict=True):
            for question in self._stream(reader) if reader.part.role == "val" else ():
                self._asked.add(_asks(question))
                self.val.add(question)
            for question in (question for question, val in half if val):
                if question.article is None:
                    self._asked.add(_asks(question))
                self.val.add(question)
        self._asked.discard(_NOTHING)
        for reader, half in zip(self.readers, halves, strict=True):
            for question in self._stream(reader) if reader.part.role == "train" else ():
                self._offer(question)
            for question in (question for question, val in half if not val):
                self._offer(question)

    def _offer(self, question: Question) -> None:
        if _asks(question) in self._asked:
            self.repeated[question.source] += 1
        else:
            self.train.add(question)

    def _stream(self, reader: PartReader) -> Iterable[Question]:
        return with_progress(reader, self._progress, label=f"reading {reader.part.name}", unit="questions")


def _check_train(
    sample: QuestionSample, check: AnswerCheck, limit: int | None, progress: bool, *, keep_all: bool
) -> list[Question]:
    """Check the training questions; return all, or the answerable ones, at most ``limit``, in their order."""
    ranked = sample.ranked()
    positions = {id(question): position for position, question in ranked}
    # By rank, so that a limit is reached without checking the rest, and in the same way every time.
    by_rank = [question for _, question in ranked]
    checked = check.check(with_progress(by_rank, progress, label="checking train", unit="questions"), "train")
    kept: list[Question] = []
    for question, found in checked:
        if keep_all or found is not False:
            kept.append(question)
            if len(kept) == limit:
                break
    return sorted(kept, key=lambda question: positions[id(question)])


def _nothing_left(chosen: _Choice, fraction: float, only_answerable: bool) -> ConfigError:
    reasons = [f"{sum(reader.count for reader in chosen.readers)} read and a validation fraction of {fraction}"]
    if chosen.repeated:
        reasons.append(f"{chosen.repeated.total()} left out because validation asks them too")
    if only_answerable:
        reasons.append("no gold answer of the others was found in the index")
    message = f"no question is left for training: {', '.join(reasons)}"
    return ConfigError(message, fix="lower the fraction, or name other sets")


def _write_split(
    questions: list[Question], path: Path, split: str, system_prompt: str | None, tools: Sequence[str]
) -> dict[str, Any]:
    if not questions:
        path.unlink(missing_ok=True)  # left by an earlier run with other options
        return {}
    rows = (
        make_row(
            question.question,
            question.answers,
            index=index,
            split=split,
            id=question.id,
            data_source=question.source,
            system_prompt=system_prompt,
            tool_kwargs_for=tools or (SEARCH_TOOL,),
            tool_selection=tools,
            article=question.article or "",
        )
        for index, question in enumerate(questions)
    )
    count = write_parquet(rows, path)
    return {
        "file": path.name,
        "rows": count,
        "by_source": dict(Counter(question.source for question in questions)),
        "articles": len({question.article for question in questions if question.article}),
        "sha256": file_sha256(path),
    }


def _asks(question: Question) -> bytes:
    """Return a key that is equal for two questions that ask the same in the same words."""
    return _digest(normalize(question.question))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


_NOTHING = _digest("")  # a question of punctuation alone is never a repetition
