"""Kill a run in the middle of a step, start it again, and compare it with the same run without a break."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("verl")

from tests.integration.runs import QUESTIONS, ROLLOUTS, run
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
"""Metrics of rewards and of the update."""
VALUED = ("critic/values/mean", "critic/vf_loss", "critic/returns/mean")
"""Metrics of the critic."""
STEPS = 4

pytestmark = [pytest.mark.verl, pytest.mark.slow]


def settings_of(folder: Path, *more: str) -> list[str]:
    """Train four steps over twelve questions, and dump the questions of each step."""
    row = {"data_source": "toy", "split": "train", "system_prompt": None}
    # Greedy rollouts stay the same for a long time, but their rewards differ: a third of the questions wants another
    # answer (four, which cannot be spread evenly over three steps).
    answers = ["Rome"] * 4 + ["Oslo"] * 8
    asked = enumerate(zip(ASKED, answers, strict=True))
    rows = [make_row(text, [answer], index=n, id=str(n), **row) for n, (text, answer) in asked]
    write_parquet(rows, folder / "train.parquet")
    return [
        f"data.train_files={folder / 'train.parquet'}",
        f"data.val_files={folder / 'train.parquet'}",
        "actor_rollout_ref.actor.optim.lr=1e-3",  # so that rollouts change from step to step
        "critic.optim.lr=1e-3",
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
    """Return the questions of a step, once per rollout, sorted."""
    lines = (folder / "rollouts" / f"{step}.jsonl").read_bytes().splitlines()
    return sorted(json.loads(line)["question_id"] for line in lines)


def trained(one: TrainingRun) -> list[int]:
    """Return the training steps in the order in which they were logged."""
    return [number for number, step in one.steps.items() if "actor/grad_norm" in step]


def run_killed_and_unbroken(
    assets: Path, tmp_path: Path, preset: str, *more: str, begin: int = 0
) -> tuple[TrainingRun, ...]:
    """Return the unbroken run, one that was killed in the middle of a step, and the run that continued it.

    Args:
        begin: The checkpoint of the unbroken run from which the other one starts; 0 for the beginning. It is killed in
            the third step, or in the second one after that checkpoint.
    """
    runs: list[TrainingRun] = []
    last = max(2, begin + 1)
    for name, start, kill in (("unbroken", "", None), ("broken", "killed", last), ("broken", "again", None)):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if start == "killed" and begin:
            saved = f"global_step_{begin}"
            shutil.copytree(tmp_path / "unbroken" / "checkpoints" / saved, folder / "checkpoints" / saved)
            (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(begin))
        settings = settings_of(folder, *more)
        runs.append(run(assets, folder / start, *settings, preset=preset, kill_after_step=kill))
    unbroken, killed, again = runs
    assert unbroken.returncode == 0, unbroken.tail()
    assert killed.returncode < 0, killed.tail()
    assert again.returncode == 0, again.tail()
    assert trained(unbroken) == [1, 2, 3, 4]
    assert trained(killed) == list(range(begin + 1, last + 1))
    assert trained(again) == list(range(last + 1, STEPS + 1)), (
        "the step in which it was killed, and the rest; none is trained twice"
    )
    assert len(ASKED) == 3 * QUESTIONS, "the third step asks what the second did not, the fourth begins again"
    return unbroken, killed, again


def assert_the_same_questions(folder: Path, begin: int = 0) -> None:
    for step in range(begin + 1, STEPS + 1):
        asked = questions(folder / "unbroken", step)
        assert len(asked) == QUESTIONS * ROLLOUTS
        assert questions(folder / "broken", step) == asked, "the same questions in the same step"


# Greedy, although probabilities are those of temperature 1.
GREEDY = ("actor_rollout_ref.rollout.top_k=1", "trainer.test_freq=-1")


@pytest.mark.parametrize("preset", ["mt_ppo", "turn_gae", "bilevel_gae"])
def test_with_a_critic_the_numbers_are_those_of_the_unbroken_run(preset: str, assets: Path, tmp_path: Path):
    # From the same weights: the last digits of sums depend on which requests come together, and each update makes more
    # of them. Step 3 is trained in the run that is killed, step 4 in the one that goes on from what that one saved.
    unbroken, killed, again = run_killed_and_unbroken(assets, tmp_path, preset, *GREEDY, begin=2)
    assert_the_same_questions(tmp_path, begin=2)
    for step, numbers in {**killed.steps, **again.steps}.items():
        for name in (*EARNED, *VALUED):
            assert numbers[name] == pytest.approx(unbroken.steps[step][name], rel=1e-3, abs=1e-4), (step, name)
    # Not the scores: verl draws a critic's head anew in each run, so which answers the first updates lead to is chance.
    assert len({round(step["critic/advantages/max"], 4) for step in unbroken.steps.values()}) > 1
    # A critic or a policy that started anew would show, because these numbers differ from those of the first step.
    for name in (*VALUED[:2], "actor/grad_norm"):
        assert unbroken.steps[3][name] != pytest.approx(unbroken.steps[1][name], rel=1e-2), name


REMEMBERED = ("critic/memory_rollouts", "critic/memory_replayed", "critic/memory_age", "critic/memory_td_error")
"""Metrics of a critic that learns from earlier rollouts too."""


def test_a_critics_memory_goes_on_where_it_was(assets: Path, tmp_path: Path):
    rows = QUESTIONS * ROLLOUTS
    more = (
        "trainer.critic_warmup=0",
        "critic.ppo_epochs=1",
        "trainer.turn.critic.rounds=2",
        f"trainer.turn.critic.memory={3 * rows}",
    )
    unbroken, killed, again = run_killed_and_unbroken(assets, tmp_path, "archer", *GREEDY, *more, begin=2)
    for step, numbers in {**killed.steps, **again.steps}.items():
        for name in (*VALUED, *REMEMBERED):
            assert numbers[name] == pytest.approx(unbroken.steps[step][name], rel=1e-3, abs=1e-4), (step, name)
    assert [unbroken.steps[step]["critic/memory_rollouts"] for step in (1, 2, 3, 4)] == [
        *(rows, 2 * rows, 3 * rows),
        3 * rows,  # the oldest are forgotten
    ]
    assert "critic/memory_age" not in unbroken.steps[1], "there was nothing to learn again"
    assert unbroken.steps[2]["critic/memory_age"] == 1
    files = [tmp_path / name / "checkpoints" / "global_step_3" / "turn_memory.pt" for name in ("unbroken", "broken")]
    one, other = (torch.load(file, weights_only=True) for file in files)
    assert sorted(set(one["step"])) == [1, 2, 3]
    for name in ("step", "lengths"):
        assert one[name] == other[name]
    for name in ("prompt", "response", "mask", "positions"):
        assert torch.equal(one[name], other[name]), name


VAL = "actor_rollout_ref.rollout.val_kwargs"
# Rollouts of a prompt have to differ to be compared, so they are sampled. What is validated greedily can be compared:
# behind step 2, and before the first step of the run that goes on.
# (For a validation, verl's v1 trainers read the temperature, not val_kwargs.do_sample.)
SAMPLED = (f"{VAL}.temperature=0", f"{VAL}.n=1", "trainer.test_freq=2", "trainer.val_before_train=True")


@pytest.mark.parametrize("preset", ["mt_grpo", "mt_grpo_v1", "turn_rloo", "gtpo", "turn_reinforce_pp", "arpo"])
def test_without_a_critic_the_policy_is_that_of_the_checkpoint(preset: str, assets: Path, tmp_path: Path):
    runs = run_killed_and_unbroken(assets, tmp_path, preset, *SAMPLED)
    assert_the_same_questions(tmp_path)
    for one in runs:
        assert all(one.steps[number]["actor/grad_norm"] > 0 for number in trained(one))
    said = {start: said_in_validation(tmp_path / "broken" / start, step=2) for start in ("killed", "again")}
    assert said["killed"] == said["again"]
    assert said["killed"] != said_in_validation(tmp_path / "broken" / "killed", step=0), "two steps changed something"


def said_in_validation(folder: Path, step: int) -> list[str]:
    """Return the answers in a validation, by question."""
    rows = [json.loads(line) for line in (folder / "val" / f"{step}.jsonl").read_bytes().splitlines()]
    return [output for _, output in sorted((row["question_id"], row["output"]) for row in rows)]


SEPARATE = (
    "trainer.v1.separate_async.parameter_sync_step=1",
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=tcp_cpu",
    "ray_kwargs.ray_init.num_gpus=2",
)


@pytest.mark.parametrize(("mode", "more"), [("mtgrpo_colocate_async", ()), ("mtgrpo_separate_async", SEPARATE)])
def test_an_asynchronous_run_asks_each_question_as_often(mode: str, more: tuple, assets: Path, tmp_path: Path):
    """The step of a rollout depends on timing there, but the questions over all steps do not."""
    run_killed_and_unbroken(assets, tmp_path, "mt_grpo", f"trainer.v1.trainer_mode={mode}", GREEDY[1], *more)
    for name in ("unbroken", "broken"):
        asked = [question for step in range(1, STEPS + 1) for question in questions(tmp_path / name, step)]
        assert len(asked) == STEPS * QUESTIONS * ROLLOUTS
        # Twelve questions for sixteen places: each is asked once, and four of them twice.
        counts = sorted(asked.count(str(n)) // ROLLOUTS for n in range(len(ASKED)))
        assert counts == [1] * 8 + [2] * 4
