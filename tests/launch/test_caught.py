"""Test that a script's command of verl is found out by running the script, and that verl itself never starts."""

from __future__ import annotations

import json
import os
import sys

import pytest

from verl_mtgrpo.cli.main import main
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.launch.caught import OVERRIDES, VARIABLE, caught, runs_a_script, stop_if_asked

pytestmark = pytest.mark.process

SCRIPT = """\
set -euo pipefail
export PASSAGES=here "EMPTY="
python3 -c 'print("another program of the script")' > other.txt
mkdir -p deep && cd deep
for seed in 7; do
    exec "${PYTHON:-python3}" -u -m verl.trainer.main_ppo "a=x y" b=$((1 + seed)) "$@"
done
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHON", raising=False)
    (tmp_path / "train.sh").write_text(SCRIPT)
    return tmp_path / "train.sh"


@pytest.mark.parametrize("python", [None, sys.executable])
def test_the_shell_works_the_command_out(script, python, monkeypatch):
    if python:
        monkeypatch.setenv("PYTHON", python)
    found = caught(["bash", "train.sh", "c=3"])
    assert found.words == ("-u", "-m", "verl.trainer.main_ppo", "a=x y", "b=8", "c=3")
    assert found.env == {"PASSAGES": "here", "EMPTY": ""}
    assert found.cwd == script.parent / "deep"
    assert (script.parent / "other.txt").read_text() == "another program of the script\n"
    assert VARIABLE not in os.environ


def test_a_script_that_does_not_come_to_verl(script):
    script.write_text("echo no >&2\nexit 3\n")
    with pytest.raises(ConfigError, match=r"ended with 3 and did not run verl\.trainer\.main_ppo"):
        caught([f"./{script.name}"])
    script.write_text("sleep 30\n")
    with pytest.raises(ConfigError, match=r"did not come to its command of verl within 0\.5 s"):
        caught(["bash", "train.sh"], timeout_s=0.5)


@pytest.mark.parametrize(
    ("words", "is_one"),
    [(["bash", "x"], True), (["/bin/sh", "x"], True), (["runs/run.sh"], True), (["a=1"], False), ([], False)],
)
def test_what_is_taken_for_a_script(words, is_one):
    assert runs_a_script(words) is is_one


def test_a_python_that_is_not_found_by_name_writes_its_command_down_and_ends(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "said"))
    monkeypatch.setattr(sys, "argv", ["main_ppo.py", "a=1"])
    with pytest.raises(SystemExit, match="nothing is trained"):
        stop_if_asked()
    assert json.loads((tmp_path / "said").read_text())["words"] == ["-m", "verl.trainer.main_ppo", "a=1"]


def test_a_run_whose_overrides_were_lost_does_not_start(monkeypatch):
    stop_if_asked()
    monkeypatch.setenv(OVERRIDES, "+mtgrpo=mt_grpo")
    with pytest.raises(SystemExit, match=r"the overrides of run\.sh did not reach verl"):
        stop_if_asked()


@pytest.mark.compose
def test_the_doctor_checks_the_command_of_a_script_where_the_script_runs_it(script, capfd):
    pytest.importorskip("verl")
    main(["doctor", "--quick", "--json", "--", "bash", "train.sh", "no.such.key=1"])
    findings = json.loads(capfd.readouterr().out)["findings"]
    assert [one["message"] for one in findings if one["check"] == "config"] == ["verl has no setting a"]
    assert os.getcwd() == str(script.parent) and "PASSAGES" not in os.environ


@pytest.mark.compose
@pytest.mark.parametrize(("option", "says"), [("0", "--try-step is 0, expected 1 or more")])
def test_steps_to_try(script, option, says, capfd):
    pytest.importorskip("verl")
    assert main(["doctor", "--try-step", option, "--", "bash", "train.sh"]) == 1
    assert says in capfd.readouterr().out
