"""Run real children, and look in the process table for what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from verl_mtgrpo.launch.process import run_child

pytestmark = pytest.mark.process

# Starts a daemon as Ray does (in a new session, without a parent) and an ordinary worker, says so,
# then does as the argument says.
_FAMILY = """
import os, signal, subprocess, sys, time
pids, then = sys.argv[1], sys.argv[2]
sleep = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"]
if os.fork() == 0:
    os.setsid()
    daemon = subprocess.Popen(sleep)
    open(pids, "a").write(f"{daemon.pid}\\n")
    os._exit(0)
os.wait()
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
open(pids, "a").write(f"{worker.pid}\\n{os.getpid()}\\n")
open(pids + ".ready", "w").close()
if then == "stay":
    time.sleep(300)
if then == "ignore":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(300)
sys.exit(3)
"""

# The launcher of such a family, in a separate process, so that we can send signals to it.
_LAUNCHER = """
import os, sys
from pathlib import Path
from verl_mtgrpo.launch.process import run_child
argv = [sys.executable, sys.argv[1], *sys.argv[2:4]]
sys.exit(run_child(argv, env=dict(os.environ), log=Path(sys.argv[2] + ".log")))
"""


@pytest.fixture
def family(tmp_path: Path) -> Path:
    script = tmp_path / "family.py"
    script.write_text(textwrap.dedent(_FAMILY))
    return script


def _pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()]


def _living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def _wait_until_ready(file: Path) -> None:
    deadline = time.monotonic() + 20
    while not Path(f"{file}.ready").exists():
        assert time.monotonic() < deadline, "the family did not start"
        time.sleep(0.05)
    assert len(_living(_pids(file))) == 3, "the test has nothing to look for"


def test_gives_back_the_exit_code_and_ends_detached_grandchildren(family: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    argv = [sys.executable, str(family), str(pids), "exit"]
    assert run_child(argv, env=dict(os.environ), log=tmp_path / "log") == 3
    assert len(_pids(pids)) == 3
    assert _living(_pids(pids)) == []


@pytest.mark.parametrize(
    ("number", "then", "code"),
    [(signal.SIGINT, "stay", -signal.SIGINT), (signal.SIGTERM, "stay", 143), (signal.SIGHUP, "stay", 129)],
)
def test_a_signal_ends_everything(family: Path, tmp_path: Path, number: int, then: str, code: int) -> None:
    pids = tmp_path / "pids"
    # Under nohup the tests themselves ignore a hang-up, and so would what they start.
    heed = partial(signal.signal, number, signal.SIG_DFL)
    launcher = subprocess.Popen([sys.executable, "-c", _LAUNCHER, str(family), str(pids), then], preexec_fn=heed)
    _wait_until_ready(pids)
    launcher.send_signal(number)
    assert launcher.wait(timeout=60) == code
    assert _living(_pids(pids)) == []


def test_an_interrupt_is_heard_also_in_the_background(family: Path, tmp_path: Path) -> None:
    """A shell without job control starts ``command &`` with SIGINT ignored."""
    pids = tmp_path / "pids"
    script = 'trap "" INT; exec "$@"'
    argv = ["sh", "-c", script, "sh", sys.executable, "-c", _LAUNCHER, str(family), str(pids), "stay"]
    launcher = subprocess.Popen(argv)
    _wait_until_ready(pids)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=60) == -signal.SIGINT
    assert _living(_pids(pids)) == []


def test_leaves_other_processes_alone(family: Path, tmp_path: Path) -> None:
    """Start the same program independently at the same time."""
    other_pids = tmp_path / "other"
    other = subprocess.Popen([sys.executable, str(family), str(other_pids), "stay"], start_new_session=True)
    try:
        _wait_until_ready(other_pids)
        argv = [sys.executable, str(family), str(tmp_path / "pids"), "exit"]
        run_child(argv, env=dict(os.environ), log=tmp_path / "log")
        assert len(_living(_pids(other_pids))) == 3
    finally:
        for pid in _pids(other_pids):
            os.kill(pid, signal.SIGKILL)
        other.wait()


def test_output_goes_to_the_log_and_ticks_are_given(tmp_path: Path) -> None:
    log, ticks = tmp_path / "deep" / "log", []
    script = "import sys, time; print('said'); print('complained', file=sys.stderr); time.sleep(1.2)"
    code = run_child([sys.executable, "-c", script], env=dict(os.environ), log=log, on_tick=lambda: ticks.append(1))
    assert code == 0
    assert sorted(log.read_text().split()) == ["complained", "said"]
    assert len(ticks) >= 2


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    run_child([sys.executable, "-c", "pass"], env=dict(os.environ), log=tmp_path / "log")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
