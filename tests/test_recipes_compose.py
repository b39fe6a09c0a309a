"""Every recipe and every method of it: what its script really passes to verl composes and is complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("verl")

from omegaconf import OmegaConf
from verl.trainer.ppo.utils import need_critic

import verl_mtgrpo.config
from tests.composed import composed
from tests.recipes import RECIPES
from verl_mtgrpo.integration.parts import uses_turns
from verl_mtgrpo.integration.preflight import check_run
from verl_mtgrpo.toy import shrink as dry

pytestmark = [pytest.mark.process, pytest.mark.compose]

SCRIPTS = {
    "paper_v1_triviaqa/run.sh": ["mt_grpo_v1", "mt_grpo", "grpo_or", "grpo_mr"],
    "paper_v2_search_r1/run.sh": [
        *("mt_ppo", "ppo_or", "ppo_mr", "ppo_merged", "grpo_or", "grpo_mr", "grpo_merged", "mt_grpo", "turn_rloo"),
    ],
    "small_single_gpu/run.sh": ["mt_grpo", "turn_rloo", "grpo_or", "grpo_mr"],
    "megatron/run.sh": ["mt_grpo", "turn_rloo", "mt_ppo", "turn_gae"],
    "multi_node/run.sh": ["mt_grpo", "mt_ppo"],
    "arpo/run.sh": ["arpo", "tree_grpo", "at2po", "grpo_or", "mt_grpo"],
    "mt_grpo_tree/run.sh": ["mt_grpo_tree", "turn_rloo_tree", "mt_grpo", "turn_rloo"],
    "mhgpo_search/run.sh": ["mhgpo_search"],
    "rema/run.sh": ["rema"],
    "migrate/before.sh": [],
    "migrate/after.sh": [],
}
CASES = [(script, method) for script, methods in SCRIPTS.items() for method in methods or [""]]


def arguments(script: str, *given: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(RECIPES / script), *given]
    env = {**os.environ, "DRY_RUN": "print", **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=20, check=False)


@cache
def config(script: str, method: str):
    printed = arguments(script, *filter(None, [method]))
    assert printed.returncode == 0, printed.stderr
    run = composed(*printed.stdout.splitlines())
    OmegaConf.resolve(run)
    return run


@pytest.mark.parametrize(("script", "method"), CASES)
def test_what_the_script_passes_composes_and_is_complete(script, method):
    run = config(script, method)
    assert uses_turns(run) == (script != "migrate/before.sh")
    check_run(run)
    trained = run.data.train_batch_size * run.actor_rollout_ref.rollout.n
    assert trained % (run.trainer.n_gpus_per_node * run.trainer.nnodes) == 0
    assert run.data.train_batch_size % run.actor_rollout_ref.actor.ppo_mini_batch_size == 0
    assert need_critic(run) == (method in ("mt_ppo", "ppo_or", "ppo_mr", "ppo_merged", "turn_gae"))


def test_every_recipe_is_here_and_has_a_readme():
    runs = (path for path in RECIPES.glob("*/*.sh") if "verl.trainer.main_ppo" in path.read_text())
    scripts = {str(path.relative_to(RECIPES)) for path in runs}
    assert scripts | {"migrate/after.sh"} == set(SCRIPTS)
    for script in SCRIPTS:
        readme = (RECIPES / script).parent / "README.md"
        text = readme.read_text()
        for section in ("**Aim.**", "**Hardware.**", "## Run", "## Expected", "## Healthy curves", "## Differences"):
            assert section in text, f"{readme} has no {section}"


@pytest.mark.parametrize("script", [script for script, methods in SCRIPTS.items() if methods])
def test_methods_are_those_of_the_script(script):
    refused = arguments(script, "no_such_method")
    assert refused.returncode == 1
    assert set(refused.stderr.split("expected one of: ")[1].split()) == set(SCRIPTS[script])
    (default,) = re.findall(r"^METHODS=\((\w+)", (RECIPES / script).read_text(), re.MULTILINE)
    assert arguments(script).stdout == arguments(script, default).stdout


def test_overrides_of_the_caller_come_last_and_an_unknown_mode_is_refused():
    printed = arguments("small_single_gpu/run.sh", "mt_grpo", "trainer.total_training_steps=7").stdout.splitlines()
    assert printed[-1] == "trainer.total_training_steps=7"
    refused = arguments("small_single_gpu/run.sh", DRY_RUN="gpu")
    assert refused.returncode == 1
    assert "DRY_RUN=gpu, expected cpu, print or nothing" in refused.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_copy_runs_without_the_repository(script, tmp_path: Path):
    """Everything that a run.sh shares with others is in the installed package."""
    folder = Path(shutil.copytree((RECIPES / script).parent, tmp_path / "mine"))
    method = SCRIPTS[script][-1:]
    command = ["bash", str(folder / Path(script).name), *method, "a=b"]
    env = {name: value for name, value in os.environ.items() if name != "DRY_RUN"}
    ran = subprocess.run(command, env={**env, "PYTHON": "echo"}, capture_output=True, text=True, timeout=20, check=True)
    here = arguments(script, *method, "a=b").stdout.replace(str(RECIPES / script).rsplit("/", 1)[0], str(folder))
    assert ran.stdout.split() == ["-m", "verl.trainer.main_ppo", *here.split()]


def test_paper_v1_says_what_the_paper_did():
    run = config("paper_v1_triviaqa/run.sh", "mt_grpo_v1")
    actor, rollout = run.actor_rollout_ref.actor, run.actor_rollout_ref.rollout
    assert run.data.train_batch_size * rollout.n == 12 * 4 * 7
    assert (actor.optim.lr, actor.optim.lr_warmup_steps, actor.optim.clip_grad) == (1e-6, 20, 0.1)
    assert (actor.ppo_epochs, actor.use_kl_loss, run.algorithm.use_kl_in_reward) == (2, False, False)
    assert (rollout.n, rollout.multi_turn.max_assistant_turns, rollout.multi_turn.format) == (21, 2, "mtgrpo_xml")
    tool = OmegaConf.load(rollout.multi_turn.tool_config_path).tools[0].config
    assert (tool.k, tool.max_searches) == (1, 1)
    assert (run.trainer.total_training_steps, run.data.max_prompt_length, run.data.max_response_length) == (
        300,
        1024,
        1024,
    )


def test_paper_v2_says_what_the_paper_did():
    ppo, grpo = (config("paper_v2_search_r1/run.sh", method) for method in ("mt_ppo", "grpo_or"))
    for run in (ppo, grpo):
        actor, rollout = run.actor_rollout_ref.actor, run.actor_rollout_ref.rollout
        assert (run.data.train_batch_size, actor.ppo_mini_batch_size) == (512, 256)
        assert (run.trainer.total_training_steps, actor.clip_ratio) == (500, 0.2)
        assert (actor.optim.lr, actor.optim.lr_warmup_steps_ratio) == (1e-6, 0.285)
        assert (rollout.tensor_model_parallel_size, rollout.gpu_memory_utilization) == (4, 0.6)
        assert (rollout.temperature, rollout.top_p, rollout.multi_turn.max_assistant_turns) == (1.0, 1.0, 4)
        assert actor.fsdp_config.param_offload
    assert ppo.critic.optim.lr_warmup_steps_ratio == 0.015
    assert (ppo.critic.optim.lr, ppo.algorithm.kl_ctrl.kl_coef, ppo.algorithm.use_kl_in_reward) == (1e-5, 1e-3, True)
    assert (ppo.algorithm.gamma, ppo.algorithm.lam) == (1.0, 1.0)
    assert (grpo.actor_rollout_ref.actor.use_kl_loss, grpo.actor_rollout_ref.actor.kl_loss_coef) == (True, 1e-3)


# Section 6.1 of arXiv 2505.11821 v2: the baselines have Search-R1's rewards, and only the control has MT-PPO's own.
ARMS = {
    "mt_ppo": ("gae", "paper_v2", "turns"),
    "ppo_or": ("gae", "search_r1_em", "outcome"),
    "ppo_mr": ("gae", "search_r1_format", "merged"),
    "ppo_merged": ("gae", "paper_v2", "merged"),
    "grpo_or": ("grpo", "search_r1_em", "outcome"),
    "grpo_mr": ("grpo", "search_r1_format", "merged"),
    "grpo_merged": ("grpo", "paper_v2", "merged"),
    "mt_grpo": ("mt_grpo", "paper_v2", "turns"),
    "turn_rloo": ("turn_rloo", "paper_v2", "turns"),
}


@pytest.mark.parametrize("method", SCRIPTS["paper_v2_search_r1/run.sh"])
def test_paper_v2_pays_each_arm_what_the_paper_pays_it(method):
    run = config("paper_v2_search_r1/run.sh", method)
    assert (run.algorithm.adv_estimator, run.reward.turn.preset, run.reward.turn.pay) == ARMS[method]


def test_the_migration_is_what_the_readme_shows():
    before, after = (arguments(f"migrate/{name}.sh").stdout.splitlines() for name in ("before", "after"))
    assert after[: len(before)] == before, "the same command"
    shown = re.findall(r"^\+ (\S+)", (RECIPES / "migrate" / "README.md").read_text(), re.MULTILINE)
    assert shown == [one.replace("'", "") for one in after[len(before) :]]


@pytest.mark.parametrize("script", [script for script, methods in SCRIPTS.items() if methods])
def test_a_script_takes_what_recipes_share_and_does_not_repeat_it(script):
    group = OmegaConf.load(Path(verl_mtgrpo.config.__path__[0]) / "mtgrpo_recipe" / "default.yaml")
    said = dry.written(arguments(script).stdout.splitlines())
    assert said["mtgrpo_recipe"] == "default"
    assert not [key for key, value in dry.leaves(OmegaConf.to_container(group), "") if said.get(key) == str(value)]


@pytest.mark.parametrize("script", ["paper_v2_search_r1/run.sh", "megatron/run.sh"])
def test_a_dry_run_changes_what_it_says_and_nothing_else(script, tmp_path: Path):
    overrides, dropped = dry.without_megatron(arguments(script, "mt_ppo").stdout.splitlines())
    assert bool(dropped) == script.startswith("megatron")
    sizes = dry.sizes(composed(*overrides), steps=2)
    changes = {**dry.cpu_values(overrides), **sizes, **dry.files(tmp_path, tmp_path)}
    changes.pop("hydra.run.dir")
    written = composed(*overrides)
    changed = composed(*overrides, "+mtgrpo_cpu=default", *dry.as_overrides(changes))
    check_run(changed)
    before, after = (dict(dry.leaves(OmegaConf.to_container(run), "")) for run in (written, changed))
    cpu = OmegaConf.load(Path(verl_mtgrpo.config.__path__[0]) / "mtgrpo_cpu" / "default.yaml")
    allowed = set(changes) | set(dict(dry.leaves(OmegaConf.to_container(cpu), "")))
    differ = {key for key in after if after[key] != before.get(key)}
    assert differ <= allowed
    said = dry.written(overrides)
    untouched = [key for key in said if key in after and key not in allowed]
    assert {"algorithm.adv_estimator", "reward.turn.pay"} <= set(after) - allowed
    assert len(untouched) >= 8, "most of what the recipe says stays"
    assert changed.actor_rollout_ref.rollout.name == "hf_cpu"
    mini = changed.actor_rollout_ref.actor.ppo_mini_batch_size
    assert changed.data.train_batch_size / mini == 2, "as many updates of a step as the recipe has"
