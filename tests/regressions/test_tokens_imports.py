"""Issue 21, A9: any module of the package can be the first import.

verl's plugin hooks import modules of ours while verl itself is being imported. So a module that imports verl at its top
is imported in the middle of itself, and another module that needs it fails (review-gpu.md 25: ``tool_parsers``). Each
module is therefore imported first in a process of its own. The processes are forked from one that has third-party
libraries loaded, but nothing of verl or of this package: a fresh interpreter for each would take minutes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

import verl_mtgrpo

MODULES = sorted(module.name for module in pkgutil.walk_packages(verl_mtgrpo.__path__, "verl_mtgrpo."))
# What these say where vLLM is not installed, which is no fault.
WITHOUT_VLLM = {"verl_mtgrpo.cpu.vllm_rollout": "ConfigError: vLLM's CPU build", "verl_mtgrpo.cpu.vllm_worker": "vllm"}

ZYGOTE = """
import importlib, json, os, sys
for name in "torch tensordict transformers ray datasets pandas peft accelerate aiohttp fastapi".split():
    try:
        importlib.import_module(name)
    except ImportError:
        pass
assert not [name for name in sys.modules if name.split(".")[0] in ("verl", "verl_mtgrpo", "hydra", "omegaconf")]
sys.stdout.flush()
for name in json.loads(sys.argv[1]):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(2, 1)  # what modules print at import is no result
        try:
            importlib.import_module(name)
            error = ""
        except BaseException as caught:
            error = f"{type(caught).__name__}: {caught}"
        os.write(write, error.encode()[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        error = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    print(json.dumps([name, error or (f"ended with status {status}" if status else "")]), flush=True)
"""


@pytest.fixture(scope="module")
def errors() -> Iterator[dict[str, str]]:
    """What each module's import raised; empty if nothing."""
    if importlib.util.find_spec("verl") is None:
        pytest.skip("without verl there is nothing that could import a module in the middle of itself")
    env = {name: value for name, value in os.environ.items() if name != "VERL_USE_EXTERNAL_MODULES"}
    ended = subprocess.run(
        [sys.executable, "-c", ZYGOTE, json.dumps(MODULES)], env=env, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    yield dict(json.loads(line) for line in ended.stdout.splitlines())


@pytest.mark.parametrize("name", MODULES)
def test_any_module_can_be_the_first_import(errors: dict[str, str], name: str) -> None:
    error = errors[name]
    if importlib.util.find_spec("vllm") is None and WITHOUT_VLLM.get(name, "\0") in error:
        pytest.skip(error[:100])
    assert error == ""
