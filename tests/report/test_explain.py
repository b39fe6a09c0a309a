"""The working behind an advantage, against the estimators themselves and by hand."""

from __future__ import annotations

import random

import pytest
import torch

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.report.explain import EXPLAINED, explain

README = [[0.7, 1.0], [0.2, 0.0], [0.5]]
"""The three rollouts at the top of the README."""


def of_estimator(name: str, rewards: list[list[float]], settings: dict[str, object]) -> list[list[float]]:
    """The advantages that the estimator gives, two tokens a turn, the reward on the second."""
    width = 3 * max(1, max(map(len, rewards)))
    tokens, mask = torch.zeros(len(rewards), width), torch.zeros(len(rewards), width)
    for row, one in enumerate(rewards):
        for turn, reward in enumerate(one):
            mask[row, 3 * turn : 3 * turn + 2] = 1
            tokens[row, 3 * turn + 1] = reward
    index = ["q"] * len(rewards)
    if name == "grpo":
        core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
        # verl counts every row, so rollouts that were dropped leave the batch before (integration/left_out.py).
        there = [row for row, one in enumerate(rewards) if one]
        advantages = torch.zeros_like(tokens)
        if there:
            kept = core_algos.compute_grpo_outcome_advantage(tokens[there], mask[there], ["q"] * len(there), **settings)
            advantages[there] = kept[0]
    else:
        advantages, _ = ESTIMATORS[name](tokens, mask, index, **settings)
    return [[float(advantages[row, 3 * turn]) for turn in range(len(one))] for row, one in enumerate(rewards)]


def sums(name: str, rewards: list[list[float]], settings: dict[str, object]) -> list[list[float]]:
    working = explain(name, rewards, settings)
    assert working is not None
    return [[sum(term.adds for term in terms) for terms in one] for one in working]


SETTINGS: list[tuple[str, dict[str, object]]] = [
    ("mt_grpo", {}),
    ("mt_grpo", {"turn_coef": 0.3, "discount": 0.8, "missing_turn": "exclude"}),
    ("mt_grpo", {"scale": "none", "discount": 0.5, "missing_turn": "zero"}),
    ("mt_grpo", {"epsilon": 0.01}),
    ("mt_grpo_v1", {}),
    ("mt_grpo_v1", {"turn_coef": 0.5, "epsilon": 0.1}),
    ("turn_rloo", {}),
    ("turn_rloo", {"scale": "std", "discount": 0.9, "epsilon": 0.01}),
    ("gtpo", {}),
    ("gtpo", {"discount": 0.9, "epsilon": 0.1}),
    ("grpo", {}),
    ("grpo", {"norm_adv_by_std_in_grpo": False}),
]


@pytest.mark.imports_verl
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_the_terms_sum_to_what_the_estimator_gives(name: str, settings: dict[str, object]) -> None:
    """Groups of 1 to 8 rollouts with 1 to 4 turns; rewards of few values, so that there are ties; some dropped."""
    rng = random.Random(name)
    for _ in range(40):
        values = [0.0, 0.1, 0.7, rng.uniform(-1, 2)]
        rewards = [[rng.choice(values) for _ in range(rng.randint(0, 4))] for _ in range(rng.randint(1, 8))]
        expected = of_estimator(name, rewards, settings)
        for got, wanted in zip(sums(name, rewards, settings), expected, strict=True):
            assert got == pytest.approx(wanted, rel=1e-5, abs=2e-5), rewards


def test_every_estimator_that_is_explained_is_compared() -> None:
    assert {name for name, _ in SETTINGS} == set(EXPLAINED)


def test_the_readmes_example_by_hand() -> None:
    """Turn 1: 0.7, 0.2 and, for the one that ended there, 0: mean 0.3, squares .16 + .01 + .09 = .26, / 2, root .3606.
    Outcomes 1, 0, 0.5: mean 0.5, std 0.5."""
    working = explain("mt_grpo", README, {})
    assert working is not None
    first, later, outcome = working[0][0]
    assert (first.kind, first.turn, first.count, first.baseline) == ("turn", 1, 3, "alive")
    assert (first.value, first.mean, first.std) == pytest.approx((0.7, 0.3, 0.360555), abs=1e-6)
    assert first.ended == 1, "the third, whose 0.5 is its outcome"
    assert first.adds == pytest.approx(0.4 / 0.360555, abs=1e-4)
    # Turn 2 is the last of both rollouts that have it: nothing is paid there but the outcome.
    assert (later.kind, later.turn, later.count, later.adds) == ("ended", 2, 2, 0.0)
    assert (outcome.kind, outcome.value, outcome.mean, outcome.std) == ("outcome", 1.0, 0.5, 0.5)
    assert sums("mt_grpo", README, {})[0] == pytest.approx([2.109, 1.0], abs=1e-3)
    (ended, none) = working[2][0]
    assert (ended.kind, ended.value, none.adds) == ("ended", 0.0, 0.0)
    assert ended.adds == pytest.approx(-0.3 / 0.360555, abs=1e-4)


def test_discounts_are_the_weights() -> None:
    working = explain("mt_grpo", [[0.5, 0.5, 1.0], [0.1, 0.2, 0.0]], {"turn_coef": 2.0, "discount": 0.5})
    assert working is not None
    assert [term.weight for term in working[0][0]] == [2.0, 1.0, 0.5, 0.25]
    assert [term.weight for term in working[0][2]] == [2.0, 1.0]


def test_nobody_to_compare_with() -> None:
    """In turn_rloo, the only rollout with a turn 2 is compared with the other's last, a single one with nothing."""
    working = explain("turn_rloo", [[0.5, 1.0], [0.25]], {})
    assert working is not None
    ((alone,),) = working[0][1:]
    assert (alone.baseline, alone.mean, alone.adds) == ("others_outcome", 0.25, 0.75)
    single = explain("turn_rloo", [[0.5]], {})
    assert single is not None and (single[0][0][0].baseline, single[0][0][0].adds) == ("nobody", 0.5)


def test_other_estimators_have_no_working() -> None:
    assert explain("gae", README, {}) is None and explain("turn_reinforce_pp", README, {}) is None
