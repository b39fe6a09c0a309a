"""Send weights from the trainer to standalone rollout servers on the CPU: the checkpoint engine ``tcp_cpu``.

verl's trainer mode ``separate_async`` sends weights through a checkpoint engine; verl's (nccl, nixl, …) need a GPU.
This one puts them into a ``torch.distributed.TCPStore`` that the first training process serves, one message per
bucket of tensors, and takes them out again in every rollout process. Meant for small models: every receiver reads
everything once from one process.

Importing this module registers it: ``actor_rollout_ref.rollout.checkpoint_engine.backend=tcp_cpu``.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]  (documented there)
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry
from verl.workers.rollout.utils import ensure_async_iterator

from verl_mtgrpo.cpu import CHECKPOINT_ENGINE

_PATIENCE = timedelta(seconds=300)  # how long a receiver waits for the next message
_LAST = b"last"


@dataclass(frozen=True)
class Transfer:
    """The location of one update's messages: address of the store and number of the update."""

    host: str
    port: int
    number: int


@CheckpointEngineRegistry.register(CHECKPOINT_ENGINE)  # pyright: ignore  (verl forgot to make it static)
class TcpCheckpointEngine(CheckpointEngine):
    """One side of a weight update; the training process of rank 0 (``is_master``) is the sender.

    Args:
        bucket_size: The most bytes of weights in one message, unless one tensor is larger.
        is_master: True in the sending process.
    """

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        self.bucket_size = bucket_size
        self.is_master = is_master
        self._store: TCPStore | None = None
        self._transfer: Transfer | None = None
        self._sent: list[str] = []
        self._updates = 0

    def prepare(self) -> Transfer | None:
        """Open the store on first use, in the sender; return None elsewhere."""
        if not self.is_master:
            return None
        if self._store is None:
            host = ray.util.get_node_ip_address()
            self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_PATIENCE)
            self._host = host
        self._updates += 1
        return Transfer(self._host, self._store.port, self._updates)

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[Transfer | None]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Tell all processes where this update is."""
        (transfer,) = (found for found in metadata if found is not None)
        return {"transfer": [transfer] * actor_wg_world_size}, {"transfer": [transfer] * rollout_world_size}

    def init_process_group(self, transfer: Transfer) -> None:
        """Remember the update; a receiver connects to the store."""
        if self._store is None:
            self._store = TCPStore(transfer.host, transfer.port, is_master=False, timeout=_PATIENCE)
        self._transfer = transfer

    def finalize(self) -> None:
        """Free the messages, which all receivers have read by now."""
        for key in self._sent:
            self.store.delete_key(key)
        self._sent.clear()

    async def send_weights(
        self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None
    ) -> dict[str, Any]:
        """Send all weights; other processes only iterate over them (they are gathered from all)."""
        bucket: dict[str, torch.Tensor] = {}
        size = 0
        async for name, weight in ensure_async_iterator(weights):
            if not self.is_master:
                continue
            if bucket and size + weight.nbytes > self.bucket_size:
                await self._put(_packed(bucket))
                bucket, size = {}, 0
            bucket[name] = weight.detach().cpu().contiguous()
            size += weight.nbytes
        if self.is_master:
            await self._put(_packed(bucket))
            await self._put(_LAST)
        return {}

    async def receive_weights(self, global_steps: int | None = None) -> AsyncIterator[tuple[str, torch.Tensor]]:
        """Yield all weights in the order they were sent."""
        number = 0
        while (message := await asyncio.to_thread(self.store.get, self._key(number))) != _LAST:
            for name, weight in torch.load(io.BytesIO(message), weights_only=True).items():
                yield name, weight
            number += 1

    @property
    def store(self) -> TCPStore:
        """The store of this process's update."""
        if self._store is None:
            raise RuntimeError("the checkpoint engine tcp_cpu is used before init_process_group()")
        return self._store

    async def _put(self, message: bytes) -> None:
        key = self._key(len(self._sent))
        # torch's annotation says str; the store keeps bytes, and gives bytes back.
        await asyncio.to_thread(self.store.set, key, message)  # pyright: ignore[reportArgumentType]
        self._sent.append(key)

    def _key(self, number: int) -> str:
        assert self._transfer is not None
        return f"{self._transfer.number}/{number}"


def _packed(bucket: dict[str, torch.Tensor]) -> bytes:
    out = io.BytesIO()
    torch.save({name: weight.clone() for name, weight in bucket.items()}, out)  # clone: a view would save its storage
    return out.getvalue()
