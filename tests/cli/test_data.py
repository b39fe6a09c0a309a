from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from verl_mtgrpo.cli import data
from verl_mtgrpo.errors import ConfigError, DataError
from verl_mtgrpo.retrieval import BM25Index, Passage

# Your question sets to try everything on, for example MTGRPO_QUESTION_FILES=squad.json:hotpotqa.json
QUESTION_FILES = list(filter(None, os.environ.get("MTGRPO_QUESTION_FILES", "").split(os.pathsep)))


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


def test_writes_parquet_and_prints_a_summary(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    options = ["--out", out, "--val-fraction", 0.2, "--max-train", 30, "--seed", 3]
    assert mtgrpo(questions, *options) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{out}/train.parquet: 30 train questions",
        f"{out}/val.parquet: 10 val questions",
        f"{out}/manifest.json: sources, options, counts and checksums",
    ]
    assert mtgrpo(questions, *options, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "manifest.json").read_text())
    train = pq.read_table(out / "train.parquet").to_pylist()
    assert {row["data_source"] for row in train} == {"nq-open"}
    assert pq.read_metadata(out / "val.parquet").num_rows == 10


def test_says_that_numbers_become_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def row(n: int, truth: object) -> dict[str, object]:
        return {"prompt": [{"role": "user", "content": f"q {n}"}], "reward_model": {"ground_truth": truth}}

    file, out = tmp_path / "maths.jsonl", tmp_path / "out"
    file.write_text("".join(json.dumps(row(n, truth)) + "\n" for n, truth in enumerate((7, 0.5, "8", True))))
    mtgrpo(file, "--out", out, "--val-fraction", 0)
    said = "maths.jsonl: 2 rows have a number as reward_model.ground_truth; here it is text, because the packaged"
    assert capsys.readouterr().out.startswith(said)
    rows = pq.read_table(out / "train.parquet").to_pylist()
    targets = [row["reward_model"]["ground_truth"]["target"] for row in rows]
    assert targets == [["7"], ["0.5"], ["8"], ["yes", "true"]]

    file.write_text("".join(json.dumps(row(n, "8")) + "\n" for n in range(3)))
    mtgrpo(file, "--out", out, "--val-fraction", 0)
    assert "ground_truth" not in capsys.readouterr().out


def test_a_ground_truth_that_is_no_number_is_refused(tmp_path: Path):
    file = tmp_path / "maths.jsonl"
    file.write_text('{"prompt": [{"role": "user", "content": "q"}], "reward_model": {"ground_truth": NaN}}\n')
    with pytest.raises(DataError, match=r"line 1: reward_model.ground_truth is nan, expected"):
        mtgrpo(file, "--out", tmp_path / "out")


def test_says_that_there_are_no_validation_questions(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    mtgrpo(questions, "--out", tmp_path / "none", "--val-fraction", 0)
    assert "there are no validation questions, but verl needs a file of them" in capsys.readouterr().out
    mtgrpo(questions, "--out", tmp_path / "some")
    assert "no validation questions" not in capsys.readouterr().out


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
        DataError, match=r"wrong.jsonl, line 1 has the columns prompt, label, expected a column question"
    ):
        mtgrpo(path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_known_set_from_local_files_with_an_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for file, numbers in {"nq/train": range(4), "nq/test": range(3, 5), "popqa/test": range(5, 7)}.items():
        path = tmp_path / "qa" / f"{file}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        records = [
            {"id": f"{n}", "question": f"Who is in house {n}?", "golden_answers": [f"Orsa {n}"]} for n in numbers
        ]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    passages = [Passage(str(n), "", f"In house {n} is Orsa {n}.") for n in (0, 1, 4, 5, 6)]
    BM25Index.build(passages, tmp_path / "index", source="houses")
    options = ["--local", tmp_path / "qa", "--index", tmp_path / "index", "--check-top", 1, "--only-answerable"]
    assert mtgrpo("nq", "popqa", *options, "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.splitlines() == [
        "popqa has no training split: it is used for validation only",
        "nq: 1 training questions are left out because validation also asks them",
        "nq, val: 1 of 2 questions (50.0%) have a gold answer in the first 1 passages; 0 yes/no not counted",
        "popqa, val: 2 of 2 questions (100.0%) have a gold answer in the first 1 passages; 0 yes/no not counted",
        "nq, train: 2 of 3 questions (66.7%) have a gold answer in the first 1 passages; 0 yes/no not counted",
        f"{tmp_path}/out/train.parquet: 2 train questions",
        f"{tmp_path}/out/val.parquet: 4 val questions",
        f"{tmp_path}/out/manifest.json: sources, options, counts and checksums",
    ]


@pytest.mark.process
def test_without_network_the_message_says_how_to_use_local_files():
    def error_of(*arguments: str) -> str:
        result = subprocess.run(
            [sys.executable, "-m", "verl_mtgrpo.cli.main", "data", *arguments, "--out", "nowhere"],
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        assert result.returncode == 1
        return result.stderr

    message = error_of("nq")
    assert "error: the dataset 'RUC-NLPIR/FlashRAG_datasets' cannot be opened" in message
    fetch = "hf download RUC-NLPIR/FlashRAG_datasets --repo-type dataset --include 'nq/*' --local-dir DIR)"
    assert f"without a network, download the files elsewhere ({fetch}" in message
    assert "mtgrpo data nq --local DIR, which reads DIR/nq" in message
    assert "--local-dir DIR/musique) and say where they are" in error_of("musique", "--edition", "original")
    assert "name their local paths: mtgrpo data FILE.jsonl --out DIR" in error_of("hf:somebody/questions")


def test_options_of_the_check_without_an_index(questions: Path, tmp_path: Path):
    for option in (["--only-answerable"], ["--check-top", "5"]):
        with pytest.raises(ConfigError, match=r"need an index to look into; add --index DIR"):
            mtgrpo(questions, "--out", tmp_path / "out", *option)


@pytest.mark.skipif(not QUESTION_FILES, reason="MTGRPO_QUESTION_FILES names no question sets")
def test_question_sets_of_ones_own(tmp_path: Path):
    for out in ("a", "b"):
        mtgrpo(*QUESTION_FILES, "--out", tmp_path / out, "--seed", 1)
    rows = {name: pq.read_table(tmp_path / "a" / f"{name}.parquet").to_pylist() for name in ("train", "val")}
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    left_out = sum(manifest["left_out_as_asked_in_validation"].values())
    assert sum(map(len, rows.values())) + left_out == sum(part["questions"] for part in manifest["sources"])
    for row in [*rows["train"], *rows["val"]]:
        assert row["prompt"][-1] == {"role": "user", "content": row["extra_info"]["question"]}
        assert all(row["reward_model"]["ground_truth"]["target"])
    for name in ("train.parquet", "val.parquet", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.process
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
