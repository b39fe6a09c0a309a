from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from verl_mtgrpo.data.corpus import read_corpora, read_corpus
from verl_mtgrpo.data.hub import is_dataset
from verl_mtgrpo.errors import DataError
from verl_mtgrpo.retrieval import Passage

pytestmark = pytest.mark.heavy

datasets = pytest.importorskip("datasets")

ROWS = [{"id": "1", "contents": '"Velm"\nA harbour town.'}, {"id": "2", "contents": '"Dravik"\nHills.'}]
PASSAGES = [Passage("1", "Velm", "A harbour town."), Passage("2", "Dravik", "Hills.")]


def test_a_folder_of_data_files_is_streamed(tmp_path: Path):
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(tmp_path / "data" / "train.parquet")
    datasets.Dataset.from_list([{"id": "3", "contents": "more"}]).to_parquet(tmp_path / "data" / "test.parquet")
    assert list(read_corpus(f"hf:{tmp_path / 'data'}")) == PASSAGES
    assert list(read_corpus(f"hf:{tmp_path / 'data'}::test")) == [Passage("3", "", "more")]
    assert list(read_corpus(f"hf:{tmp_path / 'data'}:default:train")) == PASSAGES
    with pytest.raises(DataError, match=r"has the splits .*test.*, but no 'dev'; name one of them"):
        list(read_corpus(f"hf:{tmp_path / 'data'}::dev"))


def test_a_folder_that_save_to_disk_wrote(tmp_path: Path):
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(str(tmp_path / "splits"))
    assert list(read_corpus(tmp_path / "one")) == PASSAGES
    assert list(read_corpus(tmp_path / "splits")) == PASSAGES
    (tmp_path / "more.jsonl").write_text('{"id": "4", "text": "x"}\n')
    both = read_corpora([tmp_path / "one", tmp_path / "more.jsonl"])
    assert [passage.id for passage in both] == ["1", "2", "4"]


def test_rows_of_another_layout_are_named(tmp_path: Path):
    datasets.Dataset.from_list([{"body": "x"}]).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match=r"d, row 1 has the columns body, expected \{id, contents\}"):
        list(read_corpus(tmp_path / "d"))


def test_folders_and_names_that_are_no_dataset(tmp_path: Path):
    with pytest.raises(DataError, match=r"save_to_disk did not write .*write hf:"):
        list(read_corpus(tmp_path))
    with pytest.raises(DataError, match=r"'hf:' names no dataset"):
        list(read_corpus("hf:"))
    assert not is_dataset(tmp_path / "file.jsonl")


@pytest.mark.process
def test_without_network_the_message_points_to_local_files():
    code = "from verl_mtgrpo.data.corpus import read_corpus; list(read_corpus('hf:somebody/wiki'))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert "DataError: the dataset 'somebody/wiki' cannot be opened" in result.stderr
    assert "download its files elsewhere and name their local paths: mtgrpo index FILE.jsonl" in result.stderr
