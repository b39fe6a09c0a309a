"""Files and metrics named in CONTRIBUTING, AGENTS, the glossary and the decisions exist; the index is whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from verl_mtgrpo.rewards.metric_names import (
    COMPONENT_METRICS,
    DECIDE_METRICS,
    ROLE_METRICS,
    ROLLOUT_METRICS,
    STEP_METRICS,
)

ROOT = Path(__file__).parents[1]
NOTES = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", ROOT / "docs" / "glossary.md", *NOTES]
OF_VERL = {"critic/vf_explained_var"}  # a metric
PLACEHOLDER = re.compile(r"[A-Z]{4}")  # NAME.yaml, FILE.py


def missing_paths(text: str) -> list[str]:
    """Paths in backticks, from the repository's root or from the package, that are not there."""
    named = re.findall(r"`([\w./-]+/[\w.-]+|[\w-]+\.(?:py|md))`", text)
    roots = (ROOT, ROOT / "verl_mtgrpo")
    return [path for path in named if not PLACEHOLDER.search(path) and not any((r / path).exists() for r in roots)]


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"`((?:turn|tool|outcome|rollouts_total|guard)/[\w/<>]+)`", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_path_is_there(page):
    known = {*ROLLOUT_METRICS, *DECIDE_METRICS, *ROLE_METRICS, *STEP_METRICS, *COMPONENT_METRICS, *OF_VERL}
    text = page.read_text()
    assert metrics_in(text) <= known
    code = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    assert [path for path in missing_paths(code) if path not in known and not path.startswith("runs/")] == []


def test_the_test_above_can_fail():
    assert missing_paths("`credit/turns.py`, `credit/gone.py`, `config/mtgrpo/NAME.yaml`, `nothing.md`") == [
        "credit/gone.py",
        "nothing.md",
    ]


@pytest.mark.parametrize("note", NOTES, ids=lambda page: page.stem)
def test_a_decision_has_its_parts(note):
    text = note.read_text()
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings in (["Context", "Decision", "Consequences"], ["Context", "Decision", "Consequences", "Not taken"])
    status = re.search(r"^- Status: (accepted|superseded by \d+)(.*)$", text, re.MULTILINE)
    assert status is not None
    for number in re.findall(r"superseded by (\d+)", status[0]):
        assert 1 <= int(number) <= len(NOTES)


def test_the_index_lists_every_decision_as_it_is():
    rows = re.findall(
        r"^\| \[(\d{4})\]\((.*?)\) \| (.*) \| (.*) \| (.*) \|$", (NOTES[0].parent / "README.md").read_text(), re.M
    )
    assert [int(number) for number, *_ in rows] == list(range(1, len(NOTES) + 1))
    for note, (number, file, title, status, date) in zip(NOTES, rows, strict=True):
        assert note.name == file
        assert note.read_text().startswith(f"# {number} – {title}\n\n- Status: {status}\n- Date: {date}\n")
