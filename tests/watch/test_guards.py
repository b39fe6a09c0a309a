"""When guards fire, what they say, and the numbers that they look at."""

from __future__ import annotations

import math
import re
from collections import defaultdict

import pytest
import torch

from tests.credit.batches import random_batch
from tests.oracles import runs_of_ones
from verl_mtgrpo.watch.diagnostics import credit_health
from verl_mtgrpo.watch.guards import Guards, GuardSettings

HEALTHY = {
    "guard/turn_rewarded": 0.5,
    "guard/zero_variance_groups": 0.2,
    "guard/bad_advantage_tokens": 0.0,
    "guard/masked_advantage_tokens": 0.0,
    "tool/calls": 1.0,
    "tool/failures": 0.1,
    "tool/used": 0.6,
    "turn/count": 1.7,
}


def guards(**settings) -> Guards:
    return Guards(GuardSettings(**settings), turn_rewards=True, masked_advantages=True, keys={})


def fired(watch: Guards, **changes: float) -> tuple[list[str], list[str]]:
    values, messages = watch.look({**HEALTHY, **{name.replace("__", "/"): value for name, value in changes.items()}})
    return [name for name, value in values.items() if value], messages


def test_a_healthy_run_is_left_alone():
    watch = guards()
    for _ in range(20):
        assert fired(watch) == ([], [])
    assert set(watch.look(HEALTHY)[0]) == {
        f"guard/{name}"
        for name in (
            "turn_rewards",
            "zero_variance",
            "bad_advantages",
            "masked_advantages",
            "tool_failures",
            "tool_use",
        )
    }


def outcomes(watch: Guards, series: list[tuple[float, float]]) -> list[int]:
    """Return the steps, from 1, in which the guard of the outcome fires; each has (outcome, rest of what is paid)."""
    found = []
    for step, (outcome, rest) in enumerate(series, start=1):
        firing, messages = fired(watch, outcome__reward=outcome, guard__paid=outcome + rest)
        found += [step] if "guard/outcome" in firing else []
        if messages:
            assert found == [step], "said when it begins"
            assert re.search("the outcome fell to 0.33 from 0.90 at best, while .* rose from 0.10 to 0.40", messages[0])
    return found


# Means over three steps, from the third on: 0.9 (best), 0.9, 0.73, 0.53, 0.37, 0.33, 0.33, 0.5, 0.7: below 0.45 from
# the seventh step to the ninth.
FALLS = [0.9, 0.9, 0.9, 0.9, 0.4, 0.3, 0.4, 0.3, 0.3, 0.9, 0.9]


def test_an_outcome_that_falls_while_more_is_paid_is_said():
    rest = [0.1, 0.1, 0.1, 0.1, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
    assert outcomes(guards(), list(zip(FALLS, rest, strict=True))) == [9]
    assert outcomes(guards(outcome_fall=0.3), list(zip(FALLS, rest, strict=True))) == []


@pytest.mark.parametrize(
    "series",
    [
        [(outcome, 0.1) for outcome in FALLS],  # nothing else is paid more: the policy is simply getting worse
        [(outcome, 0.0) for outcome in FALLS],  # only the outcome is paid
        [(outcome - 1.0, 0.4 - 0.3 * outcome) for outcome in FALLS],  # a share of something below 0 says nothing
        [(0.9, 0.1 + step / 10) for step in range(11)],
        [(0.9 if step % 3 else 0.0, step / 10) for step in range(11)],  # noise
    ],
)
def test_an_outcome_that_falls_alone_or_not_is_not_said(series):
    assert outcomes(guards(), series) == []


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("turn_rewards", {"guard__turn_rewarded": 0.0}, "no rollout earned anything before its last turn"),
        ("zero_variance", {"guard__zero_variance_groups": 0.95}, "in 95% of the groups all rollouts earned the same"),
        (
            "tool_failures",
            {"tool__failures": 0.75, "tool__errors__timeout": 0.5, "tool__errors__no_query": 0.25},
            r"75% of the tool calls fail \(per rollout: timeout 0.5, no_query 0.25\)",
        ),
        (
            "tool_use",
            {"tool__used": 0.01, "turn__count": 1.01},
            r"1% of the rollouts use a tool \(60% at best.* its calls fail",
        ),
        ("tool_use", {"tool__used": 0.25}, r"25% of the rollouts use a tool \(60% at best"),
    ],
)
def test_three_bad_steps_in_a_row_are_said_once(name, changes, said):
    watch = guards()
    fired(watch)
    assert [fired(watch, **changes) for _ in range(2)] == [([], []), ([], [])]
    firing, messages = fired(watch, **changes)
    assert firing == [f"guard/{name}"]
    (message,) = messages
    assert re.search(said, message)
    assert message.startswith(f"guard {name}: for 3 steps: ")
    assert "\n" not in message
    assert fired(watch, **changes) == ([f"guard/{name}"], []), "still firing, not said again"
    assert fired(watch) == ([], [])
    assert [len(fired(watch, **changes)[1]) for _ in range(3)] == [0, 0, 1], "again after it had stopped"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bad_advantages", {"guard__bad_advantage_tokens": 7.0}),
        ("masked_advantages", {"guard__masked_advantage_tokens": 7.0}),
    ],
)
def test_what_is_never_right_is_said_at_once(name, changes):
    firing, messages = fired(guards(), **changes)
    assert firing == [f"guard/{name}"]
    assert messages[0].startswith(f"guard {name}: 7 ")


def test_two_bad_steps_and_a_good_one_do_not_add_up():
    watch = guards()
    bad = {"guard__turn_rewarded": 0.0}
    for changes in (bad, bad, {}, bad, bad, {}):
        assert fired(watch, **changes) == ([], [])


def test_settings_are_taken():
    assert fired(guards(steps=1, zero_variance=0.2))[0] == ["guard/zero_variance"]
    assert fired(guards(steps=1, tool_failures=0.1))[0] == ["guard/tool_failures"]
    assert fired(guards(steps=1, tool_use=0.6))[0] == ["guard/tool_use"]
    assert guards(enable=False).look({**HEALTHY, "guard/bad_advantage_tokens": 1.0}) == ({}, [])


def test_guards_that_make_no_sense_for_a_run_are_left_out():
    watch = Guards(GuardSettings(steps=1), turn_rewards=False, masked_advantages=False, keys={})
    firing, messages = watch.look({**HEALTHY, "guard/turn_rewarded": 0.0, "guard/masked_advantage_tokens": 3.0})
    assert not messages
    assert not {"guard/turn_rewards", "guard/masked_advantages"} & set(firing)


def test_the_settings_that_the_caller_knows_end_the_message():
    keys = {"tool_use": ["the.format", "the.preset"], "turn_rewards": ["the.preset"]}
    watch = Guards(GuardSettings(steps=1), turn_rewards=True, masked_advantages=True, keys=keys)
    (tool_use,) = fired(watch, tool__used=0.0)[1]
    assert tool_use.endswith("a model that calls tools (settings: the.format, the.preset)")
    (zero_variance,) = fired(watch, guard__zero_variance_groups=1.0)[1]
    assert "settings" not in zero_variance


def test_a_step_without_the_numbers_says_nothing():
    assert guards(steps=1).look({}) == ({}, [])
    assert guards(steps=1).look({"tool/calls": 0.0, "tool/failures": 0.0, "tool/used": math.nan}) == ({}, [])


def test_health_by_hand():
    mask = torch.tensor([[1, 0, 1, 0], [1, 0, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    rewards = torch.tensor([[0.5, 0, 1, 0], [0.5, 0, 1, 0], [0, 0, 1, 0], [0, 1, 0, 0], [2.0, 0, 0, 0], [9.0, 0, 0, 0]])
    advantages = torch.zeros(6, 4)
    advantages[0, 1], advantages[3, 2] = 1.0, -1.0  # on tokens that were not generated
    advantages[2, 0], advantages[1, 2] = math.nan, math.inf
    # Group a: equal. Group b: one turn earns 1, two turns earn 0 and 1. Group c: one rollout, the other was dropped.
    health = credit_health(rewards, advantages, mask, ["a", "a", "b", "b", "c", "c"])
    assert health == {
        "guard/turn_rewarded": pytest.approx(2 / 5),
        "guard/paid": pytest.approx((1.5 + 1.5 + 1.0 + 1.0 + 2.0) / 5),
        "guard/zero_variance_groups": pytest.approx(1 / 2),
        "guard/bad_advantage_tokens": 2.0,
        "guard/masked_advantage_tokens": 2.0,
    }


def test_the_same_sum_in_more_turns_is_a_difference():
    mask = torch.tensor([[1, 0, 1], [1, 0, 0]])
    rewards = torch.tensor([[0.0, 0, 0], [0, 0, 0]])
    assert credit_health(rewards, rewards, mask, ["a", "a"])["guard/zero_variance_groups"] == 0.0
    assert "guard/zero_variance_groups" not in credit_health(rewards, rewards, mask, ["a", "b"])


@pytest.mark.parametrize("seed", range(20))
def test_health_against_a_loop(seed):
    batch = random_batch(seed)
    rewards = batch.rewards.round(decimals=0)
    paid = [
        [float(row[turn].sum()) for turn in runs_of_ones(mask)]
        for row, mask in zip(rewards, batch.mask.tolist(), strict=True)
    ]
    groups = defaultdict(list)
    for label, turns in zip(batch.index, paid, strict=True):
        if turns:
            groups[label].append(turns)
    several = [all(one == group[0] for one in group) for group in groups.values() if len(group) > 1]
    alive = [turns for turns in paid if turns]
    health = credit_health(rewards, torch.zeros_like(rewards), batch.mask, batch.index)
    assert health["guard/turn_rewarded"] == pytest.approx(sum(any(t[:-1]) for t in alive) / max(1, len(alive)))
    if several:
        assert health["guard/zero_variance_groups"] == pytest.approx(sum(several) / len(several))
    else:
        assert "guard/zero_variance_groups" not in health
