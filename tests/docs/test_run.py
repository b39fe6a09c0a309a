"""Run the cheap commands of the documentation as they are printed, on small files with the names that they use."""

from __future__ import annotations

import gzip
import json

import pytest

from tests.data.pdf import pdf_of
from tests.docs.pages import PAGES, ROOT, Command, commands, name_of
from tests.report.made import dump_row, training_row, transcript, write_rows
from verl_mtgrpo.cli.main import main
from verl_mtgrpo.data.known import KNOWN

PASSAGES = [{"id": str(n), "title": f"River {n}", "text": f"River {n} runs by town {n}."} for n in range(20)]
QUESTIONS = [{"question": f"Which town does river {n} run by?", "answers": [f"town {n}"]} for n in range(20)]


def runs_here(command: Command) -> bool:
    """Return True for commands that need no network, no model and no minutes."""
    program, name, *arguments = [*command.words, ""]
    if program != "mtgrpo" or name not in ("index", "data", "report", "eval"):
        return False
    return not {"--checkpoint", "--model", "--rich", *KNOWN} & set(arguments)


RUN = {page: found for page in PAGES if (found := [one for one in commands(page) if runs_here(one)])}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Make the files that the documentation names, in the current folder."""
    monkeypatch.chdir(tmp_path)
    lines = "".join(json.dumps(one) + "\n" for one in PASSAGES)
    (tmp_path / "corpus.jsonl").write_text(lines)
    (tmp_path / "wiki.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("questions.jsonl", "mine.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    squad = [
        {
            "title": f"River {n}",
            "paragraphs": [
                {
                    "context": f"River {n} runs by town {n}.",
                    "qas": [{"id": str(n), "question": one["question"], "answers": [{"text": f"town {n}"}]}],
                }
            ],
        }
        for n, one in enumerate(QUESTIONS)
    ]
    (tmp_path / "train-v2.0.json").write_text(json.dumps({"version": "v2.0", "data": squad}))
    rollout = transcript("Vel", searches=["Orrin"])
    validation = [dump_row(f"q{n}", 0, rollout, (0.7, 1.0)) for n in range(4)]
    runs = ("runs/mine", "runs/other", "runs/try/run")
    for folder in (*(f"{run}/rollouts" for run in runs), "runs/mine/validation", "grpo", "mt_grpo"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "handbook").mkdir()
    (tmp_path / "handbook" / "travel.md").write_text("# Travel\n\nTrains run every hour.\n")
    (tmp_path / "manual.pdf").write_bytes(pdf_of(["Press the red button."]))
    for step in (10, 20):
        rows = [training_row("q", n, rollout, (0.7, 1.0), (0.0, 0.0), step=step) for n in range(2)]
        for folder in runs:
            write_rows(tmp_path / folder / f"rollouts/{step}.jsonl", rows)
    for dump in ("runs/mine/validation", "grpo", "mt_grpo"):
        write_rows(tmp_path / dump / "500.jsonl", validation)
    return tmp_path


@pytest.mark.process
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_commands_run_as_printed(page, files):
    for command in RUN[page]:
        assert main(command.words[1:]) == 0, str(command)


def test_every_command_that_builds_something_was_run():
    ran = {command.words[1] for found in RUN.values() for command in found}
    assert ran == {"index", "data", "report", "eval"}
