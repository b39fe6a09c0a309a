"""Exact expectations of ``mtgrpo lab learn`` against enumerations that are written out here, without the package."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from tests import oracles
from verl_mtgrpo.lab.learn import Budget, differing, expected, learn, make, method
from verl_mtgrpo.lab.learn.exact import paths
from verl_mtgrpo.lab.learn.learner import advantages_of, gradient
from verl_mtgrpo.lab.learn.rollouts import sample

POINT = {"heart": 0.3, "broken": 0.25, "good": 0.4, "read": 0.2, "use": 0.35}
LOGITS = ("search", "sound", "good", "read")


def outcomes(known: float):
    """Every rollout of the search task as (probability, rewards of its turns, decisions), by hand."""
    search, sound, good, read = 0.35, 0.75, 0.4, 0.2
    rows = [
        (search * (1 - sound), [0.0, 0.0], {"search": 1, "sound": 0}),
        (search * sound * (1 - good), [0.2, 0.0], {"search": 1, "sound": 1, "good": 0}),
        (search * sound * good * read, [0.7, 1.0], {"search": 1, "sound": 1, "good": 1, "read": 1}),
        (search * sound * good * (1 - read), [0.7, 0.0], {"search": 1, "sound": 1, "good": 1, "read": 0}),
        ((1 - search) * known, [1.0], {"search": 0}),
        ((1 - search) * (1 - known), [0.0], {"search": 0}),
    ]
    return [row for row in rows if row[0] > 0]


def kinds(known_by: str):
    """Share of questions and how likely they are known."""
    return [(1.0, 0.3)] if known_by == "rollout" else [(0.3, 1.0), (0.7, 0.0)]


def paid(name: str, turns: list[float]) -> list[float]:
    if name == "grpo_or":
        return [0.0] * (len(turns) - 1) + [turns[-1]]
    if name == "grpo_mr":
        return [0.0] * (len(turns) - 1) + [sum(turns)]
    return turns


def advantages(name: str, group: list[list[float]]) -> list[list[float]]:
    """Advantages of the turns of each rollout of one group: GRPO written out, the others by tests/oracles.py."""
    if name in ("grpo_or", "grpo_mr"):
        totals = [sum(turns) for turns in group]
        mean = sum(totals) / len(totals)
        std = math.sqrt(sum((x - mean) ** 2 for x in totals) / (len(totals) - 1))
        return [[(total - mean) / (std + 1e-6)] * len(turns) for total, turns in zip(totals, group, strict=True)]
    # one token per turn, one observation between turns
    rewards = [[turns[0], 0.0, turns[1]] if len(turns) == 2 else [turns[0], 0.0, 0.0] for turns in group]
    masks = [[1, 0, 1] if len(turns) == 2 else [1, 0, 0] for turns in group]
    found = getattr(oracles, name)(rewards, masks, ["g"] * len(group))
    return [[row[0], row[2]][: len(turns)] for row, turns in zip(found, group, strict=True)]


def by_hand(name: str, size: int, known_by: str):
    """E[advantage of turn 1 | search], E[... | no search] and the mean gradient, over all ordered groups."""
    probability = dict(zip(LOGITS, (0.35, 0.75, 0.4, 0.2), strict=True))
    sums = {0: [0.0, 0.0], 1: [0.0, 0.0]}
    slope = dict.fromkeys(LOGITS, 0.0)
    for share, known in kinds(known_by):
        for group in product(outcomes(known), repeat=size):
            likely = share * math.prod(row[0] for row in group)
            found = advantages(name, [paid(name, row[1]) for row in group])
            for row, advantage in zip(group, found, strict=True):
                sums[row[2]["search"]][0] += likely * advantage[0]
                sums[row[2]["search"]][1] += likely
                for logit, answer in row[2].items():
                    turn = 1 if logit == "read" else 0
                    slope[logit] += likely * advantage[turn] * (answer - probability[logit]) / size
    return sums[1][0] / sums[1][1], sums[0][0] / sums[0][1], [slope[logit] for logit in LOGITS]


@pytest.mark.parametrize("known_by", ["rollout", "question"])
@pytest.mark.parametrize("name", ["grpo_or", "grpo_mr", "mt_grpo", "turn_rloo", "gtpo"])
def test_expected_advantages_of_the_search_task(name, known_by):
    task = make("search", known_by=known_by, **POINT)
    found = expected(task, method(name), size=3)
    yes, no, slope = by_hand(name, 3, known_by)
    assert (found.yes, found.no) == pytest.approx((yes, no), abs=2e-6)
    assert found.gain == pytest.approx(yes - no, abs=2e-6)
    assert found.gradient_P.tolist() == pytest.approx(slope, abs=2e-6)


def test_the_outcome_alone_speaks_against_searching_and_turn_rewards_for_it():
    # 0.3 by heart; searching is right in 0.75 · 0.4 · 0.2 = 0.06 and earns 0.75 · 0.2 + 0.75 · 0.4 · 0.5 = 0.3 more.
    task = make("search", known_by="rollout", **POINT)
    assert task.exact_gradient(task.start_logits[None])[0, 0].item() == pytest.approx(0.35 * 0.65 * (0.36 - 0.3))
    outcome = task.exact_gradient(task.start_logits[None], "exact")[0]
    assert outcome[0].item() == pytest.approx(0.35 * 0.65 * (0.06 - 0.3))
    assert expected(task, method("grpo_or"), size=4).gain < -0.3
    assert expected(task, method("mt_grpo"), size=4).gain > 0.1


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("search", POINT),
        ("chain", {"hops": 2}),
        ("recovery", {}),
        ("variable_horizon", {}),
        ("delayed_effect", {"horizon": 3}),
    ],
)
def test_turn_rloo_follows_the_exact_policy_gradient(name, settings):
    task = make(name, **settings)
    found = expected(task, method("turn_rloo"), size=2)
    exact = task.exact_gradient(task.start_logits[None])[0]
    assert found.gradient_P.tolist() == pytest.approx(exact.tolist(), abs=1e-6)
    # A step of many groups points there, too.
    logits = task.start_logits[None]
    walks = sample(task, logits, [torch.Generator().manual_seed(0)], groups=20_000, size=2)
    step = gradient(task, logits, walks, advantages_of(task, method("turn_rloo"), logits, walks, together=True))
    assert torch.allclose(step[0], exact, atol=0.03)


def test_the_exact_gradient_by_finite_differences():
    task = make("price")
    logits = task.start_logits[None]
    exact = task.exact_gradient(logits)[0]
    for p in range(len(exact)):
        moved = torch.zeros_like(logits)
        moved[0, p] = 1e-5
        slope = (task.expected(logits + moved, None) - task.expected(logits - moved, None)) / 2e-5
        assert exact[p].item() == pytest.approx(slope.item(), abs=1e-8)


def test_a_step_of_the_learner_is_the_sampled_gradient_at_the_length_that_was_asked_for():
    task = make("search", **POINT)
    curves = learn(task, method("mt_grpo"), Budget(steps=1, length=0.25), seeds=[3])
    walks = sample(task, task.start_logits[None], [torch.Generator().manual_seed(3)], groups=16, size=8)
    slope = torch.zeros(4, dtype=torch.float64)
    logit = task.tables.logit_N
    all_advantages = advantages_of(task, method("mt_grpo"), task.start_logits[None], walks, together=True)
    start = task.start_logits.sigmoid()
    for nodes, answers, found in zip(walks.node_BD.tolist(), walks.yes_BD, all_advantages, strict=True):
        for d, node in enumerate(nodes):
            if node >= 0 and logit[node] >= 0:
                slope[logit[node]] += found[d] * (float(answers[d]) - start[logit[node]]) / 128
    moved = curves.logits[0, 1] - curves.logits[0, 0]
    assert moved.norm().item() == pytest.approx(0.25)
    assert torch.allclose(moved, 0.25 * slope / slope.norm())


def test_paths_are_all_rollouts():
    task = make("search", known_by="question", **POINT)
    found = paths(task, task.start_logits)
    per_kind = {share: 0.0 for share, _ in kinds("question")}
    for share, likely in zip(found.share_B.tolist(), found.probability_B.tolist(), strict=True):
        per_kind[round(share, 9)] += likely
    assert per_kind == pytest.approx({0.3: 1.0, 0.7: 1.0})
    assert len(found.probability_B) == len(outcomes(1.0)) + len(outcomes(0.0))


def test_groups_that_can_teach_something():
    # Two hops at 0.3: the outcome is right in 0.09; four rollouts are all alike in 0.09^4 + 0.91^4.
    chain = make("chain", hops=2, good=0.3)
    assert differing(chain, method("grpo_or"), size=4) == pytest.approx(1 - 0.09**4 - 0.91**4)
    # Totals: 0 (0.49), 0.5 (0.42), 2 (0.09).
    assert differing(chain, method("grpo_mr"), size=4) == pytest.approx(1 - 0.49**4 - 0.42**4 - 0.09**4)


def test_too_many_groups_are_refused():
    with pytest.raises(ValueError, match="different groups of 16, expected at most 200,000; choose a smaller group"):
        expected(make("chain", hops=4), method("mt_grpo"), size=16)
