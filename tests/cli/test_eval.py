"""``mtgrpo eval`` on made dumps, and the command it gives to verl."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest

from tests.report.made import dump_row, rollout_of, write_rows
from verl_mtgrpo.cli.main import main
from verl_mtgrpo.rewards import ToolCall

pytestmark = pytest.mark.process

HIT = ToolCall("search", "{}", "Doc 1: The Vel flows by Orrin.")


def dump(path: Path, right: int, *, of: int = 4, sources: tuple[str, ...] = ("triviaqa", "mine")) -> Path:
    """Each set has ``of`` questions of one rollout; the first ``right`` are answered right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for source in sources:
        for n in range(of):
            rollout = rollout_of("Vel" if n < right else "Mar", HIT)
            more = {"data_source": source, "question_id": str(n)}
            rows.append(dump_row(f"{source}-{n}", 0, rollout, [0.0, 1.0], **more))
    return write_rows(path, rows)


def test_tables_of_one_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, out = dump(tmp_path / "7.jsonl", 3), tmp_path / "out"
    assert main(["eval", str(path), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "0.750 (0.250–1.000)" in shown and "eval.md, eval.csv, eval.json" in shown
    report = (out / "eval.md").read_text()
    assert "| data set | em | f1 | format | tool execution | hit rate | searches | questions | rollouts |" in report
    assert "| mine | 0.750 (0.250–1.000) |" in report
    assert f"| exact match | {path} | paper: MT-GRPO (v1) |" not in report, "v2 has a number for TriviaQA too"
    v2 = " | ".join(f"paper: {name} (v2)" for name in ("MT-PPO", "PPO-OR", "PPO-MR", "GRPO-MR", "GRPO-OR"))
    assert f"| exact match | {path} | {v2} | paper: MT-GRPO (v1) |" in report
    assert (
        "| TriviaQA | 0.750 (0.250–1.000) | 0.647 | 0.639 | 0.629 | 0.628 | 0.560 | 0.501 | 0.335 | 0.000 |" in report
    )
    rows = {row["data_set"]: row for row in csv.DictReader((out / "eval.csv").open())}
    assert list(rows) == ["TriviaQA", "mine", "average"]
    assert rows["TriviaQA"]["em of paper: MT-GRPO (v1)"] == "0.501" and not rows["mine"]["em of paper: MT-GRPO (v1)"]
    assert (float(rows["mine"]["em"]), float(rows["mine"]["searches_high"])) == (0.75, 1.0)
    data = json.loads((out / "eval.json").read_text())
    assert data["dumps"][0]["rows"][0]["estimates"]["em"] == {"mean": 0.75, "low": 0.25, "high": 1.0}
    assert data["bootstrap"] == {"resamples": 10_000, "seed": 0}


def test_turn_rewards_are_compared_with_the_outcome(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Two rollouts of each of 50 questions: the one that finds it earns 0.5 and is right."""
    rows = [
        dump_row(f"q{n}", session, rollout_of("Vel" if right else "Mar", HIT), [0.5 * right, 1.0 * right])
        for n in range(50)
        for session, right in enumerate((1, 0))
    ]
    path = write_rows(tmp_path / "7.jsonl", rows)
    assert main(["eval", str(path), "--out", str(tmp_path)]) == 0
    finding = (
        "- What turn 1 was paid correlates positively with the outcome in group-mates (r = +1.00 ± 0.14, 50 groups)"
    )
    assert f"Do turn rewards and the outcome agree?\n{finding}" in capsys.readouterr().out
    report = (tmp_path / "eval.md").read_text()
    assert f"## Do turn rewards and the outcome agree?\n\n### {path}\n\nValidation rollouts of step 7;" in report
    assert finding in report and "| reward of turn 1 | +1.00 | ± 0.14 | 50 | 100 |" in report
    (found,) = json.loads((tmp_path / "eval.json").read_text())["dumps"][0]["calibration"]
    assert found["correlations"][0]["r"] == pytest.approx(1.0) and found["balances"][1]["alike"] == pytest.approx(2.0)


def test_one_rollout_per_question_has_no_group_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["eval", str(dump(tmp_path / "7.jsonl", 3)), "--out", str(tmp_path)]) == 0
    assert "every group has a single rollout" in capsys.readouterr().out


def test_two_dumps_and_their_difference(tmp_path: Path):
    worse, better = dump(tmp_path / "a" / "7.jsonl", 1), dump(tmp_path / "b" / "7.jsonl", 3)
    assert main(["eval", str(worse), str(better), "--out", str(tmp_path)]) == 0
    report = (tmp_path / "eval.md").read_text()
    assert f"## {better} − {worse}" in report
    assert "| mine | +0.500 (+0.000 to +1.000) | +0.500" in report
    assert f"| exact match | {worse} | {better} | paper: MT-PPO (v2) |" in report


def test_sets_that_cannot_be_paired_are_named(tmp_path: Path):
    known, unknown = dump(tmp_path / "a.jsonl", 1), dump(tmp_path / "b.jsonl", 3)
    rows = [json.loads(line) for line in unknown.read_text().splitlines()]
    write_rows(
        unknown, [{**row, "question_id": "" if row["data_source"] == "mine" else row["question_id"]} for row in rows]
    )
    assert main(["eval", str(known), str(unknown), "--out", str(tmp_path)]) == 0
    (_, _, differences) = (tmp_path / "eval.md").read_text().partition(f"## {unknown} − {known}")
    assert "| TriviaQA | +0.500" in differences and "| mine | +0.500" not in differences
    assert "no question is in both: mine." in differences


def test_a_folder_stands_for_its_last_step(tmp_path: Path):
    for step, right in ((0, 0), (9, 1), (10, 4)):
        dump(tmp_path / "run" / "validation" / f"{step}.jsonl", right)
    for folder in ("run", "run/validation"):
        assert main(["eval", str(tmp_path / folder), "--out", str(tmp_path)]) == 0
        (mine,) = (row for row in csv.DictReader((tmp_path / "eval.csv").open()) if row["data_set"] == "mine")
        assert mine["em"] == "1.0" and mine["dump"].endswith("/10.jsonl")


def test_losses_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = dump(tmp_path / "7.jsonl", 2)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_rows(path, [{**rows[0], "outcome/dropped": 1.0, "dropped_reason": "no answer in 20 s"}, *rows[1:]])
    assert main(["eval", str(path), "--out", str(tmp_path)]) == 0
    assert "dropped  missing" in capsys.readouterr().out
    report = (tmp_path / "eval.md").read_text()
    assert "- dropped: no answer in 20 s (1 rollouts)" in report
    assert "| TriviaQA | 0.333 (0.000–1.000) |" in report, "one of the three that are left is right"


def test_training_rollouts_are_said_to_be_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = dump(tmp_path / "7.jsonl", 2)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_rows(path, [{**row, "turn_advantages": row["turn_rewards"], "estimator": "mt_grpo"} for row in rows])
    assert main(["eval", str(path), "--out", str(tmp_path)]) == 0
    assert "0.500" in capsys.readouterr().out.partition("Training rollouts,")[0]
    report = (tmp_path / "eval.md").read_text()
    assert "Do not compare them with a validation." in report
    assert json.loads((tmp_path / "eval.json").read_text())["dumps"][0]["training"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name a validation dump or its folder"),
        (["{tmp}/none"], "does not exist"),
        (["{tmp}"], "has no <step>.jsonl"),
        (["{tmp}/run", "{tmp}/run/7.jsonl"], "the same dump is named twice"),
        (["{tmp}/run", "--resamples", "1"], "resamples is 1"),
        (["--checkpoint", "{tmp}/run"], "expected a folder global_step_N"),
        (["--checkpoint", "{tmp}/global_step_x"], "expected a folder global_step_N"),
        (["--model", "m", "--dry-run"], "data.val_files is not set; add their file after the options: -- data.val"),
        (["--model", "m", "--dry-run", "--", "data.train_files=q"], "data.val_files is not set"),
    ],
)
def test_bad_input(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    dump(tmp_path / "run" / "7.jsonl", 1)
    options = [option.format(tmp=tmp_path) for option in options]
    assert main(["eval", "--out", str(tmp_path / "out"), *options]) == 1
    assert message in capsys.readouterr().err


def dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    fixed = ["--dry-run", "--cpu", "--index", str(tmp_path), "--out", str(tmp_path / "out")]
    own = ["data.val_files=test.parquet", "trainer.logger=[console,wandb]", "actor_rollout_ref.model.path=base"]
    assert main(["eval", *options, *fixed, "--", *own]) == 0
    return shlex.split(capsys.readouterr().out.replace("\\\n", " "))


@pytest.mark.parametrize("around", [True, False])
def test_the_command_for_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str], around: bool):
    (tmp_path / "global_step_20" / "actor").mkdir(parents=True)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("20")
    words = dry_run(tmp_path, capsys, "--checkpoint", str(tmp_path if around else tmp_path / "global_step_20"))
    assert {"VERL_PLATFORM=cpu", f"MTGRPO_INDEX={tmp_path}", "+mtgrpo=mt_grpo", "trainer.val_only=True"} <= set(words)
    assert words.index("data.train_files=${data.val_files}") < words.index("data.val_files=test.parquet")
    assert words.index("trainer.logger=[console]") > words.index("trainer.logger=[console,wandb]")
    assert words[-2:] == ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/global_step_20"]


@pytest.mark.parametrize("own", ["+data.val_files=q", "hydra.searchpath=[file:///mine]", "--config-name=mine"])
def test_questions_may_be_named_in_other_ways(own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["eval", "--model", "m", "--dry-run", "--out", str(tmp_path), "--", own]) == 0
    assert own in shlex.split(capsys.readouterr().out.replace("\\\n", " "))


def test_the_command_for_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = dry_run(tmp_path, capsys, "--model", "Qwen/Qwen2.5-3B-Instruct")
    assert words[-2:] == ["trainer.resume_mode=disable", "actor_rollout_ref.model.path=Qwen/Qwen2.5-3B-Instruct"]
