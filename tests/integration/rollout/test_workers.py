"""Let workers die under a real Ray and a real TransferQueue; only their work is made up."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("verl")

import numpy as np
import ray
import transfer_queue as tq
from ray.exceptions import ActorDiedError, RayActorError
from verl.utils import tensordict_utils as tu
from verl.utils.ray_utils import auto_await

from tests.composed import composed
from tests.integration.rollout.ray_choosers import Chooser
from tests.integration.rollout.ray_workers import Broken, Scorer, Worker
from tests.queues import own_queue
from verl_mtgrpo.errors import WorkerDiedError
from verl_mtgrpo.integration.rollout import workers
from verl_mtgrpo.integration.rollout.workers import RewardWorkers, TurnAgentLoopManager

pytestmark = [pytest.mark.verl, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Start a Ray and a TransferQueue for this module."""
    with own_queue():
        yield


class Manager(TurnAgentLoopManager):
    def __init__(self, *args: Any):
        super().__init__(*args)
        self.agent_loop_workers_class = Worker


@pytest.fixture
def manager(cluster: None) -> Iterator[Manager]:
    settings = composed("actor_rollout_ref.rollout.agent.num_workers=2", preset="mt_grpo")
    made = Manager(settings, None)
    auto_await(made._init_agent_loop_workers)()
    yield made
    for worker in made.agent_loop_workers:
        with suppress(RayActorError):
            ray.kill(worker)


def send(manager: Manager, *uids: str) -> None:
    batch = tu.get_tensordict({"uid": np.array(uids, dtype=object)})
    tags = [{"is_prompt": True, "status": "pending", "global_steps": 1} for _ in uids]
    tq.kv_batch_put(keys=list(uids), partition_id="train", tags=tags)
    manager.generate_sequences(batch)


def tags() -> dict[str, dict[str, Any]]:
    return tq.kv_list("train")["train"]


def unfinished() -> dict[str, set[str]]:
    return {"train": {uid for uid, tag in tags().items() if tag.get("status") in ("pending", "running")}}


def kill(actor: Any) -> int:
    """Send SIGKILL from outside, and wait until Ray knows."""
    pid = ray.get(actor.pid.remote())
    os.kill(pid, signal.SIGKILL)
    with suppress(RayActorError):
        ray.get(actor.pid.remote(), timeout=30)
    return pid


def until(there: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def look(manager: Manager) -> None:
    manager.next_look = 0.0
    manager.look(unfinished())


def test_what_a_dead_worker_had_is_asked_again_once(manager: Manager):
    send(manager, "a", "b", "c", "d")  # a and b go to the first worker, which finishes a; c and d to the second
    until(lambda: {"a_0_0", "b_0_0", "c_0_0", "d_0_0"} <= set(tags()))
    first, second = manager.agent_loop_workers
    dead = kill(first)
    look(manager)
    assert manager.agent_loop_workers[0] is not first
    assert manager.agent_loop_workers[1] is second
    until(lambda: tags()["b"]["status"] == "finished")
    assert tags()["a_0_0"]["pid"] == dead, "finished questions are left alone"
    assert tags()["b_0_0"]["pid"] == ray.get(manager.agent_loop_workers[0].pid.remote()), "b's rollouts are new ones"
    assert tags()["d"]["status"] == "running", "the other worker's are left alone"
    assert manager.take_asked_again() == 1
    assert manager.take_asked_again() == 0
    kill(manager.agent_loop_workers[1])
    look(manager)
    until(lambda: tags()["d"]["status"] == "finished")
    assert manager.take_asked_again() == 1
    tq.kv_clear(keys=list(tags()), partition_id="train")


def test_a_question_that_two_workers_died_with_is_given_up(manager: Manager, caplog: pytest.LogCaptureFixture):
    send(manager, "e", "f", "g")  # e and f go to the first worker, which finishes e
    until(lambda: tags()["e"]["status"] == "finished" and "f_0_0" in tags())
    manager.tries["f"] = workers.TRIES - 1
    kill(manager.agent_loop_workers[0])
    look(manager)
    assert tags()["f"]["status"] == "failure", "verl goes on with what there is"
    assert "f_0_0" in tags()
    assert manager.take_asked_again() == 0
    assert "0 are sent again and 1 are abandoned" in caplog.text
    tq.kv_clear(keys=list(tags()), partition_id="train")


def test_a_worker_that_died_between_two_steps_is_noticed_in_the_next(manager: Manager):
    kill(manager.agent_loop_workers[0])
    send(manager, "h", "i")
    assert tags()["h"]["status"] == "pending"
    look(manager)
    until(lambda: tags()["h"]["status"] == "finished")
    tq.kv_clear(keys=list(tags()), partition_id="train")


def test_a_worker_that_cannot_be_made_is_not_made_again(manager: Manager):
    manager.agent_loop_workers_class = Broken
    kill(manager.agent_loop_workers[0])
    send(manager, "k", "l")
    look(manager)
    with pytest.raises(ActorDiedError, match="the index does not exist"):
        until(lambda: look(manager))
    tq.kv_clear(keys=list(tags()), partition_id="train")


def chosen(manager: Manager, names: dict[str, str], partition: str) -> dict[str, dict[str, Any]]:
    """Send rows that name agent loops, and return the tag of each rollout that verl's workers began."""
    columns = {"uid": [*names], "agent_name": [*names.values()], "index": [*range(len(names))]}
    batch = tu.get_tensordict({name: np.array(rows, dtype=object) for name, rows in columns.items()})
    tu.assign_non_tensor_data(batch, "global_steps", 1)
    tu.assign_non_tensor_data(batch, "validate", partition == "val")
    tq.kv_batch_put(keys=[*names], partition_id=partition, tags=[{"status": "pending"}] * len(names))
    manager.generate_sequences(batch)
    until(lambda: all(tq.kv_list(partition)[partition][uid]["status"] == "finished" for uid in names), 120)
    there = tq.kv_list(partition)[partition]
    tq.kv_clear(keys=[*there], partition_id=partition)
    return {key: tag for key, tag in there.items() if "loop" in tag}


@pytest.mark.parametrize(
    ("loop", "rollouts"),
    [("mtgrpo_tool_agent", {"h_0_0": 0, "h_1_0": 0, "h_2_0": 0}), ("mtgrpo_tree_agent", {"h_0_0": 3})],
)
def test_verls_worker_gives_rows_of_its_tool_examples_the_loop_of_the_run(
    cluster: None, caplog: pytest.LogCaptureFixture, loop: str, rollouts: dict[str, int]
):
    rollout = "actor_rollout_ref.rollout"
    settings = [f"{rollout}.agent.default_agent_loop={loop}", f"{rollout}.n=3", f"{rollout}.agent.num_workers=2"]
    made = Manager(composed(*settings, preset="arpo"), None)
    made.agent_loop_workers_class = Chooser
    auto_await(made._init_agent_loop_workers)()
    names = {"h": "tool_agent", "i": "my_loop", "k": "tool_agent", "l": "tool_agent"}
    wanted = {**dict.fromkeys(names, loop), "i": "my_loop"}
    trained, validated = chosen(made, names, "train"), chosen(made, names, "val")
    assert {key[0]: tag["loop"] for key, tag in trained.items()} == wanted
    assert {key[0]: tag["loop"] for key, tag in validated.items()} == wanted
    assert {key: tag["leaves"] or 0 for key, tag in trained.items() if key[0] == "h"} == rollouts
    assert caplog.text.count(f"(column agent_name): they are rolled out by this run's loop, {loop}") == 1
    for worker in made.agent_loop_workers:
        ray.kill(worker)


def test_without_a_rollout_server_the_run_stops_and_names_it(manager: Manager):
    server = Scorer.options(name="hf_cpu_server_0").remote()
    ray.get(server.pid.remote())
    manager.actors.add("hf_cpu_server_0")
    look(manager)
    kill(server)
    with pytest.raises(
        WorkerDiedError, match=r"rollout server hf_cpu_server_0 died .* continues from its last checkpoint"
    ):
        look(manager)


def test_what_a_dead_reward_worker_was_scoring_is_scored_by_another(cluster: None, monkeypatch: pytest.MonkeyPatch):
    names = ["reward_loop_worker_0", "reward_loop_worker_1"]
    scorers = [Scorer.options(name=name).remote() for name in names]
    pids = [ray.get(scorer.pid.remote()) for scorer in scorers]
    both = RewardWorkers(scorers)

    async def score_while_one_dies() -> list[int]:
        begun = [asyncio.ensure_future(both.compute_score.remote(1.5)) for _ in range(12)]
        await asyncio.sleep(0.5)
        os.kill(pids[0], signal.SIGKILL)
        return [(await one)["pid"] for one in begun]

    assert set(asyncio.run(score_while_one_dies())) == {pids[1]}
    assert len(both.handles) == 1
    # Start another one in its place, which is found at the next look.
    new = Scorer.options(name=f"{names[0]}_new").remote()
    both.next_count = 0.0
    found = {asyncio.run(both.compute_score.remote(0.0))["pid"] for _ in range(40)}  # type: ignore[arg-type]
    assert found == {pids[1], ray.get(new.pid.remote())}
    kill(new)
    kill(scorers[1])
    monkeypatch.setattr(workers, "_SCORERS_BACK_S", 0.5)
    with pytest.raises(WorkerDiedError, match="none of the 2 reward workers is left"):
        asyncio.run(both.compute_score.remote(0.0))
