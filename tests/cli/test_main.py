from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from verl_mtgrpo.cli.main import build_parser, main
from verl_mtgrpo.version import __version__


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("demo", "compare", "train", "data", "index"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"mtgrpo {__version__}\n"


@pytest.mark.process
def test_starts_without_heavy_imports() -> None:
    script = (
        "import sys; from verl_mtgrpo.cli.main import build_parser; build_parser().format_help(); "
        "print(sorted({'torch', 'verl', 'ray', 'transformers', 'matplotlib', 'tantivy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.process
def test_the_import_check_can_fail() -> None:
    script = "import sys, matplotlib; print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['matplotlib']"


@pytest.mark.parametrize("argv", [["--debug", "demo"], ["demo", "--debug"]])
def test_debug_goes_before_or_after_the_command(argv: list[str]) -> None:
    assert build_parser().parse_args(argv).debug is True
    assert build_parser().parse_args(["demo"]).debug is False


@pytest.mark.parametrize(
    ("argv", "usage", "message"),
    [
        (["lab", "--quick"], "usage: mtgrpo lab [-h]", "mtgrpo lab: error: unrecognized arguments: --quick"),
        (
            ["lab", "learn", "--grou", "4"],
            "usage: mtgrpo lab learn [-h]",
            "mtgrpo lab learn: error: unrecognized arguments:",
        ),
        (["lab", "learn", "--no"], "usage: mtgrpo lab learn [-h]", "mtgrpo lab learn: error: unrecognized arguments:"),
        (["data", "q", "--out", "o", "--no"], "usage: mtgrpo data [-h]", "mtgrpo data: error: unrecognized arguments:"),
        (["--no"], "usage: mtgrpo [-h]", "mtgrpo: error: unrecognized arguments: --no"),
    ],
)
def test_a_wrong_option_shows_the_usage_of_its_command(argv, usage, message, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert shown.startswith(usage) and f"\n{message}" in shown


def test_an_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--steps", "0", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert shown.err == ("mtgrpo: error: the number of training steps is 0; set --steps or DEMO_STEPS to 1 or more\n")


@pytest.mark.process
def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "verl_mtgrpo.cli.main", "--debug", "demo", "--steps", "0", "--out", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and "ConfigError" in done.stderr
