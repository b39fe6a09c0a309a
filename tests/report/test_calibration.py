"""Turn rewards against the outcome: by hand, against loops, against the estimators, and where there is nothing."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.oracles import sign_conflicts
from tests.report.calibrated import OPPOSED, Rollouts, estimated, named, rows_of, trained, validated
from tests.report.made import dump_row, training_row, transcript, write_rows
from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.report.calibration import Calibration, Correlation, calibrate
from verl_mtgrpo.report.calibration_tables import advice, for_page, to_markdown
from verl_mtgrpo.report.catalog import read_catalog
from verl_mtgrpo.rewards.transcript import Transcript
from verl_mtgrpo.watch.diagnostics import credit_metrics

# ---- by hand


def test_correlations_by_hand(tmp_path: Path) -> None:
    """Σxy = -.5, Σx² = 8 · .0625 = .5, Σy² = 8 · .25 = 2 over the groups a and b: r = -.5 / √1."""
    got = trained(tmp_path, OPPOSED)
    expected = Correlation("reward of turn 1", 1, pytest.approx(-0.5), pytest.approx(1 / math.sqrt(6)), 2, 8)
    assert got.correlations[0] == expected
    assert named(got, "turn rewards") == Correlation("turn rewards", 0, *(expected.r, expected.error, 2, 8))
    assert named(got, "tool/used").undefined == "no group differs in it"
    assert named(got, "outcome/em").r == pytest.approx(1.0), "made.py logs the last turn's reward under this name"


def test_a_kind_of_error_that_is_not_logged_is_zero(tmp_path: Path) -> None:
    """Logged only where it is not 0. Errors 1, 0 and outcomes 0, 1: r = -1. A share of no calls is nothing."""
    logged = [{"tool/errors/bad_arguments": 1.0, "tool/success": 0.0}, {"tool/success": None}]
    got = trained(tmp_path, {"a": [[0.0, 0.0], [0.0, 1.0]]}, more=logged)
    assert named(got, "tool/errors/bad_arguments").r == pytest.approx(-1.0)
    assert named(got, "tool/success").r is None


def test_a_rollout_that_ended_with_the_turn_counts_as_zero_there(tmp_path: Path) -> None:
    """Turn 1: .5, 0 and 0 (ended), minus 1/6; outcomes 1, 0, 1, minus 2/3. Turn 2: .3 and 0 (ended)."""
    got = trained(tmp_path, {"a": [[0.5, 0.3, 1.0], [0.0, 0.0], [1.0]]})
    r = (1 / 9 + 2 / 18 - 1 / 18) / math.sqrt(1 / 6 * 6 / 9)
    assert [(one.r, one.rollouts) for one in got.correlations[:2]] == [(pytest.approx(r), 3), (pytest.approx(1.0), 2)]
    assert [(one.turn, one.rollouts) for one in got.conflicts] == [(1, 2), (2, 1)]


def test_signs_by_hand(tmp_path: Path) -> None:
    """Use the rewards of tests/watch/test_diagnostics.py: 1, 0, 0, 0 at turn 1 and 0, 1, 1, 1 as outcome."""
    rollouts = {"a": [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], "b": [[0.3, 1.0], [0.3, 0.0]]}
    for coef, share in ((0.5, 1.0), (1.0, 0.0), (2.0, 0.0)):
        (one,) = trained(tmp_path, rollouts, turn_coef=coef).conflicts
        assert (one.turn, one.rollouts, one.share) == (1, 4, share)


def test_weights_by_hand(tmp_path: Path) -> None:
    """Adding up: turn rewards ±.1 (four), outcomes ±.5 (four), n - 1 = 3: std √(.04/3) and √(1/3), so 5 times.

    Normalised one by one they are alike in a group in which both differ; in b the outcome alone does: √2 to 1.
    """
    a = [[0.2, 1.0], [0.2, 0.0], [0.0, 1.0], [0.0, 0.0]]
    (one,) = trained(tmp_path, {"a": a}, name="turn_rloo").balances
    assert (one.estimator, one.weight, one.now, one.groups, one.rollouts) == ("turn_rloo", "turn rewards", 1.0, 1, 4)
    assert [one.turn_std, one.outcome_std] == pytest.approx([math.sqrt(0.04 / 3), math.sqrt(1 / 3)])
    assert one.alike == pytest.approx(5.0)
    (one,) = trained(tmp_path, {"a": a, "b": [[0.2, 1.0], [0.2, 1.0], [0.2, 0.0], [0.2, 0.0]]}, turn_coef=0.3).balances
    assert (one.weight, one.now) == ("turn_coef", 0.3)
    assert one.alike == pytest.approx(math.sqrt(2), rel=1e-4)
    assert [one.turn_std, one.outcome_std] == pytest.approx([math.sqrt(0.5), 1.0], rel=1e-4)


def test_what_the_last_turn_was_paid_beyond_the_outcome_are_turn_rewards(tmp_path: Path) -> None:
    """``reward.turn.pay=merged``: everything at the end; 1.7 - 1.0 and 0.2 + 0.5 are the same turn rewards."""
    rollouts = {"a": [[0.0, 1.7], [0.0, 0.5], [1.0]]}
    more = [{"outcome/reward": outcome} for outcome in (1.0, 0.0, 0.3)]
    got = trained(tmp_path, rollouts, more=more, name="gtpo")
    # Turn rewards .7, .5, .7 and outcomes 1, 0, .3
    x, y = np.array([0.7, 0.5, 0.7]), np.array([1.0, 0.0, 0.3])
    assert named(got, "turn rewards").r == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert named(got, "reward of turn 1").undefined == "no group differs in it", "nothing is paid there"
    assert got.balances[0].turn_std == pytest.approx(np.std(x, ddof=1))
    assert got.conflicts[0].rollouts == 0


def test_equal_sums_are_equal_whatever_they_are_made_of(tmp_path: Path) -> None:
    got = trained(tmp_path, {"a": [[0.1, 0.2, 0.3, 1.0], [0.3, 0.2, 0.1, 0.0], [0.2, 0.2, 0.2, 0.0]]})
    assert named(got, "turn rewards").undefined == "no group differs in it"


# ---- against loops and estimators


def random_rollouts(seed: int) -> tuple[Rollouts, list[dict[str, Any]]]:
    """Rewards in quarters, some groups of one, one to four turns; one component, which is not always there."""
    rng = random.Random(seed)
    rollouts = {
        f"g{group}": [
            [rng.choice([0.0, 0.25, 0.5, -0.25]) for _ in range(rng.randint(0, 3))] + [rng.choice([0.0, 1.0])]
            for _ in range(rng.randint(1, 6))
        ]
        for group in range(12)
    }
    more = [{"tool/mine": rng.choice([0.0, 0.5, None])} for some in rollouts.values() for _ in some]
    return rollouts, more


def naive_r(groups: list[list[tuple[float, float]]]) -> tuple[float, int, int]:
    xs: list[float] = []
    ys: list[float] = []
    used = [some for some in groups if len({x for x, _ in some}) > 1 and len({y for _, y in some}) > 1]
    for some in used:
        for x, y in some:
            xs.append(x - sum(x for x, _ in some) / len(some))
            ys.append(y - sum(y for _, y in some) / len(some))
    return float(np.corrcoef(xs, ys)[0, 1]), len(used), len(xs)


@pytest.mark.parametrize("name", ["mt_grpo", "turn_rloo", "gtpo"])
@pytest.mark.parametrize("seed", range(4))
def test_against_loops(name: str, seed: int, tmp_path: Path) -> None:
    rollouts, more = random_rollouts(seed)
    got = trained(tmp_path, rollouts, name=name, more=more)
    paid = [one for some in rollouts.values() for one in some]
    groups = [group for group, some in rollouts.items() for _ in some]
    for turn in range(max(map(len, paid)) - 1):
        pairs = [
            [(one[turn] if len(one) > turn + 1 else 0.0, one[-1]) for one in some if len(one) > turn]
            for some in rollouts.values()
        ]
        one = named(got, f"reward of turn {turn + 1}")
        assert (one.r, one.groups, one.rollouts) == pytest.approx(naive_r(pairs))
    one = named(got, "turn rewards")
    total = [[(sum(one[:-1]), one[-1]) for one in some] for some in rollouts.values()]
    assert (one.r, one.groups, one.rollouts) == pytest.approx(naive_r(total))
    logged = [
        [
            (more[n]["tool/mine"], paid[n][-1])
            for n in range(len(paid))
            if groups[n] == group and more[n]["tool/mine"] is not None
        ]
        for group in rollouts
    ]
    one = named(got, "tool/mine")
    assert (one.r, one.groups, one.rollouts) == pytest.approx(naive_r(logged))
    credit = [[0.0 if abs(a) < 1e-5 else a for a in some] for some in estimated(name, paid, groups)]
    found = {one.turn: (round((one.share or 0.0) * one.rollouts), one.rollouts) for one in got.conflicts}
    assert {turn: counts for turn, counts in found.items() if counts[1]} == sign_conflicts(paid, credit, groups)


@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_the_weight_makes_the_terms_of_the_estimator_itself_alike(seed: int, discount: float, tmp_path: Path) -> None:
    """A_1 = c T + O: two coefficients give both, of the estimator that trains."""
    rollouts, _ = random_rollouts(seed)
    rollouts = {group: some for group, some in rollouts.items() if len(some) > 1}
    paid = [one for some in rollouts.values() for one in some]
    groups = [group for group, some in rollouts.items() for _ in some]
    (one,) = trained(tmp_path, rollouts, discount=discount, turn_coef=0.7).balances
    first, second = (
        np.array([row[0] for row in estimated("mt_grpo", paid, groups, discount=discount, turn_coef=coef)])
        for coef in (1.0, 2.0)
    )
    turn, outcome = second - first, 2 * first - second
    assert one.turn_std == pytest.approx(std_within(turn, groups), rel=1e-4)
    assert std_within(one.alike * turn, groups) == pytest.approx(std_within(outcome, groups), rel=1e-4)


def std_within(values: np.ndarray, groups: list[str]) -> float:
    squares, free = 0.0, 0
    for group in set(groups):
        some = values[[n for n, label in enumerate(groups) if label == group]]
        squares, free = squares + float(((some - some.mean()) ** 2).sum()), free + len(some) - 1
    return math.sqrt(squares / free)


def test_adding_up_discounts_as_the_return_does(tmp_path: Path) -> None:
    """Returns .5 + .9 · .2 and 0 of turn rewards; the outcome counts .81 times in the one and once in the other."""
    (one,) = trained(tmp_path, {"a": [[0.5, 0.2, 1.0], [0.0]]}, name="gtpo", discount=0.9).balances
    assert [one.turn_std, one.outcome_std] == pytest.approx([0.68 / math.sqrt(2), 0.81 / math.sqrt(2)])


def test_the_first_versions_single_turns_are_left_out_of_the_weights(tmp_path: Path) -> None:
    rollouts = {"a": [[0.5, 1.0], [0.0, 0.0], [0.7]], "b": [[1.0], [0.0]]}
    (one,) = trained(tmp_path, rollouts, name="mt_grpo_v1").balances
    assert (one.weight, one.groups, one.rollouts) == ("turn_coef", 1, 2)


@pytest.mark.parametrize("seed", range(4))
def test_signs_are_those_of_the_metric(seed: int, tmp_path: Path) -> None:
    """Any rewards, in float32 as trained and as the dump has them."""
    rng = random.Random(seed)
    rollouts = {
        f"g{group}": [[rng.choice([0.1, 0.2, 0.3, 0.7]), rng.choice([0.1, 0.4, 1.1])] for _ in range(4)]
        for group in range(20)
    }
    paid = [one for some in rollouts.values() for one in some]
    groups = [group for group, some in rollouts.items() for _ in some]
    (one,) = trained(tmp_path, rollouts).conflicts
    rewards = torch.tensor([[a, 0.0, b] for a, b in paid])
    mask = torch.tensor([[1, 0, 1]] * len(paid))
    advantages, _ = ESTIMATORS["mt_grpo"](rewards, mask, groups)
    assert credit_metrics(rewards, advantages, mask, groups)["turn/1/sign_conflict"] == pytest.approx(one.share)
    assert one.share > 0


# ---- a validation, and where there is nothing


def test_a_validation_is_recomputed_and_has_both_weights(tmp_path: Path) -> None:
    got = validated(tmp_path, rows_of(OPPOSED))
    assert not got.training and named(got, "turn rewards").r == pytest.approx(-0.5)
    assert got.conflicts == trained(tmp_path, OPPOSED).conflicts
    assert [(one.estimator, one.weight) for one in got.balances] == [
        ("mt_grpo", "turn_coef"),
        ("methods that add rewards up", "turn rewards"),
    ]
    assert "recomputed as mt_grpo" in for_page(got)["about"]


def test_training_and_validation_are_kept_apart(tmp_path: Path) -> None:
    one = write_rows(tmp_path / "0.jsonl", rows_of(OPPOSED))
    two, three = (
        write_rows(tmp_path / f"{step}.jsonl", [training_row("p", 0, transcript("Vel"), [1.0], [0.0], step=step)])
        for step in (3, 7)
    )
    found = calibrate(read_catalog([one, two, three]).groups)
    assert [(one.training, one.steps) for one in found] == [(True, (3, 7)), (False, (0, 0))]
    assert [for_page(one)["about"].partition(",")[0] for one in found] == [
        "Training rollouts of the steps 3 to 7",
        "Validation rollouts of step 0; nothing is trained on them",
    ]


def test_one_rollout_per_group(tmp_path: Path) -> None:
    got = validated(tmp_path, rows_of({f"q{n}": [[0.5, 1.0]] for n in range(5)}))
    assert got == Calibration(training=False, steps=(0, 0), comparable=False)
    (said,) = advice(got)
    assert "every group has a single rollout" in said and "val_kwargs.n" in said
    assert for_page(got)["tables"] == [] and said in to_markdown([got])[1]


def test_constant_rewards(tmp_path: Path) -> None:
    got = validated(tmp_path, rows_of({"a": [[0.5, 1.0]] * 3, "b": [[0.2, 0.0]] * 3}))
    assert all(one.r is None and one.undefined == "no group differs in it" for one in got.correlations)
    assert got.conflicts[0].rollouts == 0 and got.conflicts[0].share is None
    assert all(one.alike is None and one.undefined.startswith("no group differs in turn") for one in got.balances)
    assert advice(got) == ["What turns were paid cannot be compared with the outcome: no group differs in it."]


@pytest.mark.parametrize(
    ("rollouts", "reason"),
    [
        ({"a": [[0.5, 1.0], [0.0, 1.0]]}, "no group differs in the outcome"),
        (
            {"a": [[0.5, 1.0], [0.0, 1.0]], "b": [[0.5, 1.0], [0.5, 0.0]]},
            "no group differs both in it and in the outcome",
        ),
        ({"a": [[1.0], [0.0]]}, "no group differs in it"),
    ],
)
def test_why_a_correlation_is_undefined(rollouts: Rollouts, reason: str, tmp_path: Path) -> None:
    got = validated(tmp_path, rows_of(rollouts))
    assert named(got, "turn rewards").undefined == reason
    assert advice(got)[0].endswith(f"cannot be compared with the outcome: {reason}.")


def test_a_component_that_only_one_rollout_of_a_group_has(tmp_path: Path) -> None:
    rows = rows_of({"a": [[0.5, 1.0], [0.0, 0.0]]})
    got = validated(tmp_path, [{**rows[0], "tool/latency_s": 0.1}, rows[1]])
    assert named(got, "tool/latency_s").undefined == "no group has two rollouts with it"


def test_dropped_rollouts_and_those_without_a_turn_are_in_no_number(tmp_path: Path) -> None:
    rows = rows_of({"a": [[0.5, 0.0], [0.0, 1.0]]})
    lost = dump_row("a", 2, transcript("Vel", searches=["x"]), [9.0, 9.0], **{"outcome/dropped": 1.0})
    empty = dump_row("a", 3, Transcript((), "response_length"), [])
    (got, alone) = (validated(tmp_path, some) for some in ([*rows, lost, empty], [rows[0], lost, empty]))
    assert got.correlations[:2] == validated(tmp_path, rows).correlations[:2]
    assert named(got, "turn rewards").rollouts == 2 and got.balances[0].rollouts == 2
    assert not alone.comparable
