"""Check what verl finds after ``import verl``, in fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("verl")

from tests import fresh

pytestmark = [pytest.mark.process, pytest.mark.imports_verl]


def new_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter: where it counts that nothing at all is loaded."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "VERL_PLATFORM": "", **environment},
    )


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return fresh.python(textwrap.dedent(code), {**os.environ, "VERL_PLATFORM": "", **environment})


@pytest.fixture(scope="module")
def ours() -> dict[str, list[str]]:
    """Return the modules of a process after ``import verl``, and the entries for our names."""
    code = """
        import json, sys
        import verl
        modules = sorted(sys.modules)
        from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
        from verl.experimental.reward_loop.reward_manager.registry import get_reward_manager_cls
        from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
        from verl.trainer.ppo.v1 import get_trainer_cls
        from omegaconf import OmegaConf
        names = [
            get_adv_estimator_fn("mt_grpo").__module__,
            _agent_loop_registry["mtgrpo_tool_agent"]["_target_"],
            get_reward_manager_cls("mtgrpo").__name__,
            str(OmegaConf.has_resolver("mtgrpo_asset")),
            get_policy_loss_fn("turn_gspo").__module__,
            *[get_trainer_cls(f"mtgrpo_{mode}").__name__ for mode in ("sync", "colocate_async", "separate_async")],
        ]
        print(json.dumps({"modules": modules, "names": names}))
    """
    result = new_python(code)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_import_verl_alone_registers_our_names(ours):
    assert ours["names"] == [
        "verl_mtgrpo.integration.advantage.estimators",
        "verl_mtgrpo.integration.rollout.agent_loop.TurnToolAgentLoop",
        "TurnRewardManager",
        "True",
        "verl_mtgrpo.integration.advantage.policy_losses",
        "TurnTrainerSync",
        "TurnTrainerColocateAsync",
        "TurnTrainerSeparateAsync",
    ]


def test_loading_twice_and_by_module_name_does_no_harm():
    code = """
        import importlib, verl, verl_mtgrpo.plugin
        from verl.trainer.ppo import core_algos
        before = core_algos.get_adv_estimator_fn("mt_grpo")
        importlib.reload(verl_mtgrpo.plugin).register()
        print(core_algos.get_adv_estimator_fn("mt_grpo") is before)
    """
    result = python(code, VERL_USE_EXTERNAL_MODULES="verl_mtgrpo.plugin")
    assert result.stdout.strip() == "True", result.stderr


def test_the_plugin_itself_is_light(ours):
    # What `import verl` loads because of us, measured as modules and not as noisy milliseconds.
    code = """
        import json, sys
        import verl
        print(json.dumps(sorted(sys.modules)))
    """
    plain = new_python(code, VERL_USE_EXTERNAL_PLUGINS="none")
    added = set(ours["modules"]) - set(json.loads(plain.stdout))
    heavy = {name for name in added if not name.startswith(("verl_mtgrpo", "wrapt"))}
    # importlib.resources and its like: small standard library modules
    assert not {name.split(".")[0] for name in heavy} - set(sys.stdlib_module_names), heavy
    assert "verl_mtgrpo.plugin" in added
    assert (
        not {"verl_mtgrpo.credit", "verl_mtgrpo.retrieval.bm25", "verl_mtgrpo.integration.rollout.agent_loop"} & added
    )


@pytest.mark.slow
def test_the_plugin_adds_less_than_100_ms():
    code = """
        import time
        import verl  # everything verl needs is loaded now
        import sys
        for name in [name for name in sys.modules if name.startswith(("verl_mtgrpo", "wrapt"))]:
            del sys.modules[name]
        start = time.perf_counter()
        import verl_mtgrpo.plugin
        print(time.perf_counter() - start)
    """
    best = min(float(new_python(code).stdout) for _ in range(3))
    assert best < 0.1


@pytest.mark.parametrize("broken", ["wrapt", "verl_mtgrpo.cpu"])
def test_a_broken_dependency_is_reported_on_stderr(broken, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{broken!r}] = None\n")
    result = python("import verl", PYTHONPATH=str(tmp_path), VERL_PLATFORM="cpu")
    assert "ERROR" in result.stderr
    assert "verl_mtgrpo could not load the plugin" in result.stderr
    assert broken in result.stderr
    assert "pip install --upgrade verl-mtgrpo" in result.stderr


def test_a_part_that_cannot_be_registered_is_reported_and_stops_the_import(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['verl_mtgrpo.credit'] = None\n")
    result = python("import verl.trainer.ppo.core_algos", PYTHONPATH=str(tmp_path))
    assert result.returncode != 0
    assert "verl_mtgrpo could not load verl_mtgrpo.integration.advantage.estimators" in result.stderr


PURE = ["verl_mtgrpo", "verl_mtgrpo.credit", "verl_mtgrpo.rewards", "verl_mtgrpo.retrieval", "verl_mtgrpo.data"]
HOSTS = ("verl", "ray", "vllm", "transformers")


def hosts_loaded_by(modules: list[str], python=new_python) -> dict[str, list[str]]:
    """The hosts that a process has loaded after each of these modules, imported in this order."""
    code = f"""
        import importlib, json, sys
        found = {{}}
        for name in {modules}:
            importlib.import_module(name)
            found[name] = [host for host in {HOSTS} if host in sys.modules]
        print(json.dumps(found))
    """
    result = python(code)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_pure_parts_import_without_their_hosts():
    assert hosts_loaded_by(PURE) == {module: [] for module in PURE}


def test_the_test_above_can_fail():
    impure = "verl_mtgrpo.integration.advantage.estimators"
    assert "verl" in hosts_loaded_by([impure], python)[impure]
