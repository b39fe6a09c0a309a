"""Credit metrics by hand and against a plain loop."""

from __future__ import annotations

import statistics
from collections import defaultdict

import pytest
import torch

from tests.credit.batches import random_batch
from verl_mtgrpo.credit import runs, turns
from verl_mtgrpo.errors import CreditInputError
from verl_mtgrpo.watch.diagnostics import credit_health, credit_metrics, measure_credit, turn_explained_variance


def test_by_hand():
    # Two groups of two; rollout 2 has one turn, rollout 4 none (dropped).
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    rewards = torch.tensor([[0.7, 0, 0, 1.0], [0, 0.7, 0, 0], [0.2, 0, 0.5, 0], [9.0, 0, 0, 0]])
    advantages = torch.tensor([[2.0, 0, 1.0, 3.0], [-1.0, -2.0, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 0]])
    metrics = credit_metrics(rewards, advantages, mask, ["a", "a", "b", "b"])
    assert metrics == pytest.approx(
        {
            "turn/1/rollouts": 3.0,
            "turn/2/rollouts": 2.0,
            "turn/1/reward_total": (0.7 + 0.7 + 0.2) / 3,
            "turn/2/reward_total": (1.0 + 0.5) / 2,
            "turn/1/advantage_mean": (2.0 - 1.5 + 0.5) / 3,
            "turn/2/advantage_mean": (2.0 + 0.5) / 2,
            "turn/1/advantage_std": statistics.stdev([2.0, -1.5, 0.5]),
            "turn/2/advantage_std": statistics.stdev([2.0, 0.5]),
            "turn/1/zero_variance": 1.0,  # group a: .7 and .7; group b has one rollout
            # turn 2: no group with two rollouts there
            "outcome/zero_variance": 0.0,  # group a: 1.0 and .7
        }
    )


@pytest.mark.parametrize("seed", range(30))
def test_against_a_loop(seed):
    batch = random_batch(seed)
    mask, index = batch.mask, batch.index
    rewards = batch.rewards.round(decimals=0)  # so that some groups are equal
    advantages = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed)) * mask
    by_turn = defaultdict(list)
    for row in range(len(mask)):
        k, t = 0, 0
        while t < mask.shape[1]:
            if not mask[row, t]:
                t += 1
                continue
            end = t
            while end < mask.shape[1] and mask[row, end]:
                end += 1
            k += 1
            turn = slice(t, end)
            by_turn[k].append((index[row], float(rewards[row, turn].sum()), float(advantages[row, turn].mean())))
            t = end
    metrics = credit_metrics(rewards, advantages, mask, index)
    assert max(by_turn, default=0) == sum(name.endswith("/rollouts") for name in metrics)
    for k, found in by_turn.items():
        assert metrics[f"turn/{k}/rollouts"] == len(found)
        assert metrics[f"turn/{k}/reward_total"] == pytest.approx(statistics.fmean(r for _, r, _ in found), abs=1e-5)
        assert metrics[f"turn/{k}/advantage_mean"] == pytest.approx(statistics.fmean(a for _, _, a in found), abs=1e-5)
        std = statistics.stdev(a for _, _, a in found) if len(found) > 1 else 0.0
        assert metrics[f"turn/{k}/advantage_std"] == pytest.approx(std, abs=1e-4)
        groups = defaultdict(list)
        for label, reward, _ in found:
            groups[label].append(reward)
        equal = [len(set(values)) == 1 for values in groups.values() if len(values) > 1]
        assert metrics.get(f"turn/{k}/zero_variance") == (pytest.approx(statistics.fmean(equal)) if equal else None)


def test_a_batch_without_tokens():
    zero = torch.zeros(2, 3)
    assert credit_metrics(zero, zero, zero, ["a", "a"]) == {}


def test_shapes():
    with pytest.raises(CreditInputError, match=r"advantages has shape \(2, 4\), token_level_rewards \(2, 3\)"):
        credit_metrics(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 3), ["a", "a"])


def test_explained_variance_by_hand():
    # Turns begin at tokens 0 and 3 of row 1 and token 1 of row 2; what stands elsewhere is not looked at.
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0]])
    targets = torch.tensor([[1.0, 9, 9, 2.0], [9, 6.0, 9, 9]])  # 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7
    values = torch.tensor([[2.0, 5, 5, 2.0], [5, 4.0, 5, 5]])  # errors -1, 0, 2: mean 1/3, variance 7/3
    assert turn_explained_variance(values, targets, mask) == pytest.approx(1 - (7 / 3) / 7)
    assert turn_explained_variance(targets, targets, mask) == 1.0
    assert turn_explained_variance(values, torch.ones(2, 4), mask) is None
    assert turn_explained_variance(values[:1, :3], targets[:1, :3], mask[:1, :3]) is None


def test_bad_and_misplaced_advantages_by_hand():
    nan, inf = float("nan"), float("inf")
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0]])
    advantages = torch.tensor([[nan, inf, nan, 1.0], [-2.0, -inf, 3e38, 0.0]])
    health = credit_health(torch.zeros(2, 4), advantages, mask, ["a", "b"])
    assert health["guard/bad_advantage_tokens"] == 3.0, "nan, inf and -inf at generated tokens, 3e38 is a number"
    assert health["guard/masked_advantage_tokens"] == 2.0, "nan and -2 at others"


@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_all_of_it_at_once_is_what_each_part_says(critic: bool, kl: float, monkeypatch: pytest.MonkeyPatch):
    batch = random_batch(3)
    paid, mask, index = batch.rewards, batch.mask, batch.index
    noise = torch.randn(paid.shape, generator=torch.Generator().manual_seed(3))
    seen = paid - kl * noise if kl else paid
    more = {"values": noise, "returns": noise + paid} if critic else {}
    expected = {**credit_metrics(seen, noise, mask, index, paid=paid), **credit_health(paid, noise, mask, index)}
    if critic:
        expected["critic/turn_explained_variance"] = turn_explained_variance(noise, noise + paid, mask)
    found: list[torch.Tensor] = []
    monkeypatch.setattr(turns, "find_runs", lambda *given: (found.append(given[0]), runs.find_runs(*given))[1])
    assert measure_credit(seen, noise, mask, index, paid=paid, **more) == pytest.approx(expected)
    assert len(found) == 1, "turns are found once"
