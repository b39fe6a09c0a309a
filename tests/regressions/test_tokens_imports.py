"""Issue 21, A9: any module of the package can be the first import.

verl's plugin hooks import modules of ours while verl itself is being imported. So a module that imports verl at its top
is imported in the middle of itself, and another module that needs it fails (review-gpu.md 25: ``tool_parsers``). Each
module is therefore imported first in a fresh process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import pkgutil

import pytest

pytest.importorskip("verl")

import verl_mtgrpo
from tests import fresh

pytestmark = [pytest.mark.process, pytest.mark.imports_verl]

MODULES = sorted(module.name for module in pkgutil.walk_packages(verl_mtgrpo.__path__, "verl_mtgrpo."))
# What these say where vLLM is not installed, which is no fault.
WITHOUT_VLLM = {"verl_mtgrpo.cpu.vllm_rollout": "ConfigError: vLLM's CPU build", "verl_mtgrpo.cpu.vllm_worker": "vllm"}


@pytest.mark.parametrize("name", MODULES)
def test_any_module_can_be_the_first_import(name: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "VERL_USE_EXTERNAL_MODULES"}
    done = fresh.python(f"import {name}", env)
    if done.returncode and importlib.util.find_spec("vllm") is None and WITHOUT_VLLM.get(name, "\0") in done.stderr:
        pytest.skip(done.stderr[-100:])
    assert done.returncode == 0, done.stderr
