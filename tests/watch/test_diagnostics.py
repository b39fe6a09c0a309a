"""Credit metrics by hand and against a plain loop."""

from __future__ import annotations

import statistics
from collections import defaultdict

import pytest
import torch

from tests.credit.batches import estimate, multi_turn_batch, random_batch
from tests.oracles import runs_of_ones, sign_conflicts
from verl_mtgrpo.credit import ESTIMATORS, runs, turns
from verl_mtgrpo.errors import CreditInputError
from verl_mtgrpo.watch import diagnostics
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
            # Rollout 1 earned .7 at turn 1; rollout 2 ended there and counts as 0: +.35, and the advantage is positive.
            "turn/1/sign_conflict": 0.0,
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


def of_turns(rows: list[list[float]]) -> torch.Tensor:
    """One token per turn, at every second place."""
    tokens = torch.zeros(len(rows), 2 * max(map(len, rows)))
    for row, values in zip(tokens, rows, strict=True):
        row[: 2 * len(values) : 2] = torch.tensor(values)
    return tokens


def conflicts(paid: list[list[float]], advantages: list[list[float]], index: list[str]) -> dict[str, float]:
    mask = of_turns([[1.0] * len(one) for one in paid])
    metrics = credit_metrics(of_turns(paid), of_turns(advantages), mask, index)
    return {name: value for name, value in metrics.items() if name.endswith("sign_conflict")}


def test_an_outcome_that_opposes_by_hand():
    """Two groups of the paper's two turns: the search that found it and the right answer are not in one rollout.

    Group a: 1, 0, 0, 0 at turn 1 (mean 1/4: +, -, -, -) and outcomes 0, 1, 1, 1 (mean 3/4: -, +, +, +). With c = 1 both
    have the same standard deviation, so they cancel. With c = 1/2 the outcome wins in all four; with c = 2 in none.
    Group b: everybody earned 0.3 at turn 1, so nobody has a term there.
    """
    paid = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.3, 1.0], [0.3, 0.0]]
    rewards, mask = of_turns(paid), of_turns([[1.0, 1.0]] * 6)
    index = ["a"] * 4 + ["b"] * 2
    for coef, share in ((0.5, 1.0), (1.0, 0.0), (2.0, 0.0)):
        advantages, _ = ESTIMATORS["mt_grpo"](rewards, mask, index, turn_coef=coef)
        metrics = credit_metrics(rewards, advantages, mask, index)
        assert metrics["turn/1/sign_conflict"] == share
        assert "turn/2/sign_conflict" not in metrics, "the last turn has no term of its own"


def test_a_rollout_that_ended_there_counts_as_zero_and_is_not_counted():
    # Turn 1: .5, .5 and 0 for the one that ended (what it was paid there is its outcome): mean 1/3, so both are above.
    assert conflicts([[0.5, 0], [0.5, 0], [2.0]], [[-1.0, 0], [1.0, 0], [-1.0]], ["a"] * 3) == {
        "turn/1/sign_conflict": 0.5
    }
    # Turn 1: 0 and .5 (-, +), both with the other sign. Turn 2: .5, and the other one ended there: +.25 against -1.
    assert conflicts([[0, 0.5, 0], [0.5, 0]], [[1.0, -1.0, 0], [-1.0, 0]], ["a", "a"]) == {
        "turn/1/sign_conflict": 1.0,
        "turn/2/sign_conflict": 1.0,
    }
    # Turn 1: 0, and 0 for the one that ended there. Turn 2: alone.
    assert conflicts([[0, 0.5, 0], [0.5]], [[1.0, -1.0, 0], [-1.0]], ["a", "a"]) == {}
    assert conflicts([[0.5, 0.0]], [[-1.0, 0.0]], ["a"]) == {}, "a group of one has nothing to compare with"


@pytest.mark.parametrize("middle", [0.2, -0.2])
def test_rounding_makes_no_sign(middle: float):
    third = 1 / 3
    equal = [[third, 0.0]] * 3
    assert conflicts(equal, [[-1.0, 0.0]] * 3, ["a"] * 3) == {}, "all equal"
    paid = [[middle - 0.1, 0.0], [middle, 0.0], [middle + 0.1, 0.0]]  # in float32 the middle one is not the mean
    assert conflicts(paid, [[-1.0, 0], [1.0, 0], [1.0, 0]], ["a"] * 3) == {"turn/1/sign_conflict": 0.0}, "two count"
    assert conflicts(paid, [[-1.0, 0], [1.0, 0], [-1e-6, 0]], ["a"] * 3) == {"turn/1/sign_conflict": 0.0}
    assert conflicts(paid, [[-1.0, 0], [1.0, 0], [float("nan"), 0]], ["a"] * 3) == {"turn/1/sign_conflict": 0.0}


@pytest.mark.parametrize("name", ["mt_grpo", "turn_rloo", "gtpo", "turn_gae"])
@pytest.mark.parametrize("seed", range(8))
def test_sign_conflicts_against_a_loop(name: str, seed: int):
    batch = multi_turn_batch(seed) if seed % 2 else random_batch(seed, max_rows=24)
    rewards = (4 * batch.rewards).round() / 4  # in quarters, which float32 adds up exactly
    advantages, _ = estimate(name, rewards, batch.mask, batch.index)
    runs = [runs_of_ones(row) for row in batch.mask.tolist()]
    paid, credit = (
        [
            [sum(row[t] for t in run) / (len(run) if mean else 1) for run in some]
            for row, some in zip(of, runs, strict=True)
        ]
        for of, mean in ((rewards.tolist(), False), (advantages.tolist(), True))
    )
    credit = [[0.0 if abs(value) < 1e-5 else value for value in some] for some in credit]
    expected = {
        f"turn/{k}/sign_conflict": pytest.approx(opposite / counted)
        for k, (opposite, counted) in sign_conflicts(paid, credit, batch.index).items()
    }
    metrics = credit_metrics(rewards, advantages, batch.mask, batch.index)
    assert {k: v for k, v in metrics.items() if k.endswith("sign_conflict")} == expected


def test_sign_conflicts_look_at_what_was_paid():
    """A KL penalty that makes rollouts differ gives them no term."""
    paid, mask = of_turns([[0.5, 1.0], [0.5, 0.0]]), of_turns([[1.0, 1.0]] * 2)
    seen = paid - of_turns([[0.1, 0.0], [0.0, 0.0]])
    assert "turn/1/sign_conflict" in credit_metrics(seen, seen, mask, ["a", "a"])
    assert "turn/1/sign_conflict" not in credit_metrics(seen, seen, mask, ["a", "a"], paid=paid)


def test_where_it_went_waits_for_the_device_as_often_as_it_has_tables(monkeypatch: pytest.MonkeyPatch):
    batch = multi_turn_batch(0)
    read = diagnostics._read(batch.rewards, batch.rewards, batch.mask, batch.index)
    waits: list[str] = []
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)  # the form that runs on a GPU
    for name in ("tolist", "item", "__int__", "__bool__", "__float__", "__index__", "nonzero", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, *a, name=name, original=original: (waits.append(name), original(self, *a))[1],
        )
    diagnostics._where_it_went(read, read, batch.rewards)
    monkeypatch.undo()
    assert waits == ["tolist", "__float__"], "the turns' table, and the share of the outcome"


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
