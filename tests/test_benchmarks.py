"""The benchmarks run to their end, at sizes too small to tell anything. Those that verl's real pieces are part of."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.verl, pytest.mark.slow]  # make test-slow


def run(name: str, *arguments: object) -> str:
    """Return the output of a benchmark."""
    argv = [sys.executable, str(ROOT / "examples" / "benchmarks" / name), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The files that the retrieval benchmarks read, in their layouts, with towns and houses in them."""
    folder = tmp_path / "data"
    folder.mkdir()

    def write(name: str, value: Any) -> None:
        (folder / name).write_text(json.dumps(value), encoding="utf-8")

    def article(number: int) -> dict[str, Any]:
        answer = {"text": f"Velm {number}", "answer_start": 0}
        asked = {"question": f"Which town has house {number}?", "id": str(number), "answers": [answer]}
        context = f"Velm {number} is the town that has house {number}."
        return {"title": f"House_{number}", "paragraphs": [{"context": context, "qas": [asked]}]}

    write("squad2_cs224n_dev.json", {"data": [article(number) for number in range(40)]})
    write("xquad.en.json", {"data": [article(number) for number in range(30, 50)]})
    with gzip.open(folder / "nq-open-oracle.jsonl.gz", "wt", encoding="utf-8") as lines:
        for number in range(40):
            passage = {"title": f"River {number}", "text": f"River {number} ends in lake {number}.", "isgold": True}
            row = {"question": f"Where does river {number} end?", "answers": [f"lake {number}"], "ctxs": [passage]}
            lines.write(json.dumps(row) + "\n")
    context = [["Oslo", ["Oslo is a city.", " It is old."]], ["Bergen", ["Bergen is wet."]]]
    hotpot = {"question": "Which city is old?", "answer": "Oslo", "supporting_facts": [["Oslo", 1]], "context": context}
    write("hippo_hotpotqa_train.json", [{"_id": "h", **hotpot}])
    write("hippo_hotpotqa_train_corpus.json", dict(context))
    paragraph = {"idx": 0, "title": "Ann", "paragraph_text": "Ann was born in Rome.", "is_supporting": True}
    musique = {"question": "Where was Ann born?", "answer": "Rome", "answer_aliases": [], "paragraphs": [paragraph]}
    write("hippo_musique_train.json", [{"id": "m", "question_decomposition": [], **musique}])
    write("hippo_musique_train_corpus.json", [{"title": "Ann", "text": "Ann was born in Rome."}])
    return folder


def test_the_engines_of_the_search(data: Path, tmp_path: Path):
    sizes = ("--passages", 300, "--queries", 20, "--seconds", 0.2, "--engines", "mtgrpo,plain,fts5")
    run("retrieval.py", "--data", data, "--work", tmp_path / "work", *sizes)
    found = json.loads((tmp_path / "work" / "results-300-seed0.json").read_text())
    for engine in ("mtgrpo", "plain", "fts5"):  # their gold passages hold all words of the questions
        assert found[engine]["hotpot any"] == found[engine]["musique any"] == 1.0
        assert found[engine]["qps_4"] > 0


def test_many_searches_at_once(data: Path, tmp_path: Path):
    sizes = ("--passages", 300, "--processes", 2, "--concurrent", 4, "--searches", 40, "--light", 5)
    numbers = tmp_path / "numbers.json"
    said = run("retrieval_load.py", "--data", data, "--work", tmp_path / "work", *sizes, "--json", numbers)
    assert "| | index | service |" in said
    for side in ("index", "service"):
        found = json.loads(numbers.read_text())[side]
        assert found["8 at once: failed"] == found["2 at once: failed"] == 0
        assert found["other passages than the first side"] == 0
        assert 0 < found["8 at once: p50, ms"] <= found["8 at once: p99, ms"]


def test_a_step_beside_verl(tmp_path: Path):
    sizes = ("--rollouts", 16, "--turns", 2, "--tokens", 300, "--questions", 4, "--samples", 2)
    numbers = tmp_path / "numbers.json"
    said = run("step.py", *sizes, "--late", 4, "--wait", 0.2, "--json", numbers)
    assert "| | verl | ours | ours / verl |" in said
    for side in ("stock", "ours"):
        found = json.loads(numbers.read_text())[side]
        assert found["driver_s"] > 0 and found["validation_s"] > 0 and found["late_p99_ms"] > 0
