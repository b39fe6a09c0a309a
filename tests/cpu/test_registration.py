"""Check what is registered with verl: only with VERL_PLATFORM=cpu, and never otherwise."""

import json
import os
import subprocess
import sys
import types

import pytest

from tests import fresh
from verl_mtgrpo.cpu.process_group import use_plain_gloo
from verl_mtgrpo.errors import CompatibilityError

pytest.importorskip("verl")

pytestmark = [pytest.mark.process, pytest.mark.imports_verl]

PROBE = """
import json, verl
from verl.plugin.platform import PlatformRegistry, get_platform
import verl.utils.distributed as distributed
from verl.workers.engine.base import EngineRegistry
import verl.workers.engine.fsdp.transformer_impl
from verl.workers.rollout.base import _ROLLOUT_REGISTRY
from verl.workers.rollout.replica import RolloutReplicaRegistry
from verl.checkpoint_engine import CheckpointEngineRegistry
cpu = {model: by_backend["fsdp2"].get("cpu") for model, by_backend in EngineRegistry._engines.items()}
print(json.dumps({
    "platforms": sorted(PlatformRegistry.registered_names()),
    "device": get_platform().device_name,
    "gloo": hasattr(distributed.initialize_global_process_group_ray, "_mtgrpo_plain_gloo"),
    "engines": sorted(model for model, engine in cpu.items() if engine is not None),
    "adapter": ["hf_cpu", "async"] in [list(key) for key in _ROLLOUT_REGISTRY],
    "vllm": _ROLLOUT_REGISTRY[("vllm", "async")],
    "replica": "hf_cpu" in RolloutReplicaRegistry._registry,
    "checkpoint": "tcp_cpu" in CheckpointEngineRegistry._registry,
}))
"""


def probe(code=PROBE, python=fresh.python, **environment):
    clean = {key: value for key, value in os.environ.items() if key != "VERL_PLATFORM"}
    done = python(code, {**clean, **environment})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def new_python(code, env):
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


def test_with_the_variable_everything_is_registered_and_chosen():
    found = probe(VERL_PLATFORM="cpu")
    assert "cpu" in found.pop("platforms")
    assert found == {
        "device": "cpu",
        "gloo": True,
        "engines": ["language_model", "value_model"],
        "adapter": True,
        "vllm": "verl_mtgrpo.cpu.vllm_rollout.CheckedServerAdapter",
        "replica": True,
        "checkpoint": True,
    }


def test_without_the_variable_verl_is_as_it_was():
    found = probe()
    assert "cpu" not in found.pop("platforms")
    nothing = {"engines": [], "adapter": False, "replica": False, "checkpoint": False}
    assert found.pop("vllm") == "verl.workers.rollout.vllm_rollout.ServerAdapter"
    assert found == {"device": "cuda", "gloo": False, **nothing}


def test_register_is_light_and_idempotent():
    code = (
        "import json, sys, verl_mtgrpo.cpu as cpu; cpu.register(); cpu.register(); "
        "print(json.dumps([m for m in ('verl', 'torch', 'ray', 'transformers') if m in sys.modules]))"
    )
    assert probe(code, new_python) == []


def test_platform_is_never_detected_automatically():
    code = (
        "import json, verl_mtgrpo.cpu as cpu; cpu.register(); import verl; "
        "from verl.plugin.platform import PlatformRegistry, get_platform; "
        "print(json.dumps([PlatformRegistry.get('cpu') is not None, get_platform().device_name]))"
    )
    assert probe(code) == [True, "cuda"]


def test_plain_gloo_is_only_the_default():
    calls = []

    def initialize_global_process_group_ray(timeout_second=None, backend=None):
        calls.append((timeout_second, backend))

    module = types.SimpleNamespace(initialize_global_process_group_ray=initialize_global_process_group_ray)
    use_plain_gloo(module)
    use_plain_gloo(module)
    module.initialize_global_process_group_ray(timeout_second=None)
    module.initialize_global_process_group_ray(timeout_second=5, backend="cpu:gloo")
    assert calls == [(None, "gloo"), (5, "cpu:gloo")]


def test_a_verl_without_the_backend_argument_is_refused():
    def initialize_global_process_group_ray(timeout_second=None): ...

    module = types.SimpleNamespace(initialize_global_process_group_ray=initialize_global_process_group_ray)
    with pytest.raises(CompatibilityError, match=r"initialize_global_process_group_ray.*install verl 0.9.1"):
        use_plain_gloo(module)
    with pytest.raises(CompatibilityError):
        use_plain_gloo(types.SimpleNamespace())
