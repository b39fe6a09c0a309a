from __future__ import annotations

from pathlib import Path

import pytest

from verl_mtgrpo.errors import ConfigError, DataError
from verl_mtgrpo.report.dump_files import dump_files, parse_steps


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name in ("rollouts/2", "rollouts/10", "rollouts/1", "validation/10", "validation/notes", "metrics-001"):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def names(run: Path, target: str, steps: range | None = None) -> list[str]:
    return [str(path.relative_to(run)) for path in dump_files(run / target, steps)]


def test_steps_in_the_order_of_numbers(run: Path) -> None:
    assert names(run, "rollouts") == ["rollouts/1.jsonl", "rollouts/2.jsonl", "rollouts/10.jsonl"]


def test_the_folder_of_a_run(run: Path) -> None:
    assert names(run, ".", range(2, 11)) == ["rollouts/2.jsonl", "rollouts/10.jsonl", "validation/10.jsonl"]
    assert names(run, "validation/notes.jsonl") == ["validation/notes.jsonl"], "a file is taken whatever its name"


@pytest.mark.parametrize(
    ("target", "steps", "message"),
    [
        ("nothing", None, "does not exist"),
        ("rollouts", range(3, 4), r"choose from 1 to 10 \(3 steps\)"),
    ],
)
def test_what_is_not_there(run: Path, target: str, steps: range | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        dump_files(run / target, steps)


def test_a_folder_without_dumps(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"trainer\.rollout_data_dir"):
        dump_files(tmp_path)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [("20", [20], [19, 21]), ("10:20", [10, 20], [9, 21]), ("10:", [10, 10**9], [9]), (":20", [0, 20], [21])],
)
def test_steps(text: str, inside: list[int], outside: list[int]) -> None:
    steps = parse_steps(text)
    assert all(step in steps for step in inside) and not any(step in steps for step in outside)


@pytest.mark.parametrize("text", ["", "a", "5:4", "-1", "1:2:3"])
def test_other_steps_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a step"):
        parse_steps(text)
