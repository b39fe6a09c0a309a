"""Check that the question files exist, and that their first rows have what verl and the rewards read."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from verl_mtgrpo.data.files import describe
from verl_mtgrpo.doctor.findings import Finding, from_error, one_line
from verl_mtgrpo.doctor.rows import as_table, question_set, shape_problem
from verl_mtgrpo.doctor.setup import Setup
from verl_mtgrpo.errors import DataError, MTGRPOError
from verl_mtgrpo.integration.data_sources import refuse_unscored
from verl_mtgrpo.integration.parts import VERLS_MANAGERS
from verl_mtgrpo.integration.row_loops import check_agent_names
from verl_mtgrpo.integration.settings import turn_reward_settings
from verl_mtgrpo.rewards import PACKAGED
from verl_mtgrpo.rewards.answers import accepted_answers

CHECK = "data"
LOOKED_AT = 32
"""How many of the first rows of a file are read."""
WRITE = "mtgrpo data writes such files: mtgrpo data QUESTIONS --out DIR"


def data(setup: Setup) -> Iterator[Finding]:
    """Check the training and validation questions."""
    yield from setup.questions.said()


def open_questions(setup: Setup) -> Generator[Finding, None, list[dict[str, Any]]]:
    """Read the question files and return the first training rows in which nothing is wrong."""
    if setup.get("data.custom_cls.path"):
        yield Finding(CHECK, "skip", "questions come from a custom data set class (data.custom_cls)")
        return []
    problems, counts, first = [], [], []
    for key in ("data.train_files", "data.val_files"):
        total = 0
        for file in _files(setup.get(key)):
            read = _read(setup, key, file)
            if isinstance(read, Finding):
                problems.append(read)
                total = -1
                break
            count, rows = read
            total += count
            wrong = [*_rows_problems(setup, key, file, rows)]
            problems += wrong
            if key == "data.train_files" and not first and not wrong:
                first = rows
        counts.append(total)
    if not problems:
        problems += _amount(setup, counts[0])
    if not problems:
        said = [f"{counts[0]} questions for training, {counts[1]} for validation", *_loops_named(setup)]
        problems = [Finding(CHECK, "ok", "; ".join(said))]
    yield from problems
    return first


def _loops_named(setup: Setup) -> list[str]:
    """Return what becomes of rows that name verl's tool agent."""
    files = [*_files(setup.get("data.train_files")), *_files(setup.get("data.val_files"))]
    said = {check_agent_names(file, setup.config) for file in files if file.endswith(".parquet")}
    return sorted(said - {""})


def _files(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value or []]


def _read(setup: Setup, key: str, file: str) -> tuple[int, list[dict[str, Any]]] | Finding:
    """Return the number of rows in a file and the first of them, or a finding if the file cannot be read."""
    path = Path(file).expanduser()
    if "://" in file:
        return Finding(CHECK, "skip", f"{file} is not on this machine's disk and was not read")
    if not path.is_file():
        return setup.absent(CHECK, f"{key}={file} does not exist", f"set the path of a file; {WRITE}")
    try:
        count, rows = _parquet(path) if path.suffix == ".parquet" else _json(path)
    except Exception as error:  # a broken file makes pyarrow and json raise many kinds of errors
        message = f"{file} cannot be read: {type(error).__name__}: {one_line(str(error))[:200]}"
        return Finding(CHECK, "fail", message, f"write it again; {WRITE}")
    return (count, rows) if count else Finding(CHECK, "fail", f"{file} has no rows", WRITE)


def _parquet(path: Path) -> tuple[int, list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    first = next(file.iter_batches(batch_size=LOOKED_AT), None)
    return file.metadata.num_rows, first.to_pylist() if first is not None else []


def _json(path: Path) -> tuple[int, list[dict[str, Any]]]:
    """Read a list of objects, or one object per line, as the datasets library does."""
    import json

    if path.suffix not in (".json", ".jsonl"):
        raise DataError(f"verl reads .parquet, .json and .jsonl, but not {path.suffix or 'a file without suffix'}")
    with path.open(encoding="utf-8-sig") as file:
        start = file.read(4096).lstrip()
        file.seek(0)
        if start.startswith("[") or _is_one_document(start):
            whole = json.load(file)
            return (len(whole), as_table(whole[:LOOKED_AT])) if isinstance(whole, list) else (1, [whole])
        count, rows = 0, []
        for line in filter(str.strip, file):
            count += 1
            if len(rows) < LOOKED_AT:
                rows.append(json.loads(line))
    return count, as_table(rows)


def _is_one_document(start: str) -> bool:
    """Return True if an object continues after the first line, as in a file with indentation."""
    line = start.partition("\n")[0].strip()
    return line.endswith(("{", "[", ",")) or line == ""


def _rows_problems(setup: Setup, key: str, file: str, rows: Sequence[Any]) -> Iterator[Finding]:
    """Yield at most one finding about a file's first rows."""
    if not all(isinstance(row, dict) for row in rows):
        yield Finding(CHECK, "fail", f"{file} has {describe(rows[0])} per entry instead of rows", WRITE)
        return
    columns, prompt = set(rows[0]), str(setup.get("data.prompt_key") or "prompt")
    missing = [name for name in (prompt, *_read_by_rewards(setup)) if name not in columns]
    if prompt in missing and (found := question_set(CHECK, key, file)):
        yield found
        return
    if missing:
        message = f"{file} has no column {', '.join(missing)}; it has {', '.join(sorted(columns))}"
        more = ", or set data.prompt_key" if prompt in missing else ""
        yield Finding(CHECK, "fail", message, f"add it{more}; {WRITE}")
        return
    own_manager = setup.get("reward.reward_manager.source") not in (None, "register")  # and may read other columns
    if odd := shape_problem(rows, prompt, ["extra_info", *([] if own_manager else ["reward_model"])]):
        yield Finding(CHECK, "fail", f"{file}, {odd}", WRITE)
        return
    try:
        if file.endswith(".parquet"):
            check_agent_names(file, setup.config)
        ours = setup.get("reward.reward_manager.name") == "mtgrpo" and "reward_model" in columns
        preset = setup.get("reward.turn.preset")  # where compute_score has the outcome, the truth is its alone
        unread = preset == "tool_use" and turn_reward_settings(setup.get("reward")).outcome == "compute_score"
        if ours and preset in (None, *PACKAGED) and not unread:
            for row in rows:
                accepted_answers((row["reward_model"] or {}).get("ground_truth"))
        if _scored_by_verl(setup):
            refuse_unscored(file, _sources(file, rows))
    except MTGRPOError as error:
        found = from_error(CHECK, error, f"add an answer to every row; {WRITE}")
        yield found if file in found.message else Finding(CHECK, "fail", f"{file}: {found.message}", found.fix)


def _read_by_rewards(setup: Setup) -> list[str]:
    """Return the columns that rewards need; verl calls a row without data_source "unknown" and cannot score it."""
    manager = setup.get("reward.reward_manager.name")
    if setup.get("reward.reward_manager.source") not in (None, "register"):
        return []  # a class of the user's, even if it has one of verl's names
    if manager in VERLS_MANAGERS:
        return ["reward_model", "data_source"]
    if manager != "mtgrpo":
        return []
    return ["reward_model", *(["data_source"] if _scored_by_verl(setup) else [])]


def _scored_by_verl(setup: Setup) -> bool:
    """Return True if the outcome comes from verl's own reward function."""
    asked = setup.get("reward.reward_manager.name") == "mtgrpo" and setup.get("reward.turn.outcome") == "compute_score"
    return asked and not setup.get("reward.custom_reward_function.path")


def _sources(file: str, rows: Sequence[Any]) -> set[str]:
    """Return the ``data_source`` of all rows of a parquet file, or of the given first rows of another file."""
    if not file.endswith(".parquet"):
        return {str(row["data_source"]) for row in rows if "data_source" in row}
    import pyarrow.parquet as pq

    table = pq.read_table(Path(file).expanduser(), columns=["data_source"])
    return {str(name) for column in table.columns for name in column.unique().to_pylist()}


def _amount(setup: Setup, rows: int) -> Iterator[Finding]:
    size, mode = setup.get("data.train_batch_size"), str(setup.get("trainer.v1.trainer_mode"))
    one_by_one = not mode.endswith("sync") or mode.endswith("async") or setup.get("algorithm.filter_groups.enable")
    if rows >= size or one_by_one or setup.get("data.gen_batch_size") or setup.get("trainer.val_only"):
        return
    message = f"{rows} training questions are fewer than data.train_batch_size={size}, so there is no batch"
    yield Finding(CHECK, "fail", message, f"set data.train_batch_size to {rows} or less, or add questions")
