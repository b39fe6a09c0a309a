from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from verl_mtgrpo.cli import data
from verl_mtgrpo.errors import ConfigError, DataError


def mtgrpo(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    data.add_parser(parser.add_subparsers())
    args = parser.parse_args(["data", *map(str, arguments)])
    return args.run(args)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "nq-open.jsonl"
    records = [{"question": f"question {n}", "answers": [f"answer {n}"]} for n in range(50)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_writes_parquet_and_prints_the_manifest(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert mtgrpo(questions, "--out", out, "--val-fraction", 0.2, "--max-train", 30, "--seed", 3) == 0
    printed = capsys.readouterr().out
    manifest, end = json.JSONDecoder().raw_decode(printed)
    assert manifest == json.loads((out / "manifest.json").read_text())
    assert f"{out}/train.parquet: 30 train questions" in printed[end:]
    train = pq.read_table(out / "train.parquet").to_pylist()
    assert {row["data_source"] for row in train} == {"nq-open"}
    assert pq.read_metadata(out / "val.parquet").num_rows == 10


def test_system_prompt_from_text_and_file(questions: Path, tmp_path: Path):
    def first_prompt(value: str) -> list[dict[str, str]]:
        mtgrpo(questions, "--out", tmp_path / "out", "--system-prompt", value)
        return pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()[0]["prompt"]

    (tmp_path / "prompt.txt").write_text("Be short.\n")
    assert first_prompt("Search.")[0] == {"role": "system", "content": "Search."}
    assert first_prompt(f"@{tmp_path / 'prompt.txt'}")[0] == {"role": "system", "content": "Be short."}
    assert [message["role"] for message in first_prompt("")] == ["user"]
    with pytest.raises(ConfigError, match=r"nowhere.txt is not a file"):
        first_prompt(f"@{tmp_path / 'nowhere.txt'}")


def test_a_file_without_the_needed_columns(tmp_path: Path):
    path = tmp_path / "wrong.jsonl"
    path.write_text('{"prompt": "q", "label": "a"}\n')
    with pytest.raises(
        DataError, match=r"wrong.jsonl, line 1 has the columns prompt, label; expected a column question"
    ):
        mtgrpo(path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_help_has_examples_and_loads_nothing_heavy():
    code = (
        "import sys, argparse; from verl_mtgrpo.cli import data, index\n"
        "parser = argparse.ArgumentParser(); sub = parser.add_subparsers()\n"
        "data.add_parser(sub); index.add_parser(sub)\n"
        "for command in sub.choices.values(): print(command.format_help())\n"
        "heavy = {'pyarrow', 'pandas', 'tantivy', 'torch', 'verl', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "mtgrpo data dev-v2.0.json --out" in result.stdout
    assert "mtgrpo index wiki.jsonl.gz --out" in result.stdout
