"""Test issue 21, D22: events that must not end a healthy run. Numbers are those of the review (`review-gpu.md`)."""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("verl")

import ray
from omegaconf import OmegaConf
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError, RpcError

import verl_mtgrpo
from verl_mtgrpo.errors import StorageError, WorkerDiedError
from verl_mtgrpo.integration.rollout import workers
from verl_mtgrpo.integration.rollout.search_tool import SearchTool
from verl_mtgrpo.integration.rollout.workers import RewardWorkers, TurnAgentLoopManager
from verl_mtgrpo.integration.trainer.storage import _explained
from verl_mtgrpo.retrieval import BM25Index, Passage

pytestmark = pytest.mark.imports_verl

PACKAGE = Path(verl_mtgrpo.__path__[0])

# ---- review 7: a busy head of Ray ends nothing

BUSY = (
    "There was timeout in getting the list of named actors, probably because the GCS server is dead or under high load"
)
"""Ray 2.60's own messages (``strings ray/_raylet.so``); the test with a real head below checks that they are raised."""
SILENCES = [
    pytest.param(lambda: GetTimeoutError(BUSY), id="time-out"),
    pytest.param(lambda: RpcError("unavailable", 14), id="rpc"),
    pytest.param(lambda: ConnectionResetError("reset"), id="connection"),
]


def manager(actors: set[str], **more: Any) -> TurnAgentLoopManager:
    """Return the part of a manager that watches workers."""
    made = TurnAgentLoopManager.__new__(TurnAgentLoopManager)
    config = OmegaConf.create({"reward": {"reward_model": {"enable": False}}})
    known = {"config": config, "actors": actors, "names": [], "reward_names": [], "given": {}, "sent_again": {}}
    state = {"tries": {}, "head": workers.RayHead(), "patience_s": math.inf, "next_look": 0.0}
    vars(made).update({**known, **state, **more})
    return made


def answers(monkeypatch: pytest.MonkeyPatch, *given: Any) -> None:
    """Make ``ray.util.list_named_actors`` return these in turn and repeat the last; errors are raised."""
    left = list(given)

    def answer(*_: Any, **__: Any) -> Any:
        one = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(one, Exception):
            raise one
        return one

    monkeypatch.setattr(ray.util, "list_named_actors", answer)


@pytest.mark.parametrize("silence", SILENCES)
def test_review_7_a_look_without_an_answer_is_made_again(silence: Callable[[], Exception], monkeypatch, caplog):
    looking = manager({"vllm_server_0"})
    answers(monkeypatch, silence(), silence(), silence(), ["vllm_server_0"], [])
    for _ in range(3):
        looking.next_look = 0.0
        looking.look({})
    assert looking.check_servers() == set()
    said = [record.message for record in caplog.records]
    assert len(said) == 2, "once when it falls silent, once when it answers again"
    assert "Ray's head does not answer" in said[0] and "answers again" in said[1]
    with pytest.raises(WorkerDiedError, match="rollout server vllm_server_0 died"):
        looking.check_servers()  # an answer that says so counts


def test_review_7_a_death_is_an_answer(monkeypatch):
    """Errors about an actor or a task do not count as silence."""
    for error in (RayActorError(), RayTaskError("f", "trace", ValueError("x"))):
        answers(monkeypatch, error)
        with pytest.raises(type(error)):
            manager(set()).check_servers()


def test_review_7_a_worker_is_replaced_when_the_head_can(monkeypatch, caplog):
    """Creating an actor with a name asks the head too."""
    made: list[str] = []

    class Workers:
        @staticmethod
        def options(name: str) -> Any:
            def remote(*_: Any) -> str:
                if not made:
                    made.append("tried")
                    raise GetTimeoutError("There was timeout in getting the actor handle")
                return "new"

            return SimpleNamespace(remote=remote)

    old = "agent_loop_worker_0_old"
    looking = manager(
        {old}, names=[old], agent_loop_workers=["dead"], agent_loop_workers_class=Workers,
        llm_client=None, teacher_client=None, reward_loop_worker_handles=None,
    )  # fmt: skip
    answers(monkeypatch, [])
    looking.look({})
    assert (looking.agent_loop_workers, looking.names) == (["dead"], [old]), "as it was: the next look tries again"
    looking.next_look = 0.0
    looking.look({})
    assert looking.agent_loop_workers == ["new"] and looking.names[0].startswith("agent_loop_worker_0_")
    assert "replaces it" in caplog.text


class _Scorer:
    """A reward worker that is dead, or not."""

    def __init__(self, dead: bool) -> None:
        self.dead = dead
        self.compute_score = SimpleNamespace(remote=self._score)

    async def _score(self, data: Any) -> dict[str, Any]:
        if self.dead:
            raise RayActorError()
        return {"reward_score": data}


def test_review_7_a_rollout_waits_for_the_head_and_not_for_nothing(monkeypatch):
    answers(monkeypatch, GetTimeoutError(BUSY), ["reward_loop_worker_1"])
    monkeypatch.setattr(ray, "get_actor", lambda name: _Scorer(dead=False))
    monkeypatch.setattr(workers, "_SCORERS_BACK_S", 0.1)  # counts from the time when Ray answers again
    both = RewardWorkers([_Scorer(dead=True)], patience_s=60.0)
    assert asyncio.run(both.compute_score.remote(0.5)) == {"reward_score": 0.5}  # type: ignore[arg-type]
    answers(monkeypatch, GetTimeoutError(BUSY))
    with pytest.raises(WorkerDiedError, match=r"Ray's head has not said for .* which ones are left"):
        asyncio.run(RewardWorkers([_Scorer(dead=True)], patience_s=0.5).compute_score.remote(0.5))  # type: ignore[arg-type]


@pytest.mark.parametrize(("setting", "expected"), [(90, 90.0), (None, math.inf)])
def test_review_7_patience_is_that_of_the_stall_guard(setting, expected):
    config = OmegaConf.create({"trainer": {"v1": {"sampler": {"sampler_kwargs": {"stall_timeout_s": setting}}}}})
    assert workers.stall_timeout(config) == expected


@pytest.fixture
def stopped_head() -> Iterator[Any]:
    """Stop the head of a Ray with SIGSTOP, and return a function that continues it."""
    psutil = pytest.importorskip("psutil")
    before = os.environ.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory(prefix="mtg", dir="/tmp", ignore_cleanup_errors=True) as folder:
        # Ray waits a minute for its head; two seconds here.
        brief = {"gcs_server_request_timeout_seconds": 2}
        ray.init(num_cpus=1, include_dashboard=False, _temp_dir=folder, log_to_driver=False, _system_config=brief)
        (head,) = [child for child in psutil.Process().children() if "gcs_server" in child.name()]
        head.send_signal(signal.SIGSTOP)
        try:
            yield lambda: head.send_signal(signal.SIGCONT)
        finally:
            head.send_signal(signal.SIGCONT)
            ray.shutdown()
            if before is not None:
                os.environ["RAY_ADDRESS"] = before


@pytest.mark.verl
@pytest.mark.slow
def test_review_7_with_a_real_head_that_hangs(stopped_head, caplog):
    looking = manager(set())
    start = time.monotonic()
    looking.look({})
    assert 1.5 < time.monotonic() - start < 10
    assert "Ray's head does not answer (GetTimeoutError: There was timeout in getting the list of named" in caplog.text
    stopped_head()
    looking.next_look = 0.0
    looking.look({})
    assert "answers again" in caplog.text


# ---- review 27: advice to make room is for full disks only


def _raised_by_safetensors() -> Exception:
    """Its error is not an ``OSError``; the text is Rust's for errno 28 (ENOSPC)."""
    from safetensors import SafetensorError

    return SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(lambda: RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), id="CUDA out of memory"),
        pytest.param(lambda: RayActorError(), id="dead worker"),
        pytest.param(lambda: GetTimeoutError("Get timed out"), id="time-out of Ray"),  # an OSError by its bases
        pytest.param(lambda: ValueError("unexpected key"), id="bug"),
        pytest.param(lambda: RayTaskError("save", "trace", RuntimeError("NCCL error")), id="in a worker"),
    ],
)
def test_review_27_other_errors_pass_as_they_are(error: Callable[[], Exception], tmp_path: Path):
    raised = error()
    with pytest.raises(type(raised)) as caught, _explained(tmp_path, 10):
        raise raised
    assert caught.value is raised


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(lambda: OSError(28, "No space left on device"), id="disk full"),
        pytest.param(
            lambda: RayTaskError("save", "OSError: No space left on device", OSError(28, "No space left on device")),
            id="in a worker",
        ),
        pytest.param(_raised_by_safetensors, id="safetensors"),
    ],
)
def test_review_27_a_full_disk_is_told_to_make_room(error: Callable[[], Exception], tmp_path: Path):
    with pytest.raises(StorageError, match=r"step 10 could not be written .*free space"), _explained(tmp_path, 10):
        raise error()


# ---- review 26: a search or a cache blocks neither the event loop nor verl's threads


def busy_default_threads(loop: asyncio.AbstractEventLoop, until: threading.Event) -> None:
    """Keep all default threads of a loop busy, as verl's tokenising does."""
    loop.set_default_executor(ThreadPoolExecutor(1))
    loop.run_in_executor(None, until.wait)


def test_review_26_a_search_waits_for_no_default_thread(tmp_path: Path):
    index = BM25Index.build([Passage("1", "Tower", "The tower is in Oslo.")], tmp_path, source="made by the test")
    done = threading.Event()

    async def search() -> list[list[Passage]]:
        busy_default_threads(asyncio.get_running_loop(), done)
        try:
            return await asyncio.wait_for(index.asearch(["tower"], 1), 10)
        finally:
            done.set()

    assert asyncio.run(search())[0][0].id == "1"


def test_review_26_a_cache_that_another_process_writes_holds_up_nothing(tmp_path: Path):
    """SQLite waits up to 30 s for another writer; rollouts of the same worker continue meanwhile."""
    index = BM25Index.build([Passage("1", "Tower", "The tower is in Oslo.")], tmp_path / "i", source="made by the test")
    tool = SearchTool({"type": "native", "index": str(index.path), "cache": str(tmp_path / "c.db")}, None)
    done = threading.Event()

    async def ticks() -> tuple[int, Any]:
        busy_default_threads(asyncio.get_running_loop(), done)
        searching = asyncio.ensure_future(tool.execute("", {"query": "tower"}))
        count = 0
        while not searching.done():
            await asyncio.sleep(0.02)
            count += 1
        done.set()
        return count, searching.result()[2]

    with sqlite3.connect(tmp_path / "c.db", isolation_level=None, check_same_thread=False) as other:
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(1.5, other.execute, ["COMMIT"]).start()
        start = time.monotonic()
        count, info = asyncio.run(ticks())
        assert time.monotonic() - start > 1.0, "the cache was locked meanwhile"
    assert info["ok"] and [one["id"] for one in info["documents"]] == ["1"]
    assert count >= 10, "the event loop went on"


def test_review_26_all_who_run_on_an_event_loop_ask_caches_in_a_thread():
    asked = {str(path): re.findall(r"\b_cache\.(a?get|a?put)\(", path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert {name for names in asked.values() for name in names} == {"aget", "aput"}, asked
