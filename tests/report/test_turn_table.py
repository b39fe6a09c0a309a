"""The table of turns: its rows, and the command that writes it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.report.hostile import hostile_rows
from tests.report.made import dump_row, training_row, transcript, write_rows
from verl_mtgrpo.cli.main import main
from verl_mtgrpo.report.turn_table import COLUMNS, read_turns

# The example at the top of the README: turn rewards .7 and outcome 1, .2 and 0, and one that answers at once for .5.
README = [[0.7, 1.0], [0.2, 0.0], [0.5]]
ADVANTAGES = [[2.1094, 1.0], [-1.2774, -1.0], [-0.8321]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = [
        training_row("q", n, transcript("Vel", searches=["Orrin"] * (len(paid) - 1)), paid, credit, step=3)
        for n, (paid, credit) in enumerate(zip(README, ADVANTAGES, strict=True))
    ]
    for name, some in (("rollouts", rows), ("validation", [dump_row("v", 0, transcript("Mar"), [0.0])])):
        (tmp_path / "run" / name).mkdir(parents=True)
        write_rows(tmp_path / "run" / name / "3.jsonl", some)
    return tmp_path / "run"


def test_a_row_per_turn(run: Path):
    table = read_turns([run / "rollouts" / "3.jsonl"])
    assert list(table.columns) == list(COLUMNS)
    assert table[["rollout", "turn", "turns", "reward", "advantage", "total"]].values.tolist() == [
        [0, 1, 2, 0.7, 2.1094, 1.7],
        [0, 2, 2, 1.0, 1.0, 1.7],
        [1, 1, 2, 0.2, -1.2774, 0.2],
        [1, 2, 2, 0.0, -1.0, 0.2],
        [2, 1, 1, 0.5, -0.8321, 0.5],
    ]
    first = table.iloc[0].to_dict()
    assert (first["step"], first["training"], first["estimator"]) == (3, True, "mt_grpo")
    assert (first["question"], first["answers"]) == ("Which river runs by Orrin?", "Vel | the Vel")
    assert (first["tools"], first["arguments"]) == ("search", '{"query": "Orrin"}')
    assert first["results"] == "Doc 1 (Title: Orrin) Vel is a river." and first["tool_ok"]
    assert "the 3 rollouts that got this far (1 ended there: counted as 0) averaged 0.30" in first["why"]
    assert table["right"].all() and not table["dropped"].any()
    assert table["tool_ok"].isna().tolist() == [False, True, False, True, True]


def test_a_validation_is_recomputed_and_groups_are_told_apart(run: Path):
    table = read_turns([run / "rollouts" / "3.jsonl", run / "validation" / "3.jsonl"])
    last = table.iloc[-1]
    assert table["group"].tolist() == [0] * 5 + [1]
    assert not last["training"] and not last["right"] and pd.isna(last["credited"])


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_the_command_writes_what_pandas_reads_back(run: Path, tmp_path: Path, suffix: str, capsys: Any):
    out = tmp_path / "new" / f"turns{suffix}"
    assert main(["export", str(run), "--steps", "3", "--out", str(out)]) == 0
    assert f"{out}: 6 turns of 4 rollouts" in capsys.readouterr().out
    read = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".jsonl": lambda path: pd.read_json(path, lines=True)}
    table = read[suffix](out)
    assert list(table.columns) == list(COLUMNS)
    assert table["advantage"].tolist()[:5] == pytest.approx([value for some in ADVANTAGES for value in some])


def test_hostile_text_is_written_as_it_is(tmp_path: Path):
    write_rows(tmp_path / "1.jsonl", hostile_rows())
    for suffix in (".parquet", ".csv", ".jsonl"):  # half surrogate pairs, too
        assert main(["export", str(tmp_path / "1.jsonl"), "--out", str(tmp_path / f"t{suffix}")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().split("\n") if line]
    assert len(rows) == 4 and "<script>window.broken" in rows[0]["text"]


def test_arguments_that_do_not_fit(run: Path, tmp_path: Path, capsys: Any):
    assert main(["export", str(run), "--out", str(tmp_path / "t.xls")]) == 1
    assert "expected a .parquet, .csv, .jsonl file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", str(run)])
    assert "one of the arguments --out --wandb --trackio is required" in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.network
@pytest.mark.heavy
def test_a_table_of_wandb(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    """A real run of wandb without its service: what would be uploaded lies in a folder."""
    pytest.importorskip("wandb")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    (tmp_path / "wandb").mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert main(["export", str(run), "--wandb", "a-project", "--run", "mine"]) == 0
    assert "6 turns of 4 rollouts" in capsys.readouterr().out
    (stored,) = (tmp_path / "wandb").rglob("transcripts_*.table.json")
    table = json.loads(stored.read_text())
    assert table["columns"] == list(COLUMNS) and len(table["data"]) == 6
    assert table["data"][0][table["columns"].index("advantage")] == 2.1094


@pytest.mark.process
@pytest.mark.network
@pytest.mark.heavy
def test_a_table_of_trackio(run: Path, tmp_path: Path):
    pytest.importorskip("trackio", reason="trackio is not installed")
    # It reads where its data is kept when it is imported.
    code = f"from verl_mtgrpo.cli.main import main; main(['export', {str(run)!r}, '--trackio', 'a-project'])"
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HOME": str(tmp_path / "hf")}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=170)
    (stored,) = (tmp_path / "trackio").glob("a-project*.db")
    with sqlite3.connect(stored) as database:
        logged = [_raw(row[0]) for row in database.execute("SELECT metrics FROM metrics")]
    (metrics,) = [one for one in logged if b"transcripts" in one]
    assert b"2.1094" in metrics


def _raw(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
