"""Run verl's FSDP2 engines on the CPU, for the policy (language model) and the critic (value model).

Importing this module registers them; it is imported right after verl's own FSDP engines.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from verl.utils.fsdp_utils import get_init_weight_context_manager
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

from verl_mtgrpo.errors import ConfigError

_CPU_GROUP = "add +mtgrpo_cpu=default to the command line, which sets it"


class _CpuFSDP:
    """Base of both engines: what differs from verl's on a GPU."""

    def __init__(self, model_config: Any, engine_config: Any, *args: Any, **kwargs: Any) -> None:
        _check_config(model_config, engine_config)
        # verl's decorator hides its classes from type checkers: what is read of them is said here.
        self.model_config: Any
        self.engine_config: Any
        self.device_mesh: Any
        super().__init__(model_config, engine_config, *args, **kwargs)  # pyright: ignore[reportCallIssue]

    def _build_fsdp_module(self, module: nn.Module) -> nn.Module:
        """Build the module as verl does, but do not offload a forward-only model (the reference policy).

        verl offloads it "to the CPU" with pinned memory, which needs an accelerator to pin for.
        """
        config = self.engine_config
        self.engine_config = dataclasses.replace(config, forward_only=False)
        try:
            return super()._build_fsdp_module(module)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            self.engine_config = config


@EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu")
class CpuLanguageModelEngine(_CpuFSDP, FSDPEngineWithLMHead):
    """The engine of the policy and the reference policy."""


@EngineRegistry.register(model_type="value_model", backend="fsdp2", device="cpu")
class CpuValueModelEngine(_CpuFSDP, FSDPEngineWithValueHead):
    """The critic."""

    def _build_module(self) -> nn.Module:
        """Build the value model with the attention of its config (sdpa).

        verl's ``load_valuehead_model`` always requests flash_attention_2, whatever the config says, and
        reports its absence as a missing ``trl``.
        """
        from transformers import AutoModelForTokenClassification

        hf_config = self.model_config.hf_config
        hf_config.num_labels = 1
        hf_config.classifier_dropout = 0.0
        dtype = PrecisionType.to_dtype(self.engine_config.model_dtype or torch.float32)
        init_context = get_init_weight_context_manager(
            use_meta_tensor=not hf_config.tie_word_embeddings, mesh=self.device_mesh
        )
        with init_context():
            return AutoModelForTokenClassification.from_pretrained(
                self.model_config.local_path,
                dtype=dtype,
                config=hf_config,
                trust_remote_code=self.model_config.trust_remote_code,
            ).to(dtype)


def _check_config(model_config: Any, engine_config: Any) -> None:
    """Refuse settings that would fail on the CPU much later, or with a misleading message."""
    wanted = {
        "model.use_remove_padding": (model_config.use_remove_padding, False),
        "model.enable_gradient_checkpointing": (model_config.enable_gradient_checkpointing, False),
        "model.use_liger": (model_config.use_liger, False),
        "model.use_fused_kernels": (model_config.use_fused_kernels, False),
        "fsdp_config.use_torch_compile": (engine_config.use_torch_compile, False),
        "fsdp_config.param_offload": (engine_config.param_offload, False),
        "fsdp_config.optimizer_offload": (engine_config.optimizer_offload, False),
        "fsdp_config.offload_policy": (engine_config.offload_policy, False),
    }
    for key, (got, expected) in wanted.items():
        if got != expected:
            raise ConfigError(f"{key}={got} does not work on VERL_PLATFORM=cpu", expected=str(expected), fix=_CPU_GROUP)
    attention = model_config.hf_config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise ConfigError(
            f"attn_implementation={attention} does not run on VERL_PLATFORM=cpu",
            expected="sdpa or eager",
            fix=f"{_CPU_GROUP} (model.override_config.attn_implementation=sdpa)",
        )
