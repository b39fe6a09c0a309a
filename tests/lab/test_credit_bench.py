"""AgentCreditBench's metrics: worked out by hand, and its published numbers where it has some."""

from __future__ import annotations

import math

import pytest
import torch

from verl_mtgrpo.lab.learn import make
from verl_mtgrpo.lab.learn.credit_bench import PUBLISHED, advantages, as_csv, as_markdown, run_all, score
from verl_mtgrpo.lab.learn.rollouts import Walks


@pytest.fixture(scope="module")
def scores():
    return run_all(["grpo_or", "turn_rloo", "turn_gae", "turn_gae:lam=0.0"], quick=True)


def two_batches() -> Walks:
    """Recovery, two batches of two rollouts: (GOOD; BAD RECOVER) and (BAD GIVE_UP; BAD RECOVER)."""
    return Walks(
        node_BD=torch.tensor([[0, -1], [0, 1], [0, 1], [0, 1]]),
        yes_BD=torch.tensor([[True, False], [False, True], [False, False], [False, True]]),
        reward_BD=torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 1.0]]),
        group_B=torch.tensor([0, 0, 1, 1]),
        turn_BD=torch.tensor([[0, -1], [0, 1], [0, 1], [0, 1]]),
    )


def test_both_families_by_hand():
    task, walks = make("recovery"), two_batches()
    logits = task.start_logits.repeat(2, 1)
    # Advantages: GOOD +.25, BAD -.25, RECOVER +.5, GIVE_UP -.5.
    assert advantages(task, logits[:1], walks).tolist() == [[0.25, 0], [-0.25, 0.5], [-0.25, -0.5], [-0.25, 0.5]]
    # Credit: 1, (1, 1) and (0, 0), (1, 1). Off: .75, (1.25, .5) and (.25, .5), (1.25, .5).
    found = score(task, logits, walks, walks.reward_BD.sum(dim=1, keepdim=True).expand(4, 2))
    first, second = (0.5625 + 1.5625 + 0.25) / 3, (0.0625 + 0.25 + 1.5625 + 0.25) / 4
    assert found["RMSE"] == pytest.approx((math.sqrt(first) + math.sqrt(second)) / 2)
    # Centred, batch 1: s0 has .75 and 1.25, so ±.25; "mistake" has one visit: 0. Batch 2: s0 ±.5, "mistake" 0.
    assert found["centred RMSE"] == pytest.approx((math.sqrt(0.125 / 3) + math.sqrt(0.5 / 4)) / 2)
    # Signs that are right: GOOD and RECOVER of 3; RECOVER of 4, as 0 has no sign.
    assert found["sign"] == pytest.approx((2 / 3 + 1 / 4) / 2)
    # Batch 1: equal credit, no ranks. Batch 2, minus 2.5: credit (-1, -1, 1, 1), advantage (0, -1.5, 0, 1.5).
    ranks = (-1 * -1.5 + 1 * 1.5) / math.sqrt(4 * 4.5)
    assert found["Spearman"] == pytest.approx((0 + ranks) / 2)
    assert math.isnan(found["leak"])  # no advantage is 0
    assert (found["BAD"], found["RECOVER"]) == (1.0, 1.0)
    assert found["all BAD"] == pytest.approx((1.0 + 0.5) / 2)
    # Gradients of (GOOD, RECOVER), mean over two rollouts: (.5 - .5, .5) / 2 and (-.5, .5) / 2.
    # Exact: .5 · .5 · (1 - .5) = .125 at s0; .5 · .25 · 1 = .125 at mistake.
    star = torch.tensor([0.125, 0.125], dtype=torch.float64)
    batches = torch.tensor([[0.0, 0.25], [-0.25, 0.25]], dtype=torch.float64)
    assert torch.allclose(task.exact_gradient(logits[:1])[0], star)
    assert found["cosine"] == pytest.approx((math.sqrt(0.5) + 0) / 2)
    errors = [float((g - star).norm() / star.norm()) for g in batches]
    assert found["error"] == pytest.approx(sum(errors) / 2)
    mean = torch.tensor([-0.125, 0.25], dtype=torch.float64)
    assert found["mean error"] == pytest.approx(float((mean - star).norm() / star.norm()))
    assert found["mean cosine"] == pytest.approx(1 / math.sqrt(2 * 5))
    assert found["MSE"] == pytest.approx(sum(error**2 for error in errors) / 2)


@pytest.mark.parametrize("setting", PUBLISHED)
def test_what_it_has_published_comes_out(setting, scores):
    """Within 0.04: the random numbers are others, and there are a twentieth of the batches.

    Errors of gradients are left out, as their size is that of the sample.
    """
    compared = 0
    for name, published in PUBLISHED[setting].items():
        for metric, value in published.items():
            if name.endswith("(theirs)") or metric in ("error", "mean error", "MSE"):
                continue
            assert scores[setting][name][metric] == pytest.approx(value, abs=0.04), (name, metric)
            compared += 1
    assert compared >= 2


def test_turn_rloo_has_no_bias_where_the_first_turnloo_had_one(scores):
    # 0.2254 with batches of two, of the 5,000 batches; here 250, whose sampling error is the oracle's order.
    for size, biased in ((2, 0.2254), (4, 0.1514), (8, 0.0929)):
        found = scores[f"variable horizon, G = {size}"]["turn_rloo"]
        noise = math.sqrt(found["MSE"] / 250)
        assert found["mean error"] < 2 * noise
        assert found["mean error"] < biased


def test_tables(scores):
    text, rows = as_markdown(scores), as_csv(scores).splitlines()
    assert "### recovery" in text
    assert "| oracle | -0.250 (-0.250) | 0.500 (0.500) |" in text
    assert "| GiGPO-style (theirs) | (1.151) | (1.571) |" in text
    assert "turn-level GAE, exact values, lam=0.0" in text
    assert any(row.startswith("recovery,2000,30,grpo_or,all BAD,") and row.endswith(",-0.5755") for row in rows)
