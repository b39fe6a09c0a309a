"""Load new weights into a running vLLM on the CPU.

verl loads every bucket of weights into the model as it arrives (``model.load_weights``). That works if vLLM keeps a
weight as it is in the checkpoint. On the CPU vLLM repacks the weights of linear layers for its kernels after loading,
so verl's way raises on the shapes in the receiver, while the sender in the training process waits indefinitely for an
answer. vLLM's ``reload_weights`` knows how to undo that: it takes all weights in checkpoint format and repacks them.

Runs in vLLM's worker process, on the CPU only: ``engine_kwargs.vllm.worker_extension_cls`` names it there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from verl_mtgrpo.cpu.vllm_check import check_installation
from verl_mtgrpo.errors import ConfigError


class ReloadingWorkerExtension(vLLMColocateWorkerExtension):
    """verl's extension of a vLLM worker, which loads weights by vLLM's ``reload_weights``."""

    reload_weights: Callable[..., None]  # of vLLM's worker, which this class is mixed into

    def __new__(cls, **kwargs: Any) -> ReloadingWorkerExtension:
        """Check the versions before verl makes the worker."""
        check_installation()
        return super().__new__(cls, **kwargs)

    def update_weights_from_ipc(
        self, peft_config: dict[str, Any] | None = None, base_sync_done: bool = False, use_shm: bool = False
    ) -> None:
        """Receive all weights, then load them.

        The order matters: any error in the weights is raised after the last bucket was answered, so it
        reaches the trainer as an error instead of leaving it waiting.
        """
        weights: dict[str, torch.Tensor] = {}

        def keep(bucket: list[tuple[str, torch.Tensor]], is_last: bool) -> None:
            # The bucket is a view of shared memory, which the sender fills again after the answer.
            weights.update((name, weight.clone()) for name, weight in bucket)

        receiver = BucketedWeightReceiver(zmq_handle=self._get_zmq_handle(), device=self.device, use_shm=use_shm)
        receiver.receive_weights(on_bucket_received=keep)
        if peft_config and base_sync_done:
            raise ConfigError("a LoRA adapter was sent, but vLLM on the CPU takes full weights only")
        self.reload_weights(weights_iterator=iter(weights.items()))
