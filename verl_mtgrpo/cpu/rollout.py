"""Send the weights to the rollout server after every update: the training process's side."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from typing import Any

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.utils import ensure_async_iterator

from verl_mtgrpo.cpu.server import server_name
from verl_mtgrpo.errors import ConfigError


class CpuRollout(BaseRollout):
    """verl's rollout adapter for ``hf_cpu``: training process r feeds the server of replica r."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1) -> None:
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = int(os.environ["RANK"]) if replica_rank == -1 else replica_rank
        self.is_leader_rank = True
        self._server: Any = None

    @property
    def server(self) -> Any:
        """The Ray actor of this replica's server."""
        if self._server is None:  # started after this object
            self._server = ray.get_actor(server_name(self.replica_rank))
        return self._server

    async def update_weights(
        self,
        weights: Iterable[tuple[str, torch.Tensor]] | AsyncIterator[tuple[str, torch.Tensor]],
        global_steps: int | None = None,
        wire_format: str = "named_tensors",
        **kwargs: Any,
    ) -> None:
        """Send all weights without a cast, and wait until the server uses them."""
        if wire_format != "named_tensors":
            raise ConfigError(
                f"weights arrive as {wire_format!r}", expected="named_tensors, the only format of the CPU rollout"
            )
        # The generator gathers shards from all ranks, so every rank must exhaust it.
        state = {name: weight.detach().cpu() async for name, weight in ensure_async_iterator(weights)}
        await self.server.load_weights.remote(state, global_steps)

    async def resume(self, tags: list[str]) -> None:
        """Do nothing: nothing was freed."""
        return None

    async def release(self) -> None:
        """Do nothing: there is no device memory to free."""
        return None
