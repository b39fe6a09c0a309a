"""Ray actors for tests of workers that die; each has a process of its own, which need not load verl."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import ray
import transfer_queue as tq

from verl_mtgrpo.errors import ConfigError


@ray.remote
class Worker:
    """Finishes the first of its questions at once, and of the others one rollout: it is in the middle of them."""

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
    """Cannot be made."""

    def __init__(self, *_: Any):
        raise ConfigError("the index does not exist")


@ray.remote
class Scorer:
    """Scores a rollout in so many seconds."""

    async def compute_score(self, data: Any) -> dict[str, Any]:
        await asyncio.sleep(data)
        return {"pid": os.getpid()}

    def pid(self) -> int:
        return os.getpid()
