"""Processes: exact values and gradients against enumeration by hand, samples against what was asked for."""

from __future__ import annotations

import math

import pytest
import torch

from verl_mtgrpo.errors import CreditInputError
from verl_mtgrpo.lab import PROCESSES, Action, Process

every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
SMALL = Process(
    "small",
    "Go on or stop.",
    start="first",
    states={
        "first": [Action("go", 0.0, 0.25, "second", tokens=2), Action("stop", 0.0, 1.0)],
        "second": [Action("a", math.log(3.0), 2.0, tokens=3), Action("b", 0.0, 0.0)],
    },
)


def expected_reward(process: Process, logits: dict[str, list[float]]) -> float:
    """All paths, one by one."""

    def go_on(state: str | None) -> float:
        if state is None:
            return 0.0
        weights = [math.exp(x) for x in logits[state]]
        return sum(
            w / sum(weights) * (a.reward + go_on(a.next)) for w, a in zip(weights, process.states[state], strict=True)
        )

    return go_on(process.start)


def test_values_worked_by_hand():
    # second: 3/4 · 2 = 1.5. first: half of .25 + 1.5, half of 1 = 1.375.
    value_S, value_SA = SMALL.values(SMALL.logits)
    assert value_S.tolist() == pytest.approx([1.375, 1.5])
    assert value_SA[0].tolist() == pytest.approx([1.75, 1.0])


def test_gradient_worked_by_hand():
    # ∂V/∂logit(a | s) = P(s) π(a | s) (Q(s, a) - V(s)). first/go: .5 · (1.75 - 1.375) = .1875.
    # second/a: P = .5, π = .75, Q - V = .5: .1875.
    assert SMALL.exact_gradient().flatten().tolist() == pytest.approx([0.1875, -0.1875, 0.1875, -0.1875])


@every_process
def test_the_exact_gradient_is_the_slope_of_the_enumerated_reward(process):
    logits = {s: [a.logit for a in process.states[s]] for s in process.order}
    gradient = process.exact_gradient()
    for n, state in enumerate(process.order):
        for a in range(len(logits[state])):
            ends = []
            for step in (1e-5, -1e-5):
                moved = {s: list(row) for s, row in logits.items()}
                moved[state][a] += step
                ends.append(expected_reward(process, moved))
            assert gradient[n, a].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-8)


@every_process
def test_samples_occur_as_often_as_the_policy_says_and_earn_what_it_expects(process):
    rollouts = process.sample(20_000, 2, torch.Generator().manual_seed(0))
    first = torch.bincount(rollouts.action_BK[:, 0], minlength=process.logits.shape[1]) / 40_000
    assert torch.allclose(first.double(), process.policy[0], atol=0.012)  # five standard errors
    expected = process.values(process.logits)[0][0].item()
    assert rollouts.rewards.sum(dim=1).mean().item() == pytest.approx(expected, abs=0.02)
    assert rollouts.index[:5].tolist() == [0, 0, 1, 1, 2]


def test_tokens_of_a_sample():
    rollouts = SMALL.sample(50, 2, torch.Generator().manual_seed(0))
    went_on = (rollouts.action_BK == torch.tensor([0, 0])).all(dim=1).nonzero()[0].item()
    # two tokens, an observation, three tokens; the value of "first", then of "go", then of "second", then of "a".
    assert rollouts.mask[went_on].tolist() == [1, 1, 0, 1, 1, 1]
    assert rollouts.rewards[went_on].tolist() == pytest.approx([0, 0.25, 0, 0, 0, 2.0])
    assert rollouts.values[went_on].tolist() == pytest.approx([1.375, 1.75, 0, 1.5, 2.0, 2.0])
    assert rollouts.start_BK[went_on].tolist() == [0, 3]
    stopped = (rollouts.action_BK[:, 0] == 1).nonzero()[0].item()
    assert rollouts.mask[stopped].tolist() == [1, 0, 0, 0, 0, 0]
    assert rollouts.state_BK[stopped].tolist() == [0, -1]


def test_most_turns():
    assert [process.max_turns for process in PROCESSES] == [2, 4, 3, 3, 2]


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (
            {"a": [Action("on", next="b")], "b": [Action("back", next="a")]},
            r"'a' can be reached twice .*\(a -> b -> a\)",
        ),
        ({"a": [Action("on", next="c")]}, "state 'c' has no actions; known states: a"),
    ],
)
def test_processes_that_make_no_sense(states, message):
    with pytest.raises(CreditInputError, match=message):
        Process("bad", "", start="a", states=states).exact_gradient()
