"""Run verl's real trainer while its processes die and its disk is full; ``run`` limits the time of each run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

pytest.importorskip("verl")

from tests.integration.runs import QUESTIONS, ROLLOUTS, Steps, run, tool_yaml
from tests.retrieval.services import serving
from tests.training import TrainingRun
from verl_mtgrpo.launch.failure import failure_report

pytestmark = [pytest.mark.verl, pytest.mark.slow]

TWO_OF_EACH = ("actor_rollout_ref.rollout.agent.num_workers=2", "reward.num_workers=2")
NO_VALIDATION = ("trainer.test_freq=-1", "trainer.total_epochs=9")


@contextmanager
def killing(metrics: Path, victims: Sequence[tuple[int, str]]) -> Iterator[list[str]]:
    """Kill Ray actors of a run (by class) as soon as this many steps are logged; return the killed ones."""
    steps, killed = Steps(metrics), []

    def watch() -> None:
        for after, name in victims:
            steps.wait_for(lambda seen, after=after: len(seen) >= after)
            for process in [] if steps.stop else psutil.process_iter():
                if is_of(process, metrics) and process.cmdline()[0].startswith(f"ray::{name}"):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(name)
                    break

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        steps.stop = True
        thread.join()


def is_of(process: psutil.Process, metrics: Path) -> bool:
    try:
        return process.environ().get("VERL_FILE_LOGGER_PATH") == str(metrics) and bool(process.cmdline())
    except psutil.Error:
        return False


def said(result: TrainingRun, folder: Path) -> str:
    """Return the message that `mtgrpo train` would print for the run."""
    return failure_report(result.returncode, folder / "log.txt")


def test_workers_that_die_are_replaced_and_no_rollout_is_lost(assets: Path, tmp_path: Path):
    victims = [(2, "AgentLoopWorker"), (4, "RewardLoopWorker"), (6, "AgentLoopWorker")]
    with killing(tmp_path / "metrics.jsonl", victims) as killed:
        result = run(assets, tmp_path, *TWO_OF_EACH, *NO_VALIDATION, "trainer.total_training_steps=10")
    assert result.returncode == 0, result.tail()
    assert killed == [name for _, name in victims]
    assert set(result.steps) == set(range(1, 11))
    for step in result.steps.values():
        assert step["rollouts_total/asked"] == step["rollouts_total/trained"] == QUESTIONS * ROLLOUTS
        assert step["outcome/failed"] == 0.0
    assert any(step["rollouts_total/repeated"] > 0 for step in result.steps.values())
    assert result.log.count("replaces it") >= 3


def test_a_rollout_server_that_dies_stops_the_run_with_its_name(assets: Path, tmp_path: Path):
    with killing(tmp_path / "metrics.jsonl", [(2, "CpuServer")]) as killed:
        result = run(assets, tmp_path, *NO_VALIDATION, "trainer.total_training_steps=30")
    assert killed == ["CpuServer"]
    assert result.returncode == 1
    assert "WorkerDiedError: the 32 rollouts of step" in (message := said(result, tmp_path))
    assert "the rollout server hf_cpu_server_0 died" in message
    assert "continues from its last checkpoint" in message


def test_rollouts_that_never_end_stop_the_run(assets: Path, tmp_path: Path):
    steps = Steps(tmp_path / "metrics.jsonl")
    with serving("serve", assets / "index") as service:

        def stop_answering() -> None:
            steps.wait_for(lambda seen: len(seen) >= 1)
            service.process.send_signal(signal.SIGSTOP)

        tool = tool_yaml(tmp_path, index=service.url, patience_s=3000.0, request_timeout_s=3000.0)
        stall = "trainer.v1.sampler.sampler_kwargs.stall_timeout_s=15"
        thread = threading.Thread(target=stop_answering)
        thread.start()
        try:
            result = run(assets, tmp_path, tool, stall, *NO_VALIDATION, "trainer.total_training_steps=30")
        finally:
            steps.stop = True
            thread.join()
    assert result.returncode == 1
    assert len(result.steps) < 30
    assert f"StalledError: step {max(result.steps) + 1}: no rollout finished for 15 s" in said(result, tmp_path)


def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room(assets: Path, tmp_path: Path):
    dumps, saved = tmp_path / "rollouts", tmp_path / "checkpoints"
    actor = saved / "global_step_4" / "actor"
    settings = [
        *NO_VALIDATION,
        "trainer.total_training_steps=5",
        "trainer.save_freq=2",
        "trainer.resume_mode=auto",
        f"trainer.rollout_data_dir={dumps}",
    ]
    dumps.mkdir()
    (dumps / "3.jsonl").symlink_to("/dev/full")
    first = run(assets, tmp_path, *settings)
    assert first.returncode == 1
    assert f"StorageError: the rollouts of step 3 could not be written to {dumps}/3.jsonl: No space" in said(
        first, tmp_path
    )
    assert set(first.steps) == {1, 2, 3}, "the step whose dump failed is logged, the next did not begin"
    assert sorted(path.name for path in dumps.iterdir()) == ["1.jsonl", "2.jsonl"]

    actor.mkdir(parents=True)
    (actor / "model_world_size_1_rank_0.pt").symlink_to("/dev/full")
    second = run(assets, tmp_path, *settings)
    assert second.returncode == 1
    assert "StorageError: the checkpoint of step 4 could not be written" in (message := said(second, tmp_path))
    assert "that of step 2 is complete: the next start uses it" in message
    assert min(second.steps) == 3, "went on from step 2"

    (actor / "model_world_size_1_rank_0.pt").unlink()
    third = run(assets, tmp_path, *settings)
    assert third.returncode == 0, third.tail()
    assert set(third.steps) == {3, 4, 5}
    assert (saved / "latest_checkpointed_iteration.txt").read_text() == "5"
