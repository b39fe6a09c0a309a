from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from verl_mtgrpo.data.dataset import write_dataset
from verl_mtgrpo.data.rows import DEFAULT_SYSTEM_PROMPT, make_row, write_parquet
from verl_mtgrpo.errors import ConfigError, DataError


def row(number: int = 0) -> dict:
    return make_row(
        "Who?", ["Orsa", "Orsa Kint"], index=number, split="train", id=f"q{number}", data_source="demo", hops=2
    )


def test_a_row_has_the_columns_verl_reads():
    assert row(4) == {
        "data_source": "demo",
        "prompt": [{"role": "system", "content": DEFAULT_SYSTEM_PROMPT}, {"role": "user", "content": "Who?"}],
        "ability": "qa",
        "reward_model": {"style": "rule", "ground_truth": {"target": ["Orsa", "Orsa Kint"]}},
        "extra_info": {"index": 4, "split": "train", "id": "q4", "question": "Who?", "hops": 2},
    }


def test_what_tools_get_and_which_may_be_called():
    """verl 0.9.1 reads both from extra_info (rl_dataset.py: tools_kwargs; tool_agent_loop.py: tool_selection)."""
    made = make_row(
        "Who?", ["x"], index=0, split="val", id="q", data_source="d", tool_kwargs_for=["a", "b"], tool_selection=["a"]
    )
    given = {"create_kwargs": {"ground_truth": {"target": ["x"]}, "question": "Who?", "data_source": "d"}}
    assert made["extra_info"]["tools_kwargs"] == {"a": given, "b": given}
    assert made["extra_info"]["tool_selection"] == ["a"]


@pytest.mark.parametrize("system_prompt", [None, ""])
def test_no_system_message(system_prompt: str | None):
    made = make_row("Who?", ["x"], index=0, split="val", id="q", data_source="d", system_prompt=system_prompt)
    assert made["prompt"] == [{"role": "user", "content": "Who?"}]


@pytest.mark.parametrize("answers", [[], "Orsa"])
def test_answers_are_a_list(answers: list[str]):
    with pytest.raises(DataError, match=r"question 'q' has the answers .*expected a list with at least one"):
        make_row("Who?", answers, index=0, split="val", id="q", data_source="d")


def test_parquet_keeps_rows_and_is_the_same_every_time(tmp_path: Path):
    rows = [row(number) for number in range(100)]
    assert write_parquet(iter(rows), tmp_path / "new" / "a.parquet") == 100
    write_parquet(rows, tmp_path / "b.parquet")
    assert pq.read_table(tmp_path / "b.parquet").to_pylist() == rows
    assert (tmp_path / "new" / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.parquet"]


def test_many_rows_are_written_in_batches(tmp_path: Path):
    assert write_parquet((row(number) for number in range(10_001)), tmp_path / "a.parquet") == 10_001
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 2
    index = [info["index"] for info in pq.read_table(tmp_path / "a.parquet")["extra_info"].to_pylist()]
    assert index == list(range(10_001))


def test_a_failed_write_keeps_the_old_file(tmp_path: Path):
    path = tmp_path / "a.parquet"
    write_parquet([row()], path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="no rows to write"):
        write_parquet([], path)
    with pytest.raises(Exception, match=r"Expected|convert|Could not"):
        write_parquet([row(), {**row(), "data_source": {"not": "text"}}], path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.parquet"]


def squad_file(path: Path, articles: int) -> Path:
    data = [
        {
            "title": f"{path.stem}_{a}",
            "paragraphs": [
                {
                    "context": "c",
                    "qas": [{"id": f"{a}-{q}", "question": f"q{q}", "answers": [{"text": "x"}]} for q in range(4)],
                }
            ],
        }
        for a in range(articles)
    ]
    path.write_text(json.dumps({"data": data}), encoding="utf-8")
    return path


def test_a_dataset_is_byte_identical_on_a_second_run(tmp_path: Path):
    files = [squad_file(tmp_path / "one.json", 20), squad_file(tmp_path / "two.json", 10)]
    manifest = write_dataset(files, tmp_path / "a", val_fraction=0.2, seed=5)
    write_dataset(files, tmp_path / "b", val_fraction=0.2, seed=5)
    for name in ("train.parquet", "val.parquet", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert {name: part["rows"] for name, part in manifest["splits"].items()} == {"train": 96, "val": 24}
    val = pq.read_table(tmp_path / "a" / "val.parquet").to_pylist()
    assert [r["extra_info"]["index"] for r in val] == list(range(24))
    assert {r["data_source"] for r in val} == {"one", "two"}


def test_limits_and_an_empty_split(tmp_path: Path):
    files = [squad_file(tmp_path / "one.json", 20)]
    manifest = write_dataset(files, tmp_path / "out", max_train=7, max_val=3, data_source="qa")
    assert {name: part["rows"] for name, part in manifest["splits"].items()} == {"train": 7, "val": 3}
    manifest = write_dataset(files, tmp_path / "out", val_fraction=0)
    assert list(manifest["splits"]) == ["train"]
    assert not (tmp_path / "out" / "val.parquet").exists()


def test_nothing_left_for_training(tmp_path: Path):
    path = tmp_path / "one.json"
    path.write_text('[{"question": "q", "answer": "a"}]')
    with pytest.raises(ConfigError, match=r"no question is left for training: 1 read .*0.9; lower the fraction"):
        write_dataset([path], tmp_path / "out", val_fraction=0.9)
    assert not (tmp_path / "out").exists()


def test_verl_can_load_the_file(tmp_path: Path):
    # datasets is what verl's RLHFDataset reads parquet files with.
    datasets = pytest.importorskip("datasets")
    write_parquet([row(number) for number in range(3)], tmp_path / "a.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert loaded[2] == row(2)
