"""verl's own rollout worker, up to the point where it has chosen an agent loop."""

from __future__ import annotations

from typing import Any

import ray
import transfer_queue as tq
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ


@ray.remote
class Chooser(AgentLoopWorkerTQ.__ray_actor_class__):
    """Writes the loop that verl chose for a rollout into its tag, instead of running it; loads no model."""

    def __init__(self, config: Any, _llm: Any, _teacher: Any, _rewards: Any):
        tq.init()
        self.config, self.background_tasks = config, set()

    async def _run_agent_loop(
        self, _sampling: Any, trajectory: Any, *, agent_name: str, uid: str, session_id: int, **row: Any
    ) -> None:
        tag = {"status": "success", "loop": agent_name, "leaves": row.get("mtgrpo_leaves")}
        partition = "val" if trajectory["validate"] else "train"
        await tq.async_kv_put(key=f"{uid}_{session_id}_0", partition_id=partition, tag=tag)
