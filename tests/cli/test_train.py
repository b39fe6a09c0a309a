from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from verl_mtgrpo.cli.main import main
from verl_mtgrpo.launch.command import TrainCommand, hydra_value


@pytest.mark.parametrize(
    "value",
    [
        "runs/demo",
        "/a b/c",
        "x=1,y=2",
        "it's",
        "back\\slash",
        "end\\",
        "q\\'q",
        "[a]",
        "{b: 1}",
        "${oc.env:HOME}",
        "1.5",
        "a#b",
    ],
)
def test_hydra_reads_values_back(value: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={hydra_value(value)}"])
    read = override.value()
    assert str(read) == value


@pytest.mark.parametrize(("value", "text"), [(None, "null"), (["a", "b c"], "[a,'b c']"), (3, "3"), (True, "True")])
def test_other_values(value: object, text: str) -> None:
    assert hydra_value(value) == text


def test_the_users_overrides_stand_last() -> None:
    argv = TrainCommand(preset="grpo_or", cpu=True, overrides=("a=1",)).argv("python")
    assert argv[:3] == ["python", "-m", "verl.trainer.main_ppo"]
    assert argv[3:] == [
        "hydra.searchpath=[pkg://verl_mtgrpo.config]", "+mtgrpo=grpo_or", "+mtgrpo_cpu=default", "a=1"
    ]  # fmt: skip


def test_without_cpu_nothing_of_the_cpu_is_asked_for() -> None:
    command = TrainCommand(preset="mt_grpo")
    assert "cpu" not in command.shell_text()
    assert command.variables() == {}


def test_the_printed_command_is_the_command() -> None:
    """A shell splits what is printed into exactly what is run."""
    command = TrainCommand(
        preset="mt_grpo", cpu=True, overrides=("a.b=[1, 2]", "p='x y'"), env={"MTGRPO_INDEX": "/an index"}
    )
    words = shlex.split(command.shell_text().replace("\\\n", " "))
    assert words[:2] == ["VERL_PLATFORM=cpu", "MTGRPO_INDEX=/an index"]
    assert words[2:] == command.argv()


def test_dry_run_prints_and_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["train", "--dry-run", "--cpu", "--index", str(tmp_path), "--", "trainer.nnodes=1", "+x=y"])
    assert code == 0
    words = shlex.split(capsys.readouterr().out.replace("\\\n", " "))
    assert f"MTGRPO_INDEX={tmp_path}" in words
    assert words[-2:] == ["trainer.nnodes=1", "+x=y"]


@pytest.mark.verl
def test_a_failing_run_says_why_and_gives_back_its_code(tmp_path: Path) -> None:
    """verl's real entry point and a config it cannot compose."""
    log = tmp_path / "train.log"
    argv = [sys.executable, "-m", "verl_mtgrpo.cli.main", "train", "--cpu", "--quiet", "--log", str(log)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*argv, "--", "trainer.no_such_key=1", f"hydra.run.dir={tmp_path}"],
        capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no_such_key" in done.stderr and str(log) in done.stderr
    assert len(done.stderr.splitlines()) < 14
    assert "Traceback" not in done.stderr
