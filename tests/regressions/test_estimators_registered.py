"""Test issue 21, part C, 19: a user's estimator is registered with verl in any order of imports.

| input | right value | source |
|---|---|---|
| a module that verl loads, alone or behind verl's registry (an agent loop) and the plugin | verl has it | #19 |
| the same after `import verl`, twice, and reloaded | verl calls the newest version | #19 |
| the same in a Ray worker | verl has it there | #19 |
| a name that verl has itself, in either order | refused, with what to do | verl would hide one of them |

Each case runs in a separate process, in which verl loads the plugin as usual.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("verl")

import verl_mtgrpo
from tests import fresh
from verl_mtgrpo.credit import ESTIMATORS, registry
from verl_mtgrpo.credit.registry import register_estimator
from verl_mtgrpo.errors import ConfigError

pytestmark = [pytest.mark.process, pytest.mark.imports_verl]

ESTIMATOR = """
from verl_mtgrpo.credit import register_estimator

@register_estimator
def {name}(token_level_rewards, response_mask, index, *, factor=2.0):
    return factor * token_level_rewards, token_level_rewards
"""
LOOP = """
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, register

@register("my_loop")
class MyLoop(AgentLoopBase):
    async def run(self, sampling_params, **kwargs):
        raise NotImplementedError
"""
OUR_LOOP = """
from verl.experimental.agent_loop.agent_loop import register
from verl_mtgrpo.integration.rollout.agent_loop import TurnToolAgentLoop

@register("my_loop")
class MyLoop(TurnToolAgentLoop):
    pass
"""
CALL = """
import numpy as np, torch
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
config = OmegaConf.create({"turn": {}})
function = get_adv_estimator_fn("mine")
uid = np.array(["q", "q"], dtype=object)
print(function(torch.ones(2, 1), torch.ones(2, 1), index=uid, config=config)[0].tolist())
"""
MINE = ESTIMATOR.format(name="mine")


def python(code: str, folder: Path, *modules: str) -> subprocess.CompletedProcess[str]:
    package = str(Path(verl_mtgrpo.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), package])}
    env.pop("VERL_USE_EXTERNAL_PLUGINS", None)
    env["VERL_USE_EXTERNAL_MODULES"] = ",".join(modules)
    return fresh.python(code, env)


@pytest.mark.parametrize(
    ("module", "before"),
    [
        (MINE, []),
        (f"{LOOP}\n{MINE}", []),
        (f"{LOOP}\n{MINE}", ["verl_mtgrpo.plugin"]),
        (f"{OUR_LOOP}\n{MINE}", ["verl_mtgrpo.plugin"]),
    ],
    ids=["alone", "agent loop first", "agent loop first, behind the plugin", "our agent loop first, behind the plugin"],
)
def test_a_module_that_verl_loads(module: str, before: list[str], tmp_path: Path):
    """verl loads these modules before its plugins, unless the plugin is one of them, as the docs advise."""
    (tmp_path / "my_module.py").write_text(module)
    done = python(f"import verl\n{CALL}", tmp_path, *before, "my_module")
    assert done.stdout.splitlines()[-1:] == ["[[2.0], [2.0]]"], done.stderr


def test_a_module_that_is_loaded_late_twice_and_reloaded(tmp_path: Path):
    (tmp_path / "my_module.py").write_text(MINE)
    code = f"""
import importlib, pathlib, sys
sys.dont_write_bytecode = True
import verl
import verl.trainer.ppo.core_algos
import my_module
from verl_mtgrpo.credit import register_estimator
register_estimator(my_module.mine)
{CALL}
file = pathlib.Path(my_module.__file__)
file.write_text("\\n\\n" + file.read_text().replace("factor=2.0", "factor=3.0, offset=1.0"))
importlib.reload(my_module)
{CALL}
from verl_mtgrpo.integration.settings import estimator_settings
print(estimator_settings("mine", config))
"""
    done = python(code, tmp_path)
    assert done.stdout.splitlines()[-3:] == [
        "[[2.0], [2.0]]",
        "[[3.0], [3.0]]",
        "{'factor': 3.0, 'offset': 1.0}",
    ], done.stderr


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_name_that_verl_has_itself(order: str, tmp_path: Path):
    module = ESTIMATOR.format(name="grpo")
    (tmp_path / "my_module.py").write_text(
        module if order == "before" else f"import verl.trainer.ppo.core_algos\n{module}"
    )
    done = python(
        "import verl, my_module, verl.trainer.ppo.core_algos\nprint('went on')",
        tmp_path,
        *(["my_module"] if order == "before" else []),
    )
    assert "went on" not in done.stdout
    assert "verl has an estimator grpo already, which would be hidden; rename the function" in done.stderr


@pytest.mark.verl
def test_a_ray_worker(tmp_path: Path):
    """Like verl's trainer, an actor runs in a separate process with the driver's environment."""
    (tmp_path / "my_module.py").write_text(f"{LOOP}\n{MINE}")
    with tempfile.TemporaryDirectory(prefix="mtg", dir="/tmp", ignore_cleanup_errors=True) as folder:
        code = f"""
import ray
ray.init(num_cpus=1, include_dashboard=False, _temp_dir={folder!r}, log_to_driver=False)

@ray.remote
def worker():
    import verl
    import numpy as np, torch
    from omegaconf import OmegaConf
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn
    function, config = get_adv_estimator_fn("mine"), OmegaConf.create({{"turn": {{}}}})
    uid = np.array(["q", "q"], dtype=object)
    return function(torch.ones(2, 1), torch.ones(2, 1), index=uid, config=config)[0].tolist()

print(ray.get(worker.remote()))
ray.shutdown()
"""
        done = python(code, tmp_path, "my_module")
    assert done.stdout.splitlines()[-1:] == ["[[2.0], [2.0]]"], done.stderr


# ---- which functions count as the same


def first(token_level_rewards, response_mask, index):
    return token_level_rewards, token_level_rewards


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(registry, "ESTIMATORS", dict(ESTIMATORS))
    monkeypatch.setattr(registry, "_followers", [])
    return registry.ESTIMATORS


def test_the_same_file_under_another_module_name_is_the_same_function(table):
    """Python runs a script as ``__main__``; verl loads ``file.py`` under another name."""
    source = "def mine(token_level_rewards, response_mask, index): return 1, 1"
    spaces = [{"__name__": "__main__"}, {"__name__": "my_module"}]
    for space in spaces:
        exec(compile(source, "/a/my_module.py", "exec"), space)
        register_estimator(space["mine"])
    assert table["mine"].function is spaces[1]["mine"]
    other = {"__name__": "other"}
    exec(compile(source, "/a/other.py", "exec"), other)
    with pytest.raises(ConfigError, match="there is an estimator mine already; rename the function"):
        register_estimator(other["mine"])


def test_functions_made_by_a_function_are_different(table):
    def make(factor: float):
        def made(token_level_rewards, response_mask, index):
            return factor * token_level_rewards, token_level_rewards

        return made

    one = make(1.0)
    assert register_estimator(register_estimator(one)) is one
    with pytest.raises(ConfigError, match="there is an estimator made already"):
        register_estimator(make(2.0))


def test_a_follower_that_refuses_leaves_nothing_behind(table, monkeypatch):
    seen = []

    def refuse(estimator):
        seen.append(estimator.name)
        if estimator.name == "first":
            raise ConfigError("no")

    registry.follow_estimators(refuse)
    assert seen == list(ESTIMATORS), "it is told of those that are there"
    with pytest.raises(ConfigError, match=r"^no$"):
        register_estimator(first)
    assert "first" not in table
