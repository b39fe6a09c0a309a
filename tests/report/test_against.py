"""Two runs on one page: which questions are paired, what is in the file, and the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.report.hostile import EVERYTHING, hostile_rows
from tests.report.made import dump_row, rollout_of, training_row, transcript, write_rows
from tests.report.parsed import Page
from verl_mtgrpo.cli.main import main
from verl_mtgrpo.errors import ConfigError, DataError
from verl_mtgrpo.report.against import Run, write_comparison
from verl_mtgrpo.report.catalog import Catalog, read_catalog
from verl_mtgrpo.report.metrics import RunMetrics


def catalog_of(folder: Path, rows: list[dict[str, Any]]) -> Catalog:
    folder.mkdir(parents=True, exist_ok=True)
    return read_catalog([write_rows(folder / "3.jsonl", rows)])


def row(question: str, step: int, paid: float, **more: Any) -> dict[str, Any]:
    said = rollout_of("Vel", prompt=({"role": "user", "content": question},))
    return training_row(f"{question}-{step}", 0, said, [paid], [paid - 0.5], step=step, **more)


def test_the_same_question_is_paired_with_itself(tmp_path: Path):
    """Numbers count A's groups first, then B's: A has q (steps 1, 2), r, s; B has r, q and u."""
    first = catalog_of(tmp_path / "a", [row("q?", 1, 0.0), row("r?", 1, 0.0), row("q?", 2, 0.0), row("s?", 2, 0.0)])
    second = catalog_of(tmp_path / "b", [row("r?", 5, 1.0), row("q?", 6, 1.0), row("u?", 6, 1.0)])
    metrics = RunMetrics(train={"turn/1/reward": {1: 0.25}})
    runs = (Run("mine", first, metrics), Run("other", second))
    write_comparison(tmp_path / "r.html", runs, title="t", made_by="v")
    page = Page(tmp_path / "r.html")
    assert [group[3] for group in page.index["groups"]] == ["q?", "r?", "q?", "s?", "r?", "q?", "u?"]
    assert page.index["start"] == 4
    assert page.index["pairs"] == [[[0, 2], [5]], [[1], [4]]]
    left, right = page.index["runs"]
    assert (left["name"], right["name"]) == ("mine", "other")
    assert left["metrics"] == {"turn/1/reward": [[1, 0.25]]} and right["metrics"] == {}
    reward = {run["name"]: run["kinds"]["training"]["curves"]["Mean reward by turn"] for run in (left, right)}
    assert reward["mine"][0]["points"] == [[1, 0.0], [2, 0.0]] and reward["other"][0]["points"] == [[5, 1.0], [6, 1.0]]
    # The text of the groups is in the same order.
    assert page.group(5)["rollouts"][0]["turns"][0]["reward"] == 1.0


def test_ids_sets_and_answers_keep_questions_apart(tmp_path: Path):
    first = [row("q?", 1, 0.0, question_id="7", data_source="nq"), row("r?", 1, 0.0, data_source="nq")]
    second = [row("q?", 1, 0.0, question_id="8", data_source="nq"), row("r?", 1, 0.0, data_source="triviaqa")]
    both = (Run("a", catalog_of(tmp_path / "a", first)), Run("b", catalog_of(tmp_path / "b", second)))
    write_comparison(tmp_path / "r.html", both, title="t", made_by="v")
    assert Page(tmp_path / "r.html").index["pairs"] == []


def test_a_training_is_not_compared_with_a_validation(tmp_path: Path):
    training = catalog_of(tmp_path / "a", [row("q?", 1, 0.0)])
    validation = catalog_of(tmp_path / "b", [dump_row("v", 0, transcript("Vel"), [1.0])])
    with pytest.raises(DataError, match="one run has training rollouts only and the other one validation rollouts"):
        write_comparison(tmp_path / "r.html", (Run("a", training), Run("b", validation)), title="t", made_by="v")
    assert not (tmp_path / "r.html").exists()


def test_nothing_of_a_rollout_is_markup(tmp_path: Path):
    """The elements of a hostile page are those of a harmless one, and its policy allows the same scripts."""
    harmless = catalog_of(tmp_path / "a", hostile_rows("x"))
    hostile = catalog_of(tmp_path / "b", hostile_rows(EVERYTHING))
    pages = []
    for name, catalog, text in (("h", harmless, "x"), ("e", hostile, EVERYTHING)):
        runs = (Run(text, catalog), Run(text, catalog))
        write_comparison(tmp_path / f"{name}.html", runs, title=text, made_by=text)
        pages.append(Page(tmp_path / f"{name}.html"))
    plain, full = pages
    assert plain.tags == full.tags and plain.code == full.code and plain.policy == full.policy
    assert "require-trusted-types-for 'script'" in full.policy and "default-src 'none'" in full.policy
    assert full.index["pairs"] == [[[0], [1]]] and full.index["runs"][0]["name"]


@pytest.mark.process
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    for run, paid in (("one", 0.0), ("two", 1.0)):
        (tmp_path / run / "rollouts").mkdir(parents=True)
        write_rows(tmp_path / run / "rollouts" / "1.jsonl", [row("q?", 1, paid), row(f"{run}?", 1, paid)])
    monkeypatch.chdir(tmp_path)
    assert main(["report", "one", "--against", "two"]) == 0
    assert "against.html: 1 questions are in both runs" in capsys.readouterr().out
    index = Page(tmp_path / "against.html").index
    assert index["title"] == "one against two" and [run["name"] for run in index["runs"]] == ["one", "two"]
    main(["report", "one/rollouts", "--against", "two/rollouts", "--out", "x.html"])
    assert [run["name"] for run in Page(tmp_path / "x.html").index["runs"]] == ["one/rollouts", "two/rollouts"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "b", "--rich"], "--rich prints one run"),
        (["--against-metrics", "m.jsonl"], "--against-metrics belongs to --against"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str):
    from verl_mtgrpo.cli.main import build_parser

    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "1.jsonl", [row("q?", 1, 0.0)])
    args = build_parser().parse_args(["report", "a", *arguments])
    with pytest.raises(ConfigError, match=message):
        args.run(args)
