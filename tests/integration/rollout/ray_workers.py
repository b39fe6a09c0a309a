"""Ray actors for tests of dying workers; each has a separate process that does not have to load verl."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import ray
import transfer_queue as tq

from verl_mtgrpo.errors import ConfigError


@ray.remote
class Worker:
    """Finishes its first question at once and one rollout of each other question, and then stays in the middle."""

    def __init__(self, _config: Any, _llm: Any, _teacher: Any, _rewards: Any):
        tq.init()

    def generate_sequences(self, batch: Any) -> None:
        uids = [str(uid) for uid in batch["uid"]]
        for uid in uids:
            tq.kv_batch_put(keys=[uid], partition_id="train", tags=[{"status": "running"}])
            tq.kv_batch_put(keys=[f"{uid}_0_0"], partition_id="train", tags=[{"status": "success", "pid": os.getpid()}])
        tq.kv_batch_put(keys=uids[:1], partition_id="train", tags=[{"status": "finished"}])

    def pid(self) -> int:
        return os.getpid()


@ray.remote
class Broken(Worker.__ray_actor_class__):
    """Fails in its constructor."""

    def __init__(self, *_: Any):
        raise ConfigError("the index does not exist")


@ray.remote
class Scorer:
    """Takes a given number of seconds to score a rollout."""

    async def compute_score(self, data: Any) -> dict[str, Any]:
        await asyncio.sleep(data)
        return {"pid": os.getpid()}

    def pid(self) -> int:
        return os.getpid()
