"""verl's stock trainer, unmodified, on the CPU."""

import re
import shutil
from pathlib import Path

import pytest

from tests.tiny_model import save_model, write_questions
from tests.training import processes_that_mention, train

pytest.importorskip("verl")

pytestmark = [pytest.mark.process, pytest.mark.imports_verl]

REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return solution_str.count("e") / max(1, len(solution_str))
"""
AGREEMENT = 1e-4
"""Largest difference of a token's probability between rollout and actor; float32 gives about 1e-5."""


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """Overrides that name a random model, 32 questions and a reward that some samples get more of."""
    folder = tmp_path_factory.mktemp("assets")
    (folder / "reward.py").write_text(REWARD)
    model = save_model(folder / "model")
    questions = write_questions(folder / "questions.parquet", 32)
    return [
        f"actor_rollout_ref.model.path={model}",
        f"critic.model.path={model}",
        f"data.train_files={questions}",
        f"data.val_files={questions}",
        f"reward.custom_reward_function.path={folder / 'reward.py'}",
        "data.train_batch_size=8",
        "data.max_prompt_length=48",
        "data.max_response_length=24",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        "trainer.total_training_steps=2",
        "trainer.resume_mode=disable",
    ]


@pytest.mark.verl
@pytest.mark.slow  # two slots on two cores take minutes
def test_two_grpo_steps_on_two_slots(assets, tmp_path):
    """FSDP2 over gloo, two rollout servers, single-turn agent loop, validation, weight updates."""
    run = train(
        tmp_path,
        [*assets, "algorithm.adv_estimator=grpo", "trainer.n_gpus_per_node=2", "trainer.test_freq=2"],
        timeout=360,
    )
    assert run.returncode == 0, run.tail()
    assert sorted(run.steps) == [0, 1, 2]
    assert "val-core/toy/acc/mean@1" in run.steps[0] and "val-core/toy/acc/mean@1" in run.steps[2]
    for step in (1, 2):
        metrics = run.steps[step]
        assert metrics["training/rollout_probs_diff_max"] < AGREEMENT, "weights reached the servers"
        assert 0 < metrics["actor/grad_norm"] < 100
        assert 1 <= metrics["response_length/mean"] <= 24
        assert metrics["response/aborted_ratio"] == 0
    assert "hf_cpu_server_1" in run.log, "the second slot had its own server"


@pytest.mark.verl
def test_a_run_that_is_cut_off_leaves_no_process_and_no_folder(assets, tmp_path):
    run = train(tmp_path, [*assets, "algorithm.adv_estimator=grpo"], timeout=25)
    assert run.returncode < 0
    assert "killed after 25 s" in run.tail(1)
    ray_folder = re.search(r"'_temp_dir': '(/tmp/mtg\w+)'", run.log)
    assert ray_folder, "Ray was starting when the run was cut off"
    assert not Path(ray_folder[1]).exists()
    assert processes_that_mention(str(tmp_path)) == []


def test_the_probe_for_leftover_processes_finds_one(tmp_path):
    import subprocess

    sleeper = subprocess.Popen([shutil.which("sleep"), "30"], env={"MARK": str(tmp_path)})
    try:
        assert len(processes_that_mention(str(tmp_path))) == 1
    finally:
        sleeper.kill()
        sleeper.wait()
