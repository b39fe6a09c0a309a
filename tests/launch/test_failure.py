"""Error summaries from the output of children that really failed."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

from verl_mtgrpo.launch.failure import failure_report, root_error
from verl_mtgrpo.launch.process import run_child

pytestmark = pytest.mark.process


def _output_of(script: str, tmp_path: Path) -> tuple[int, Path]:
    log = tmp_path / "train.log"
    return run_child([sys.executable, "-c", script], env=dict(os.environ), log=log), log


def test_shows_the_exception_and_not_the_traceback(tmp_path: Path) -> None:
    code, log = _output_of("print('routine\\n' * 50); {}['missing']", tmp_path)
    assert failure_report(code, log).splitlines() == [
        "training failed with exit code 1; its last output:",
        "  KeyError: 'missing'",
        f"  full log: {log}",
    ]


def test_the_raised_exception_counts_and_its_lines_stay_together(tmp_path: Path) -> None:
    script = """
class OurError(ValueError):
    pass
try:
    int("x")
except ValueError as error:
    raise OurError("first line\\nsecond line") from error
"""
    _, log = _output_of(script, tmp_path)
    assert root_error(log.read_text()) == ["__main__.OurError: first line", "second line"] or root_error(
        log.read_text()
    ) == ["OurError: first line", "second line"]


def test_what_destructors_complain_of_at_shutdown_does_not_count(tmp_path: Path) -> None:
    script = """
class Loud:
    def __del__(self):
        raise RuntimeError("in a destructor")
loud = Loud()
raise OSError("the real one")
"""
    _, log = _output_of(script, tmp_path)
    assert "in a destructor" in log.read_text()
    assert root_error(log.read_text()) == ["OSError: the real one"]


def test_a_message_without_traceback_is_shown(tmp_path: Path) -> None:
    """Hydra ends like this on a wrong override."""
    script = "import sys; print('Could not override foo'); print(); sys.exit('Key foo is not in struct')"
    code, log = _output_of(script, tmp_path)
    assert code == 1
    assert root_error(log.read_text()) == ["Could not override foo", "Key foo is not in struct"]


def test_a_silent_kill_is_named(tmp_path: Path) -> None:
    code, log = _output_of("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    report = failure_report(code, log)
    assert "ended by signal 9" in report and "memory" in report and "its log is empty" in report


def test_an_error_of_this_package_in_a_worker_comes_first(tmp_path: Path) -> None:
    """A reward worker refuses its settings: verl continues, and fails later because there are no rollouts."""
    script = """
import sys, traceback
from verl_mtgrpo.errors import ConfigError
try:
    raise ConfigError("rollout.n is 1; set it to 2 or more")
except ConfigError:
    for line in traceback.format_exc().splitlines():
        print("\x1b[36m(RewardLoopWorker pid=7)\x1b[0m " + line)
print("routine " * 100_000)
raise ValueError("Received an empty list as keys.")
"""
    _, log = _output_of(script, tmp_path)
    assert failure_report(1, log).splitlines()[1:4] == [
        "  verl_mtgrpo.errors.ConfigError: rollout.n is 1; set it to 2 or more",
        "  and finally:",
        "  ValueError: Received an empty list as keys.",
    ]


def test_an_error_of_ours_that_the_run_survived_is_not_what_ended_it(tmp_path: Path) -> None:
    script = """
from verl_mtgrpo.errors import RetrievalError, WorkerDiedError
print("verl_mtgrpo.errors.RetrievalError: the search was down for a while")
raise WorkerDiedError("the rollout server died")
"""
    code, log = _output_of(script, tmp_path)
    assert failure_report(code, log).splitlines()[1:] == [
        "  verl_mtgrpo.errors.WorkerDiedError: the rollout server died",
        f"  full log: {log}",
    ]


@pytest.mark.parametrize(
    ("script", "advice"),
    [
        ("open('/dev/full', 'w').write('x' * 100_000)", "what to do: a disk is full: free space"),
        ("import torch; torch.save(torch.zeros(10**5), '/dev/full')", "what to do: a disk is full: free space"),
        ("from ray.exceptions import ActorDiedError; raise ActorDiedError()", "what to do: a process of the run died"),
    ],
    ids=["the system", "torch", "ray"],
)
def test_what_to_do_is_said_where_the_message_does_not(script: str, advice: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    code, log = _output_of(script, tmp_path)
    assert advice in failure_report(code, log)
    assert "verl continues from its last checkpoint" in failure_report(code, log)


@pytest.mark.verl
def test_the_cause_inside_a_ray_actor_is_found(tmp_path: Path) -> None:
    script = """
import ray
ray.init(num_cpus=1, include_dashboard=False)
@ray.remote
class Inner:
    def work(self):
        raise ValueError("lr is -1, expected a positive number")
@ray.remote
class Outer:
    def run(self):
        return ray.get(Inner.options(num_cpus=0).remote().work.remote())
ray.get(Outer.options(num_cpus=0).remote().run.remote())
"""
    log = tmp_path / "train.log"
    # Not below tmp_path: the path of a socket of Ray's would be too long.
    with tempfile.TemporaryDirectory(prefix="mtgrpo-test-", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        env = {**os.environ, "RAY_TMPDIR": ray_folder}
        assert run_child([sys.executable, "-c", script], env=env, log=log) == 1
    assert root_error(log.read_text()) == ["ValueError: lr is -1, expected a positive number"]
