"""Faults of issue 21 in the command line and in question files, each with its number: input and right behaviour.

Expected values are worked out by hand from what the user has typed; where they are somebody else's (a layout of a
public question set, a limit of the system), the case says whose.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from verl_mtgrpo.cli.main import main
from verl_mtgrpo.errors import ConfigError, IndexFormatError
from verl_mtgrpo.retrieval import open_retriever

SHARED = Path(__file__).parents[3] / "shared" / "data"


def shell_words(text: str) -> list[str]:
    return shlex.split(text.replace("\\\n", " "))


# ---- D24: the address of a search service where an index is asked for


@pytest.mark.parametrize("index", ["http://localhost:8000", "https://search.example.com/retrieve", "http://[::1]:80/"])
@pytest.mark.parametrize("command", ["train", "eval"])
def test_d24_an_address_stays_an_address(command: str, index: str, capsys: pytest.CaptureFixture[str]):
    model = ["--model", "some/model"] if command == "eval" else []
    assert main([command, *model, "--dry-run", "--index", index, "--", "trainer.nnodes=1"]) == 0
    assert f"MTGRPO_INDEX={index}" in shell_words(capsys.readouterr().out)


def test_d24_a_folder_becomes_absolute_for_the_workers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--dry-run", "--index", "runs/index"]) == 0
    assert f"MTGRPO_INDEX={tmp_path}/runs/index" in shell_words(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("index", "meant"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("localhost", "http://localhost"),
        ("10.0.0.7:8000/retrieve", "http://10.0.0.7:8000/retrieve"),
        ("search.example.com:80", "http://search.example.com:80"),
        ("http:/localhost:8000", "http://localhost:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_d24_an_address_without_a_scheme_is_told_what_to_write(index: str, meant: str, capsys):
    for command in (["train"], ["eval", "--model", "m"], ["doctor", "--quick"]):
        options = [] if command[0] == "doctor" else ["--dry-run"]
        assert main([*command, *options, "--index", index]) == 1
        shown = capsys.readouterr()
        assert f"write --index {meant}" in shown.err + shown.out
    # MTGRPO_INDEX, the tool's YAML and `mtgrpo data --index` are all opened here.
    with pytest.raises(IndexFormatError, match=r"for a search service write " + meant.replace("[", r"\[")):
        open_retriever(index)


def test_d24_what_is_no_address_is_not_taken_for_one(tmp_path):
    with pytest.raises(IndexFormatError) as error:
        open_retriever(str(tmp_path / "none"))
    assert "http" not in str(error.value)
    with pytest.raises(ConfigError, match="expected an address such as http://"):
        open_retriever("ftp://server/index")


def test_d24_a_corpus_given_as_index_is_told_how_to_build_one(tmp_path):
    corpus = tmp_path / "data.jsonl.gz"
    corpus.write_bytes(b"")
    with pytest.raises(IndexFormatError) as error:
        open_retriever(corpus)
    assert str(error.value).endswith(f"mtgrpo index {corpus} --out {tmp_path}/data-index")
