"""Follow dense rewards through verl's real trainer: computed, added, measured, written down, and explained."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("verl")

from tests.integration.runs import QUESTIONS, ROLLOUTS, run
from verl_mtgrpo.demo.toy import HERMES
from verl_mtgrpo.report.catalog import read_catalog
from verl_mtgrpo.report.dump_files import dump_files
from verl_mtgrpo.report.pairs import pairs_of
from verl_mtgrpo.report.why import explain_group

pytestmark = pytest.mark.imports_verl

DENSE = "+trainer.turn.dense"


@pytest.mark.verl
def test_two_steps_with_implicit_rewards_and_information_gain(assets: Path, tmp_path: Path):
    result = run(
        assets,
        tmp_path,
        "actor_rollout_ref.actor.use_kl_loss=True",
        "actor_rollout_ref.actor.kl_loss_coef=0",
        "actor_rollout_ref.actor.optim.lr=3e-4",  # the policy is to differ from the reference in the second step
        f"{DENSE}.implicit.beta=0.5",
        f"{DENSE}.information_gain.weight=2.0",
        f"{DENSE}.information_gain.clip=0.5",
        f"trainer.rollout_data_dir={tmp_path / 'rollouts'}",
        "trainer.turn.dump.groups=0",
        preset="turn_rloo",
    )
    assert result.returncode == 0, result.tail()
    assert set(result.steps) == {1, 2}
    first, second = result.steps[1], result.steps[2]
    assert abs(first["turn/1/dense/implicit"]) < 1e-4, "the policy is its reference"
    assert abs(second["turn/1/dense/implicit"]) > 1e-4
    for number, step in result.steps.items():
        assert step["turn/2/dense/information_gain"] == 0, "the last turn is what the outcome is for"
        rows = [json.loads(line) for line in (tmp_path / "rollouts" / f"{number}.jsonl").read_text().splitlines()]
        assert len(rows) == QUESTIONS * ROLLOUTS
        assert_the_dump_tells_them_apart(step, rows)
    catalog = read_catalog(dump_files(tmp_path / "rollouts"))
    for group, rollouts in catalog.read_groups(catalog.groups):
        why = explain_group(rollouts, [entry.advantages for entry in group.entries], group.estimator)
        assert all(turn.adds_up and "information_gain" in turn.words for one in why for turn in one)
        assert not any("KL" in turn.words for one in why for turn in one)


@pytest.mark.slow
def test_pairs_teach_what_the_expert_does(assets: Path, tmp_path: Path):
    """The expert always searches; the policy, which does so half of the time, learns it without any reward."""
    rows = pd.read_parquet(assets / "train.parquet")
    rows["expert"] = HERMES.call
    rows.to_parquet(tmp_path / "pairs.parquet")
    lr = ("actor_rollout_ref.actor.optim.lr=1e-3", "algorithm.turn.beta=0.5")
    files = f"data.train_files={tmp_path / 'pairs.parquet'}"
    dumped = (f"trainer.rollout_data_dir={tmp_path / 'rollouts'}", "trainer.turn.dump.groups=0")
    result = run(assets, tmp_path, files, *lr, *dumped, "trainer.total_training_steps=4", preset="pair_dpo")
    assert result.returncode == 0, result.tail()
    assert set(result.steps) == {1, 2, 3, 4}
    searches = []
    for step in (1, 4):
        read = [json.loads(line) for line in (tmp_path / "rollouts" / f"{step}.jsonl").read_text().splitlines()]
        paired = {row["uid"].rpartition("_")[0] for row in read if row["uid"].endswith("_1")}
        own = [row for row in read if row["uid"].endswith("_1") or row["uid"].rpartition("_")[0] not in paired]
        expert = [row for row in read if row not in own]
        assert len(own) == QUESTIONS * ROLLOUTS and len(expert) == len(paired)
        advantages = {row["uid"]: json.loads(row["turn_advantages"])[0] for row in read}
        assert all(advantages[row["uid"]] > 0 for row in expert)
        for row in own:
            alone = row["uid"].rpartition("_")[0] not in paired
            assert advantages[row["uid"]] == 0 if alone else advantages[row["uid"]] < 0
        if step == 1:  # D = 0: the policy is its reference
            assert expert and all(advantages[row["uid"]] == pytest.approx(0.25, abs=1e-4) for row in expert)
        searches.append(sum("search" in row["output"] for row in own))
    assert searches[1] > searches[0]
    catalog = read_catalog(dump_files(tmp_path / "rollouts"))
    for group, rollouts in catalog.read_groups(catalog.groups):
        why = explain_group(rollouts, [entry.advantages for entry in group.entries], group.estimator)
        assert all(turn.terms and turn.adds_up for one in why for turn in one)
        assert sum(one.pair_side == "expert" for one in rollouts) == len(pairs_of(rollouts) or ())


@pytest.mark.slow
def test_a_discriminator_learns_to_tell_the_experts_turns_and_pays_the_policys(assets: Path, tmp_path: Path):
    """The expert always searches; the critic's workers learn that, and what they say is what own turns are paid."""
    rows = pd.read_parquet(assets / "train.parquet")
    rows["expert"] = HERMES.call
    rows.to_parquet(tmp_path / "pairs.parquet")
    result = run(
        assets,
        tmp_path,
        f"data.train_files={tmp_path / 'pairs.parquet'}",
        *("trainer.critic_warmup=0", "critic.optim.lr=1e-3", "critic.ppo_epochs=8"),
        *("trainer.total_training_steps=3", "trainer.test_freq=-1"),
        *(f"trainer.rollout_data_dir={tmp_path / 'rollouts'}", "trainer.turn.dump.groups=0"),
        preset="pair_rloo",
    )
    assert result.returncode == 0, result.tail()
    assert set(result.steps) == {1, 2, 3}
    first, last = result.steps[1], result.steps[3]
    assert last["critic/vf_loss"] < first["critic/vf_loss"], "the loss of telling apart"
    assert last["discriminator/expert"] > last["discriminator/own"]
    assert last["discriminator/accuracy"] > 0.5
    for number, step in result.steps.items():
        read = [json.loads(line) for line in (tmp_path / "rollouts" / f"{number}.jsonl").read_text().splitlines()]
        assert all("turn_values" not in row for row in read), "a logit is no value"
        groups: dict[str, list[tuple[float, float]]] = {}
        for row in read:
            ((dense,), (credited,), (advantage,)) = (
                json.loads(row["turn_dense"])["discriminator"],
                json.loads(row["turn_credited"]),
                json.loads(row["turn_advantages"]),
            )
            assert dense > 0, "gail: -log(1 - D)"
            if row["pair_side"] == "expert":
                assert advantage == 0
            else:
                groups.setdefault(row["uid"].rsplit("_", 2)[0], []).append((credited, advantage))
        for own in groups.values():
            total = sum(credited for credited, _ in own)
            for credited, advantage in own:
                others = (total - credited) / (len(own) - 1)
                assert advantage == pytest.approx(credited - others, abs=2e-3)
        mean = sum(json.loads(row["turn_dense"])["discriminator"][0] for row in read) / len(read)
        assert step["turn/1/dense/discriminator"] == pytest.approx(mean, abs=1e-3)


def assert_the_dump_tells_them_apart(step: dict, rows: list[dict]) -> None:
    sums: dict[str, list[float]] = {"implicit": [], "information_gain": []}
    for row in rows:
        paid, credited, dense = (json.loads(row[f"turn_{name}"]) for name in ("rewards", "credited", "dense"))
        assert set(dense) == set(sums)
        expected = [sum(parts) for parts in zip(paid, *dense.values(), strict=True)]
        assert credited == pytest.approx(expected, abs=1e-5)
        assert row["score"] == pytest.approx(sum(paid), abs=1e-5), "verl's score is what was paid"
        for name, some in sums.items():
            some.append(dense[name][0])
    for name, some in sums.items():
        assert step[f"turn/1/dense/{name}"] == pytest.approx(sum(some) / len(some), abs=1e-5)
    total = [sum(json.loads(row["turn_credited"])) for row in rows]
    assert step["critic/rewards/mean"] == pytest.approx(sum(total) / len(total), abs=1e-4)
    assert step["critic/score/mean"] == pytest.approx(sum(row["score"] for row in rows) / len(rows), abs=1e-4)
    gains = [one for one in sums["information_gain"] if one]
    assert gains and all(-1 <= one <= 1 for one in gains), "weight 2, clipped at 0.5 before"
