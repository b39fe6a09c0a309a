"""Register verl's rollout server ``hf_kit``: the built-in server of ``verl_mtgrpo.cpu`` on a GPU (or on a CPU).

For a machine with a GPU and without vLLM. A module for ``VERL_USE_EXTERNAL_MODULES``: every process of a run loads it
with verl, and it registers when verl imports its registries. ``MTGRPO_KIT_DEVICE`` says where the model is.

The training process sends its weights through the host, as on the CPU; nothing here is made for speed.
"""

from __future__ import annotations

import os
from typing import Any

import wrapt

NAME, DEVICE_VARIABLE = "hf_kit", "MTGRPO_KIT_DEVICE"


def _register_adapter(module: Any) -> None:
    module._ROLLOUT_REGISTRY[(NAME, "async")] = "verl_mtgrpo.cpu.rollout.CpuRollout"


def _register_replica(module: Any) -> None:
    module.RolloutReplicaRegistry.register(NAME, _replica_class)


def _replica_class() -> type:
    import ray
    import torch
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    from verl.plugin.platform import get_platform

    from verl_mtgrpo.cpu.server import CpuReplica, CpuServer, server_name

    class Server(CpuServer):
        """The built-in server with its model, cache and sampling on the device."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            generator, device = self.thread._generator, self.model.device
            on_host = generator.step

            def step() -> Any:
                with torch.device(device):  # where the tensors that it makes go
                    return on_host()

            generator.step = step

        def _build_model(self) -> torch.nn.Module:
            return super()._build_model().to(os.environ.get(DEVICE_VARIABLE, "cuda"))

    class Replica(CpuReplica):
        """Starts the server next to the replica's training process, so that both use the same GPU."""

        async def launch_servers(self) -> None:
            node = await self.workers[0].__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
            name = server_name(self.replica_rank)  # by which CpuRollout finds it
            # Without these Ray hides the GPU from an actor that claims none; the training process has claimed it.
            shows_gpu = dict.fromkeys(get_platform().ray_noset_envvars(), "1")
            server = (
                ray.remote(Server)
                .options(
                    name=name,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False),
                    runtime_env={"env_vars": {DEVICE_VARIABLE: os.environ.get(DEVICE_VARIABLE, "cuda"), **shows_gpu}},
                    max_concurrency=self.max_concurrency,
                )
                .remote(config=self.config, model_config=self.model_config, replica_rank=self.replica_rank)
            )
            await server.__ray_ready__.remote()
            self.servers = [server]
            self._server_handle = server
            self._server_address = f"ray-actor:{name}"

    return Replica


def register() -> None:
    """Register with verl when verl imports its registries."""
    wrapt.register_post_import_hook(_register_adapter, "verl.workers.rollout.base")
    wrapt.register_post_import_hook(_register_replica, "verl.workers.rollout.replica")


register()
