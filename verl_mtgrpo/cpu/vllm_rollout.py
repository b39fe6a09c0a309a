"""Send weights to vLLM on the CPU: verl's own adapter, behind checks.

Registered for rollout name ``vllm`` on the platform ``cpu`` only.
"""

from __future__ import annotations

from typing import Any

from verl_mtgrpo.cpu.vllm_check import check_config, check_installation

# Before the import below (verl's package hands it on), which fails without the name `vllm`, but with another message.
check_installation()

from verl.workers.rollout.vllm_rollout import ServerAdapter  # noqa: E402  # pyright: ignore[reportPrivateImportUsage]


class CheckedServerAdapter(ServerAdapter):
    """verl's adapter, which refuses at start-up what would fail silently later."""

    def __init__(self, config: Any, model_config: Any, *args: Any, **kwargs: Any) -> None:
        check_config(config, model_config)
        super().__init__(config, model_config, *args, **kwargs)
