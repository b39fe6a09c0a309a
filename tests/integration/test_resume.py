"""A run with a critic that goes on from a checkpoint, beside the same run without a break."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("verl")

from tests.integration.test_training import QUESTIONS, run
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
SAME = ("critic/score/mean", "critic/values/mean", "critic/vf_loss", "critic/returns/mean", "actor/grad_norm")
"""What the rollouts earned, what the critic said of them, and what came of both."""


@pytest.mark.verl
@pytest.mark.slow
@pytest.mark.parametrize("preset", ["mt_ppo", "turn_gae"])
def test_the_steps_after_a_checkpoint_are_those_of_the_unbroken_run(preset: str, assets: Path, tmp_path: Path):
    row = {"data_source": "toy", "split": "train", "system_prompt": None}
    # Greedy rollouts say the same for a long time. What they earn differs: a third of the questions wants another
    # answer (four, which cannot be spread evenly over three steps).
    answers = ["Rome"] * 4 + ["Oslo"] * 8
    asked = enumerate(zip(ASKED, answers, strict=True))
    rows = [make_row(text, [answer], index=n, id=str(n), **row) for n, (text, answer) in asked]
    write_parquet(rows, tmp_path / "train.parquet")
    settings = [
        f"data.train_files={tmp_path / 'train.parquet'}",
        "actor_rollout_ref.rollout.top_k=1",  # greedy, while probabilities stay those of temperature 1
        "actor_rollout_ref.actor.optim.lr=1e-3",  # what is said changes from step to step
        "critic.optim.lr=1e-3",
        "trainer.test_freq=-1",
        "trainer.total_training_steps=4",
        "trainer.total_epochs=4",
    ]
    unbroken = run(assets, tmp_path / "unbroken", *settings, "trainer.save_freq=2", preset=preset)
    assert unbroken.returncode == 0, unbroken.tail()
    saved = tmp_path / "unbroken" / "checkpoints" / "global_step_2"
    resumed = run(
        assets,
        tmp_path / "resumed",
        *settings,
        "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={saved}",
        preset=preset,
    )
    assert resumed.returncode == 0, resumed.tail()
    assert set(unbroken.steps) == {1, 2, 3, 4}
    assert set(resumed.steps) == {3, 4}, "not trained again"
    assert len(ASKED) == 3 * QUESTIONS, "the third step asks what the second did not, the fourth begins again"
    for step in (3, 4):
        for name in SAME:
            assert resumed.steps[step][name] == pytest.approx(unbroken.steps[step][name], rel=1e-3, abs=1e-4), name
    assert len({round(step["critic/score/mean"], 4) for step in unbroken.steps.values()}) > 1
    # A critic or a policy that began again would be seen: these numbers are not as in the first step.
    for name in ("critic/values/mean", "critic/vf_loss", "actor/grad_norm"):
        assert unbroken.steps[3][name] != pytest.approx(unbroken.steps[1][name], rel=1e-2), name
