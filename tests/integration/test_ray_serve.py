"""Run ``mtgrpo serve --ray`` with two replicas on a private Ray, and kill one of them under load."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.retrieval.services import Service, build_index, free_port, serving
from verl_mtgrpo.retrieval import HTTPRetriever, Passage

pytestmark = pytest.mark.verl

REPLICAS = 2
TOKEN = {"MTGRPO_TEST_TOKEN": "a secret for the test"}


@contextmanager
def private_ray() -> Iterator[dict[str, str]]:
    """Return the environment of a Ray with private files, in a short path because sockets are among them."""
    with tempfile.TemporaryDirectory(prefix="mt-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}


def below(service: Service) -> list[psutil.Process]:
    return psutil.Process(service.process.pid).children(recursive=True)


def replicas(service: Service) -> list[psutil.Process]:
    return [process for process in below(service) if _is_replica(process)]


def _is_replica(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # zombies too, and processes that end meanwhile
        return "ServeReplica" in " ".join(process.cmdline())
    return False


def test_one_of_two_replicas_is_killed_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(*next(iter(TOKEN.items())))
    index = build_index(tmp_path / "index", 1000)
    options = ("--ray", "--replicas", REPLICAS, "--replica-cpus", 0.5, "--token-env", "MTGRPO_TEST_TOKEN")
    with private_ray() as env, serving("serve", index, *options, "--port", free_port(), env=env) as service:
        family = below(service)
        try:
            _load_and_kill(service)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(timeout=30) == 0
        finally:
            family += below(service) if service.process.poll() is None else []
            _, alive = psutil.wait_procs(family, timeout=15)
            for process in alive:
                process.kill()
        assert not alive, "Ray left processes behind"
        logs = [path for path in Path(env["RAY_TMPDIR"]).rglob("*") if path.is_file()]
        assert any("ServeReplica" in path.name or "replica" in path.name for path in logs)
        secret = TOKEN["MTGRPO_TEST_TOKEN"].encode()
        assert not [path for path in logs if secret in path.read_bytes()], "the token is in no log of Ray's"


def _load_and_kill(service: Service) -> None:
    client = HTTPRetriever(service.url, patience_s=30, concurrency=8, token_env="MTGRPO_TEST_TOKEN")
    first = replicas(service)
    assert len(first) == REPLICAS
    done: list[float] = []
    stop = threading.Event()

    def ask(start: int) -> list[tuple[int, list[Passage]]]:
        found = []
        number = start
        while not stop.is_set():
            found.append((number % 1000, client.search([f"uid{number % 1000} town"], 2)[0]))
            done.append(time.monotonic())
            number += 8
        return found

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(ask, start) for start in range(8)]
        try:
            _wait(lambda: len(done) >= 200, 20)
            os.kill(first[0].pid, signal.SIGKILL)
            killed = time.monotonic()
            # Long enough for Ray Serve to notice it and to start another one.
            _wait(lambda: len({p.pid for p in replicas(service)} - {first[0].pid}) == REPLICAS, 30)
            replaced = time.monotonic()
            _wait(lambda: sum(moment > replaced for moment in done) >= 200, 20)
        finally:
            stop.set()
        answers = [answer for call in calls for answer in call.result()]
    assert all(hits[0].id == f"p{number}" and len(hits) == 2 for number, hits in answers)
    assert client.counts["failed_calls"] == 0
    gap = max(later - earlier for earlier, later in itertools.pairwise(done))
    print(
        f"{len(answers)} answers, none mixed; a new replica after {replaced - killed:.1f} s, longest time without any "
        f"answer {gap:.2f} s; {dict(client.counts)}"
    )


def _wait(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
