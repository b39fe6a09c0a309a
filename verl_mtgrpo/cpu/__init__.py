"""Run verl on a machine without an accelerator: platform, engines and rollout server for the CPU.

Everything here goes through verl's own registries, and only after ``register()`` is called, which
the plugin does when ``VERL_PLATFORM=cpu`` is set, never otherwise. The parts:

- ``platform``: the device that verl sees (name "cpu", Ray slots, no-op memory calls);
- ``process_group``: sets the gloo backend in the one verl function that has no parameter for it;
- ``engines``: FSDP2 engines for the policy and the value model on the CPU;
- ``generation``, ``sampling``, ``kv_cache``: batched token generation with a Hugging Face model;
- ``server``, ``rollout``: that generator as a rollout server of verl, named ``hf_cpu``;
- ``checkpoint_engine``: weights for standalone servers (``separate_async``), named ``tcp_cpu``;
- ``vllm_check``, ``vllm_rollout``, ``vllm_worker``, ``vllm_name/``: what vLLM itself needs to serve a run
  here instead (``rollout.name=vllm``, config ``+mtgrpo_cpu=vllm``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

ROLLOUT_NAME = "hf_cpu"
"""The value of ``actor_rollout_ref.rollout.name`` for this package's rollout server."""

VLLM = "vllm"
"""verl's name of its vLLM rollout, which on the CPU runs behind our checks."""

CHECKPOINT_ENGINE = "tcp_cpu"
"""The value of ``actor_rollout_ref.rollout.checkpoint_engine.backend`` in ``separate_async``."""

_registered = False


def register() -> None:
    """Register everything the CPU needs with verl, each part when verl imports its registry.

    Light (imports neither torch nor verl) and idempotent. Registry modules that verl has imported
    already are served at once, the others as soon as they are imported: this runs while ``verl/__init__``
    is still being executed, where importing verl's submodules would be circular.
    """
    global _registered
    if _registered:
        return
    _registered = True
    from wrapt import register_post_import_hook

    for module, hook in _HOOKS.items():
        register_post_import_hook(hook, module)


def _register_platform(module: Any) -> None:
    from verl_mtgrpo.cpu.platform import CpuPlatform

    module.PlatformRegistry.register(platform="cpu")(CpuPlatform)


def _fix_process_group(module: Any) -> None:
    from verl_mtgrpo.cpu.process_group import use_plain_gloo

    use_plain_gloo(module)


def _register_engines(module: Any) -> None:
    importlib.import_module("verl_mtgrpo.cpu.engines")  # registers itself


def _register_rollout_adapter(module: Any) -> None:
    module._ROLLOUT_REGISTRY[(ROLLOUT_NAME, "async")] = "verl_mtgrpo.cpu.rollout.CpuRollout"
    module._ROLLOUT_REGISTRY[(VLLM, "async")] = "verl_mtgrpo.cpu.vllm_rollout.CheckedServerAdapter"


def _register_rollout_replica(module: Any) -> None:
    def load() -> type:
        from verl_mtgrpo.cpu.server import CpuReplica

        return CpuReplica

    module.RolloutReplicaRegistry.register(ROLLOUT_NAME, load)


def _register_checkpoint_engine(module: Any) -> None:
    importlib.import_module("verl_mtgrpo.cpu.checkpoint_engine")  # registers itself


_HOOKS: dict[str, Callable[[Any], None]] = {
    "verl.checkpoint_engine": _register_checkpoint_engine,
    "verl.plugin.platform.platform_manager": _register_platform,
    "verl.utils.distributed": _fix_process_group,
    "verl.workers.engine.fsdp.transformer_impl": _register_engines,
    "verl.workers.rollout.base": _register_rollout_adapter,
    "verl.workers.rollout.replica": _register_rollout_replica,
}
