"""Find out which parts of the kit this machine can run, without needing any package."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

VERL_MODULES = (
    *("verl", "ray", "transformers", "tensordict", "transfer_queue", "hydra", "datasets", "codetiming", "torchdata"),
    *(
        "peft",
        "accelerate",
        "wandb",
        "zmq",
        "msgspec",
        "cachetools",
        "uvicorn",
        "fastapi",
        "wrapt",
        "tantivy",
        "pandas",
    ),
)
"""Packages that the run with verl imports; tests/gpu/README.md lists the wheels."""

_WHEELS = {"transfer_queue": "TransferQueue", "hydra": "hydra-core", "zmq": "pyzmq"}


def describe(device: str) -> dict[str, str]:
    """Return everything that numbers depend on: device, processor, versions, commit."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {
        "device": name,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "verl": _version("verl"),
        "vllm": _version("vllm"),
        "commit": commit(),
    }


def commit() -> str:
    """Return the commit of the checkout, marked if files differ from it; "unknown" for a copy without git."""
    found = _output("git", "-C", str(REPOSITORY), "rev-parse", "--short=12", "HEAD")
    if not found:
        return "unknown (no git checkout; give --commit)"
    changed = _output("git", "-C", str(REPOSITORY), "status", "--porcelain", "--", "verl_mtgrpo", "tests/gpu")
    return f"{found} with uncommitted changes" if changed else found


def missing_for_cuda() -> list[str]:
    """Return what is missing to run anything on a GPU, one line each; empty if nothing is."""
    found = []
    if not (_output("nvidia-smi", "--list-gpus") or Path("/proc/driver/nvidia/version").exists()):
        found.append("an NVIDIA GPU with its driver: `nvidia-smi --list-gpus` shows none here")
    if absent := missing_for_anything():
        return [*found, *absent]
    import torch

    if torch.version.cuda is None:
        found.append(
            f"torch 2.11 or newer with CUDA: this is {torch.__version__}, built without; on Linux the wheel from PyPI "
            "has it (`pip install torch`, 0.5 GB and 2.5 GB of CUDA packages)"
        )
    elif not torch.cuda.is_available():
        found.append(
            f"a driver that torch {torch.__version__} can use: it was built for CUDA {torch.version.cuda}, and "
            "torch.cuda.is_available() is False"
        )
    return found


def missing_for_anything() -> list[str]:
    """Return which of torch and numpy is missing, without which nothing runs, not even on a CPU."""
    wanted = {"torch": "torch 2.11 or newer, with CUDA for a GPU", "numpy": "numpy"}
    absent = [text for name, text in wanted.items() if importlib.util.find_spec(name) is None]
    return [f"{text}: not installed for {sys.executable}" for text in absent]


def say_what_is_missing(device: str) -> bool:
    """Print what is missing, and return True if anything is."""
    missing = missing_for_cuda() if device == "cuda" else missing_for_anything()
    if not missing:
        return False
    place = "on one NVIDIA GPU, and there is none to be used here" if device == "cuda" else "with torch"
    print(f"make test-gpu measures {place}. It needs:")
    print(*(f"  - {line}" for line in missing), sep="\n")
    print("  - for the run with verl also the packages of tests/gpu/README.md; for verl's own vLLM server, vllm")
    if device == "cuda":
        print("What needs no GPU: make test-gpu DEVICE=cpu (python -m tests.gpu --device cpu)")
    return True


def missing_for_verl() -> str:
    """Return the packages that the run with verl lacks, "" for none."""
    missing = [_WHEELS.get(name, name) for name in VERL_MODULES if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def has_vllm() -> bool:
    """Return True if verl's own vLLM server can run: vLLM for CUDA."""
    return importlib.util.find_spec("vllm") is not None and "cpu" not in _version("vllm")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _output(*command: str) -> str:
    """Return the output of a command, "" if it does not exist or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
