"""Validation metrics: verl's values under verl's names, in verl's time for one score."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("verl")

from verl.trainer.ppo.metric_utils import process_validation_metrics

from tests.composed import composed
from verl_mtgrpo.integration.trainer.trainer import TurnTrainerSync
from verl_mtgrpo.integration.trainer.validation import averages, expected_best, split

pytestmark = pytest.mark.compose


def rollouts(
    questions: int, samples: int, names: int, seed: int = 0
) -> tuple[list[str], list[str], dict[str, list[Any]]]:
    """Two data sources; numbers of which some are missing, as turns are that a rollout did not have."""
    rng = random.Random(seed)
    sources = [f"set{question % 2}" for question in range(questions) for _ in range(samples)]
    uids = [f"q{question}" for question in range(questions) for _ in range(samples)]
    infos: dict[str, list[Any]] = {"reward": [rng.choice([0.0, 0.2, 1.0]) for _ in uids]}
    infos["outcome/em"] = [float(reward == 1.0) for reward in infos["reward"]]
    for n in range(names - 2):
        infos[f"turn/{n}/reward"] = [None if rng.random() < 0.2 else rng.random() for _ in uids]
    infos["data_source"] = list(sources)  # text is no metric
    return sources, uids, infos


def test_means_are_verls_where_every_question_has_all_its_samples():
    sources, uids, infos = rollouts(12, 4, 5)
    infos = {name: values for name, values in infos.items() if None not in values}
    theirs = process_validation_metrics(sources, uids, infos)
    ours = averages(sources, uids, infos)
    for source in ("set0", "set1"):
        for name in infos.keys() - {"data_source"}:
            assert ours[f"val-aux/{source}/{name}/mean@4"] == pytest.approx(theirs[source][name]["mean@4"])
    assert not any("data_source" in name for name in ours)


def test_a_number_that_some_rollouts_do_not_have_by_hand():
    # q1 has 1 and 2 (and one without), q2 has 6, q3 has none: (1.5 + 6) / 2
    named = averages(["s"] * 5, ["q1", "q1", "q1", "q2", "q3"], {"x": [1.0, 2.0, None, 6.0, None]})
    assert named == {"val-aux/s/x/mean@3": pytest.approx(3.75)}
    assert averages(["s"], ["q"], {"x": [None], "y": ["text"], "z": [True]}) == {"val-aux/s/z/mean@1": 1.0}


def test_best_of_k_by_hand_and_against_verls_draws():
    # two draws of {0, 1} with replacement: at least one 1 with probability 3/4
    assert expected_best(np.array([0.0, 1.0]), 2) == pytest.approx(0.75)
    # three draws of {0, 0, 1, 5}: no 5 with (3/4)³, then no 1 with (2/4)³ of all
    assert expected_best(np.array([5.0, 0.0, 1.0, 0.0]), 3) == pytest.approx(5 * (1 - 0.75**3) + (0.75**3 - 0.5**3))
    sources, uids, infos = rollouts(60, 8, 2)
    theirs = process_validation_metrics(sources, uids, {"outcome/em": infos["outcome/em"]})
    ours = averages(sources, uids, infos)
    for source in ("set0", "set1"):
        for what in ("best", "worst"):
            for k in (2, 4, 8):
                expected = theirs[source]["outcome/em"][f"{what}@{k}/mean"]  # 1000 draws a question
                assert ours[f"val-aux/{source}/outcome/em/{what}@{k}/mean"] == pytest.approx(expected, abs=0.01)


def test_the_trainer_hands_verl_its_own_names_only():
    sources, uids, infos = rollouts(6, 4, 10)
    verls, ours = split(infos)
    assert set(verls) == {"reward"} and "outcome/em" in ours
    trainer = object.__new__(TurnTrainerSync)
    trainer.config = composed(preset="mt_grpo")
    named = trainer._val_metrics_update(sources, uids, infos, [2.0] * len(uids), expected_acc_counts=None)
    assert named["val-core/set0/reward/mean@4"] == pytest.approx(
        np.mean(infos["reward"][0:4] + infos["reward"][8:12] + infos["reward"][16:20])
    )
    assert "val-core/set0/reward/best@4/mean" in named and "val-aux/num_turns/mean" in named
    assert "val-aux/set1/turn/3/reward/mean@4" in named


@pytest.mark.clock
def test_validation_with_several_samples_takes_as_long_as_one_score_does():
    """The shortest of three each, by turns: what else the machine does takes nothing off a shortest time."""
    sources, uids, infos = rollouts(24, 8, 24)
    trainer = object.__new__(TurnTrainerSync)
    trainer.config = composed(preset="mt_grpo")
    one, whole = [], []
    for _ in range(3):
        start = time.perf_counter()
        process_validation_metrics(sources, uids, {"reward": infos["reward"]})
        one.append(time.perf_counter() - start)
        start = time.perf_counter()
        trainer._val_metrics_update(sources, uids, infos, [2.0] * len(uids), expected_acc_counts=None)
        whole.append(time.perf_counter() - start)
    ratio = min(whole) / min(one)
    print(f"\n24 questions x 8 samples: {min(one):.2f} s for one score, {min(whole):.2f} s for 24 names ({ratio:.2f})")
    assert ratio < 1.2
