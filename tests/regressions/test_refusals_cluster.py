"""Issue 21, D22, review 8 and 18: a cluster of several nodes.

Review 8 tests `recipes/multi_node/submit.sbatch` with a SLURM and a Ray that only record their arguments.

The output of `ray status` was taken from Ray 2.60 (`ray start --head`, a second node, `ray status`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("verl")

from tests.doctor.setups import fake_package
from tests.recipes import RECIPES
from verl_mtgrpo.doctor import processes as doctor_processes

pytestmark = [pytest.mark.process, pytest.mark.imports_verl]

STATUS = """======== Autoscaler status: 2026-11-26 14:36:09.539018 ========
Node status
---------------------------------------------------------------
Active:
{nodes}
Pending:
 (no pending nodes)
Recent failures:
 (no failures)

Resources
---------------------------------------------------------------
Total Usage:
 0.0/2.0 CPU
 0B/24.56GiB memory

From request_resources:
 (none)
Pending Demands:
 (no resource demands)
"""
PROGRAMS = {
    "scontrol": 'echo "node1"; echo "node2"',
    "mtgrpo": "exec sleep 60",
    # Options, then the program: SLURM would run it on the node of --nodelist.
    "srun": """
        printf '%s\\n' "$SRUN_CPUS_PER_TASK $*" >> "$LOG/srun"
        while [ "${1#--}" != "$1" ]; do shift; done
        exec "$@" """,
    # Each started node appears in the next status.
    "ray": """
        case $1 in
            start) echo node >> "$LOG/begun"; exec sleep 60 ;;
            status)
                echo status >> "$LOG/asked"
                [ "$(wc -l < "$LOG/asked")" -gt 1 ] || { echo "No cluster status. It may take a few seconds"; exit 0; }
                cat "$LOG/status-$(wc -l < "$LOG/begun")" ;;
        esac""",
}


@pytest.fixture
def submit(tmp_path: Path):
    """Run the script, and return the result and the arguments of srun."""
    programs, log = tmp_path / "bin", tmp_path / "log"
    programs.mkdir()
    log.mkdir()
    for name, body in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    for count in (1, 2):
        nodes = "\n".join(f" 1 node_7c2756748c6b2d2bd142{number}" for number in range(count))
        (log / f"status-{count}").write_text(STATUS.format(nodes=nodes))

    def run(status: dict[int, int] | None = None, **environment: str) -> tuple[subprocess.CompletedProcess[str], list]:
        for begun, seen in (status or {}).items():
            shutil.copy(log / f"status-{seen}", log / f"status-{begun}")
        slurm = {
            "SLURM_SUBMIT_DIR": str(RECIPES.parent),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "64",
        }
        env = {**os.environ, **slurm, "LOG": str(log), "PYTHON": sys.executable, "DRY_RUN": "print", **environment}
        env["PATH"] = f"{programs}:{env['PATH']}"
        command = ["bash", str(RECIPES / "multi_node" / "submit.sbatch"), "mt_grpo", "trainer.save_freq=7"]
        with subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as job:
            code = job.wait(60)
            subprocess.run(["kill", "--", f"-{job.pid}"], check=False)  # as SLURM does with the steps of a finished job
            out, err = job.communicate()
        return subprocess.CompletedProcess(command, code, out, err), (log / "srun").read_text().splitlines()

    return run


def test_review_8_steps_have_the_cores_of_the_job_and_wait_for_its_nodes(submit):
    ended, steps = submit()
    assert ended.returncode == 0, ended.stderr
    assert {step.split()[0] for step in steps} == {"64"}, "srun does not inherit --cpus-per-task since SLURM 22.05"
    assert [step.partition("--nodelist=")[2].split()[0] for step in steps].count("node2") == 1
    # The background processes (search, head, workers) may write their lines at any time.
    waited, ran = (
        next(number for number, step in enumerate(steps) if words in step)
        for words in ("wait_for_nodes.sh 2", "run.sh mt_grpo trainer.save_freq=7")
    )
    assert waited < ran
    passed = dict(line.partition("=")[::2] for line in ended.stdout.splitlines())
    assert passed["trainer.nnodes"] == "2" and passed["trainer.save_freq"] == "7"
    assert passed["trainer.default_local_dir"].startswith("/"), "a relative one is another folder on each node"


def test_review_8_a_node_that_does_not_join_is_said(submit):
    ended, steps = submit(status={2: 1}, WAIT_S="1")
    assert ended.returncode != 0
    assert "1 of 2 nodes are in the Ray cluster at node1:6379 after 1 s" in ended.stderr
    assert not [step for step in steps if "run.sh" in step], "no training with too few nodes"


@pytest.mark.parametrize(
    ("given", "expected"), [("q", f"{os.getcwd()}/q"), ("/far/q", "/far/q"), ("hdfs://q", "hdfs://q")]
)
def test_review_8_questions_are_absolute(given, expected):
    script = ["bash", str(RECIPES / "multi_node" / "run.sh")]
    env = {**os.environ, "DATA": given, "DRY_RUN": "print"}
    printed = subprocess.run(script, env=env, capture_output=True, text=True, check=True).stdout
    assert f"data.train_files={expected}/train.parquet" in printed.splitlines()


# ---- review 18: what the nodes of a cluster have installed


def test_review_18_nodes_without_or_with_another_version_are_said():
    here = {name: version(name) for name in ("verl-mtgrpo", "verl")}
    nodes = [
        {"address": "10.0.0.1", "versions": here},
        {"address": "10.0.0.2", "versions": {**here, "verl-mtgrpo": None}},
        {"address": "10.0.0.3", "versions": {**here, "verl": "0.9.0"}},
        {"address": "10.0.0.4", "error": "GetTimeoutError: no answer"},
    ]
    missing, other, silent = doctor_processes.compare_nodes(nodes)
    assert (missing.status, "node 10.0.0.2 has no verl-mtgrpo" in missing.message) == ("fail", True) and missing.fix
    assert (other.status, other.message) == ("warn", "node 10.0.0.3 has verl 0.9.0, here it is 0.9.1") and other.fix
    assert (silent.status, "10.0.0.4 gave no answer" in silent.message) == ("warn", True)
    (well,) = doctor_processes.compare_nodes(nodes[:1])
    assert well.status == "ok" and "1 nodes, all with verl-mtgrpo" in well.message


@pytest.mark.verl
@pytest.mark.slow
def test_review_18_with_a_real_cluster(tmp_path, monkeypatch):
    """Return a node whose Ray was started in an environment with another version of this package."""
    ray = pytest.importorskip("ray")
    path = os.environ.get("PYTHONPATH", "")
    other = fake_package(tmp_path, "verl-mtgrpo", "0.0.1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with tempfile.TemporaryDirectory(prefix="mtg", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("PYTHONPATH", f"{other}:{path}")
        ray.init(num_cpus=1, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
        try:
            monkeypatch.setenv("PYTHONPATH", path)
            monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
            (found,) = doctor_processes.cluster()
        finally:
            ray.shutdown()
    assert found.status == "warn" and f"has verl-mtgrpo 0.0.1, here it is {version('verl-mtgrpo')}" in found.message
