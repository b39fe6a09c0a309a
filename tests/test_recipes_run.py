"""Every recipe for two real steps on the CPU, by its own script and DRY_RUN=cpu: `make test-recipes`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.recipes import RECIPES

pytest.importorskip("verl")

pytestmark = [pytest.mark.process, pytest.mark.imports_verl]


# Each recipe with its main method, and the other kinds: with and without a critic, in groups.
RUNS = [
    ("paper_v1_triviaqa/run.sh", "mt_grpo_v1"),
    ("paper_v2_search_r1/run.sh", "mt_ppo"),
    ("paper_v2_search_r1/run.sh", "grpo_mr"),
    ("small_single_gpu/run.sh", "mt_grpo"),
    ("megatron/run.sh", "mt_ppo"),
    ("multi_node/run.sh", "mt_grpo"),
    ("arpo/run.sh", "arpo"),
    ("mt_grpo_tree/run.sh", "mt_grpo_tree"),
    ("mhgpo_search/run.sh", "mhgpo_search"),
    ("rema/run.sh", "rema"),
]


def dry_run(folder: Path, script: str, *given: str, timeout: float = 560) -> tuple[str, dict[int, dict]]:
    """Run a recipe's script; its output and the metrics of each step."""
    env = {
        **os.environ,
        "DRY_RUN": "cpu",
        "DRY_RUN_OUT": str(folder),
        "PYTHON": sys.executable,
        "PYTHONPATH": str(RECIPES.parent),
    }
    started = time.monotonic()
    command = ["bash", str(RECIPES / script), *given]
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    print(f"\n{script} {' '.join(given)}: {time.monotonic() - started:.0f} s")
    steps: dict[int, dict] = {}
    for line in (folder / Path(script).parent.name / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        steps.setdefault(record["step"], {}).update(record["data"])
    return result.stdout, steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dry")


@pytest.mark.recipes
@pytest.mark.parametrize(("script", "method"), RUNS)
def test_two_real_steps(folder: Path, script: str, method: str):
    said, steps = dry_run(folder, script, method)
    assert {1, 2} <= set(steps)
    for step in (steps[1], steps[2]):
        assert step["turn/1/rollouts"] > 0
        if method != "rema":  # whose roles have no tools
            assert step["tool/used"] > 0, "the policy speaks the recipe's format, and its calls are carried out"
        assert step["critic/advantages/max"] > 0 > step["critic/advantages/min"]
        assert ("critic/vf_loss" in step) == ("ppo" in method)
    limit = re.search(r"^ +trainer\.total_training_steps=(\d+)", (RECIPES / script).read_text(), re.M)
    recipes = f"    (recipe: {limit[1]})" if limit else ""  # others end after epochs
    assert f"    trainer.total_training_steps=2{recipes}\n" in said, "what is changed is said"
    assert ("Megatron needs a GPU" in said) == script.startswith("megatron")


@pytest.mark.verl
@pytest.mark.slow
@pytest.mark.recipes
def test_a_stock_run_becomes_mt_grpo_by_more_overrides(folder: Path):
    _, before = dry_run(folder, "migrate/before.sh")
    _, after = dry_run(folder, "migrate/after.sh")
    assert {1, 2} <= set(before) & set(after)
    assert not [name for name in before[1] if name.startswith("turn/")], "stock verl knows no turns"
    for step in (after[1], after[2]):
        assert step["tool/used"] > 0, "the tool of before.sh, unchanged"
        assert 0 < step["turn/2/rollouts"] < step["turn/1/rollouts"], "turns are told apart"
        # The outcome is the reward function of before.sh, which looks for an exact match in the whole text and not in
        # the last turn alone: the same but for a few garbled rollouts.
        assert step["outcome/reward"] == pytest.approx(step["outcome/em"], abs=0.1)
        assert step["turn/1/reward"] > 0, "and the search is paid where it happened"
    assert 0 <= before[1]["critic/score/mean"] <= 1
