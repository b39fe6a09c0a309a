"""A run that is killed in the middle of a step and started again, beside the same run without a break."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("verl")

from tests.integration.test_training import QUESTIONS, ROLLOUTS, run
from tests.training import TrainingRun
from verl_mtgrpo.data.rows import make_row, write_parquet

ASKED = (
    "Where is the tower?",
    "where is the tower",
    "Where is tower?",
    "the tower is Where?",
    "the tower?",
    "Where the tower is?",
    "Where?",
    "is the tower in Rome?",
    "tower",
    "Oslo is Where?",
    "Where is the the tower?",
    "Rome?",
)
EARNED = ("critic/score/mean", "critic/advantages/max", "critic/advantages/min", "actor/grad_norm")
"""What the rollouts earned, and what came of it."""
VALUED = ("critic/values/mean", "critic/vf_loss", "critic/returns/mean")
"""What a critic said of them."""
STEPS = 4

pytestmark = [pytest.mark.verl, pytest.mark.slow]


def settings_of(folder: Path, *more: str) -> list[str]:
    """Four steps over twelve questions, greedy; each says what it asked."""
    row = {"data_source": "toy", "split": "train", "system_prompt": None}
    # Greedy rollouts say the same for a long time. What they earn differs: a third of the questions wants another
    # answer (four, which cannot be spread evenly over three steps).
    answers = ["Rome"] * 4 + ["Oslo"] * 8
    asked = enumerate(zip(ASKED, answers, strict=True))
    rows = [make_row(text, [answer], index=n, id=str(n), **row) for n, (text, answer) in asked]
    write_parquet(rows, folder / "train.parquet")
    return [
        f"data.train_files={folder / 'train.parquet'}",
        "actor_rollout_ref.rollout.top_k=1",  # greedy, while probabilities stay those of temperature 1
        "actor_rollout_ref.actor.optim.lr=1e-3",  # what is said changes from step to step
        "critic.optim.lr=1e-3",
        "trainer.test_freq=-1",
        f"trainer.total_training_steps={STEPS}",
        "trainer.total_epochs=9",
        "trainer.save_freq=1",
        "trainer.resume_mode=auto",
        f"trainer.rollout_data_dir={folder / 'rollouts'}",
        "trainer.turn.dump.groups=0",
        f"trainer.default_local_dir={folder / 'checkpoints'}",
        *more,
    ]


def questions(folder: Path, step: int) -> list[str]:
    """What a step asked, once for each rollout, sorted."""
    lines = (folder / "rollouts" / f"{step}.jsonl").read_bytes().splitlines()
    return sorted(json.loads(line)["question_id"] for line in lines)


def run_killed_and_unbroken(assets: Path, tmp_path: Path, preset: str, *more: str) -> tuple[TrainingRun, ...]:
    """The unbroken run, the one that was killed in step 3, and what was started again after it."""
    runs: list[TrainingRun] = []
    for name, start, kill in (("unbroken", "", None), ("broken", "killed", 2), ("broken", "again", None)):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        settings = settings_of(folder, *more)
        runs.append(run(assets, folder / start, *settings, preset=preset, kill_after_step=kill))
    unbroken, killed, again = runs
    assert unbroken.returncode == 0, unbroken.tail()
    assert killed.returncode < 0, killed.tail()
    assert again.returncode == 0, again.tail()
    assert list(unbroken.steps) == [1, 2, 3, 4]
    assert list(killed.steps) == [1, 2]
    assert list(again.steps) == [3, 4], "the step in which it was killed, and the rest; none is trained twice"
    assert len(ASKED) == 3 * QUESTIONS, "the third step asks what the second did not, the fourth begins again"
    return unbroken, killed, again


CRITICS = ("mt_ppo", "turn_gae", "bilevel_gae")


@pytest.mark.parametrize("preset", ["mt_grpo", "mt_grpo_v1", "turn_rloo", "gtpo", "turn_reinforce_pp", *CRITICS])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(preset: str, assets: Path, tmp_path: Path):
    unbroken, _, again = run_killed_and_unbroken(assets, tmp_path, preset)
    for step in range(1, STEPS + 1):
        asked = questions(tmp_path / "unbroken", step)
        assert len(asked) == QUESTIONS * ROLLOUTS
        assert questions(tmp_path / "broken", step) == asked, "the same questions in the same step"
    names = (*EARNED, *VALUED) if preset in CRITICS else EARNED
    for step in (3, 4):
        for name in names:
            assert again.steps[step][name] == pytest.approx(unbroken.steps[step][name], rel=1e-3, abs=1e-4), name
    assert len({round(step["critic/score/mean"], 4) for step in unbroken.steps.values()}) > 1
    # A critic or a policy that began again would be seen: these numbers are not as in the first step.
    for name in (*VALUED[:2], "actor/grad_norm") if preset in CRITICS else ("actor/grad_norm",):
        assert unbroken.steps[3][name] != pytest.approx(unbroken.steps[1][name], rel=1e-2), name


SEPARATE = (
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=tcp_cpu",
    "ray_kwargs.ray_init.num_gpus=2",
)


@pytest.mark.parametrize(("mode", "more"), [("mtgrpo_colocate_async", ()), ("mtgrpo_separate_async", SEPARATE)])
def test_an_asynchronous_run_asks_each_question_as_often(mode: str, more: tuple, assets: Path, tmp_path: Path):
    """Which step a rollout falls into is a matter of time there; what is asked over all steps is not."""
    run_killed_and_unbroken(assets, tmp_path, "mt_grpo", f"trainer.v1.trainer_mode={mode}", *more)
    for name in ("unbroken", "broken"):
        asked = [question for step in range(1, STEPS + 1) for question in questions(tmp_path / name, step)]
        assert len(asked) == STEPS * QUESTIONS * ROLLOUTS
        # Twelve questions and sixteen places: each once, four of them twice.
        counts = sorted(asked.count(str(n)) // ROLLOUTS for n in range(len(ASKED)))
        assert counts == [1] * 8 + [2] * 4
