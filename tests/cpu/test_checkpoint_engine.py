"""Weights through the store and out again: values, names, order, buckets, several receivers, several updates."""

from __future__ import annotations

import asyncio

import pytest
import torch

pytest.importorskip("verl")

from verl_mtgrpo.cpu.checkpoint_engine import TcpCheckpointEngine

pytestmark = pytest.mark.imports_verl

WEIGHTS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor([1, 2], dtype=torch.int64),
    "c": torch.randn(40, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "d": torch.arange(12.0).view(3, 4)[:, 1],  # a view that is not contiguous
    "e": torch.zeros(0),
}


async def update(sender, others, receivers, weights) -> list[dict[str, torch.Tensor]]:
    """Do what verl's CheckpointEngineManager does with the engines of all workers."""
    actors = [sender, *others]
    metadata = [engine.prepare() for engine in [*actors, *receivers]]
    to_actors, to_receivers = TcpCheckpointEngine.build_topology(len(actors), len(receivers), metadata)
    for engine, transfer in zip(actors, to_actors["transfer"], strict=True):
        engine.init_process_group(transfer=transfer)
    for engine, transfer in zip(receivers, to_receivers["transfer"], strict=True):
        engine.init_process_group(transfer=transfer)

    async def receive(engine):
        return {name: weight async for name, weight in engine.receive_weights(global_steps=1)}

    sending = [engine.send_weights(iter(weights.items()), global_steps=1) for engine in actors]
    results = await asyncio.gather(*[receive(engine) for engine in receivers], *sending)
    for engine in [*actors, *receivers]:
        engine.finalize()
    return results[: len(receivers)]


@pytest.mark.parametrize("bucket_size", [1, 64, 1 << 20])
def test_everything_arrives_as_it_was_in_every_update(bucket_size):
    sender = TcpCheckpointEngine(bucket_size, is_master=True)
    other = TcpCheckpointEngine(bucket_size)
    receivers = [TcpCheckpointEngine(bucket_size) for _ in range(2)]
    for factor in (1, 2):
        weights = {name: weight * factor for name, weight in WEIGHTS.items()}
        for received in asyncio.run(update(sender, [other], receivers, weights)):
            assert list(received) == list(weights)
            for name, weight in weights.items():
                assert received[name].dtype == weight.dtype
                assert torch.equal(received[name], weight)
    assert sender.store.num_keys() <= 1, "nothing but the store's own key is kept"


def test_a_receiver_that_asks_first_waits():
    sender, receiver = TcpCheckpointEngine(8, is_master=True), TcpCheckpointEngine(8)

    async def late() -> dict[str, torch.Tensor]:
        transfer = sender.prepare()
        for engine in (sender, receiver):
            engine.init_process_group(transfer=transfer)

        async def receive():
            return {name: weight async for name, weight in receiver.receive_weights()}

        waiting = asyncio.create_task(receive())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await sender.send_weights(iter(WEIGHTS.items()))
        return await waiting

    assert list(asyncio.run(late())) == list(WEIGHTS)


def test_used_too_early():
    with pytest.raises(RuntimeError, match="before init_process_group"):
        TcpCheckpointEngine(8).store  # noqa: B018
