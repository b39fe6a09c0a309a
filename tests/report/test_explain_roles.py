"""The working behind advantages of roles, against the estimator, against slow loops and by hand, and in words."""

from __future__ import annotations

from typing import Any

import pytest

from tests.credit.role_outputs import BY_HAND, KNOBS, Rows, random_outputs
from tests.oracles_roles import Outputs
from tests.oracles_roles import mhgpo as slowly
from tests.report.roles import said
from tests.report.trees import by_turn
from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.report.explain import explain
from verl_mtgrpo.report.explain_roles import EXPLAINED_WITH_ROLES, Output
from verl_mtgrpo.report.rollouts import DumpedRollout
from verl_mtgrpo.report.terms import Term
from verl_mtgrpo.report.why import explain_group

CHAIN = [("rewriter", "w1", ""), ("rewriter", "w2", ""), ("answerer", "a1", "w1"), ("answerer", "a2", "w1")]
SEARCH = [Output(role, name, (fed,) if fed else ()) for role, name, fed in [*CHAIN, ("answerer", "a3", "w2")]]


def terms(rewards: list[list[float]], outputs: list[Output] = SEARCH, **knobs: Any) -> list[list[list[Term]]]:
    working = explain("mhgpo", rewards, knobs, outputs=outputs)
    assert working is not None
    return working  # type: ignore[return-value]


def workings(rows: Rows, knobs: dict[str, Any]) -> list[list[float]]:
    """The sums of the terms of all groups of a batch, by row; what a frozen row was paid is all on one token."""
    rewards = by_turn(rows, rows.rewards, "sum")  # type: ignore[arg-type]
    found: list[list[float]] = [[]] * len(rewards)
    for prompt in set(rows.index):
        group = [row for row, one in enumerate(rows.index) if one == prompt]
        outputs = [
            Output(rows.role[i] or "", rows.output_id[i] or "", tuple(filter(None, (rows.fed_by[i] or "").split("/"))),
                   learnt=bool(rewards[i]))
            for i in group
        ]  # fmt: skip
        paid = [rewards[i] or [float(rows.rewards[i].sum())] for i in group]
        for row, some in zip(group, terms(paid, outputs, **knobs), strict=True):
            found[row] = [sum(term.adds for term in of_turn) for of_turn in some]
    return found


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_the_terms_sum_to_what_the_estimator_and_the_slow_loops_give(knobs: dict[str, Any]) -> None:
    fed = 0
    for seed in range(8):
        rows = random_outputs(seed)
        named_roles = [role or "" for role in rows.role]
        lists = (rows.rewards.tolist(), rows.mask.tolist(), rows.index, named_roles, rows.output_id, rows.fed_by)
        named = {"c" if name == "turn_coef" else name: value for name, value in knobs.items()}
        for wanted in (rows.advantages(**knobs).tolist(), slowly(Outputs(*lists), **named)):
            for mine, expected in zip(workings(rows, knobs), by_turn(rows, wanted), strict=True):  # type: ignore[arg-type]
                assert mine == pytest.approx(expected, rel=2e-5, abs=2e-5)
        fed += any(rows.fed_by)
    assert fed > 4


def test_every_estimator_that_asks_for_who_fed_whom_is_explained() -> None:
    assert {name for name, record in ESTIMATORS.items() if "fed_by" in record.fields} == set(EXPLAINED_WITH_ROLES)


def test_by_hand() -> None:
    """w1 was answered with F1 1.0 and 0.0, w2 with 0.4: worth .5 and .4, mean .45, std .0707."""
    working = terms([[0.0], [0.0], [1.0], [0.0], [0.4]])
    assert [term.adds for ((term,),) in working] == pytest.approx(BY_HAND, abs=1e-4)
    ((first,),) = working[0]
    assert (first.value, first.mean, first.std, first.count) == pytest.approx((0.5, 0.45, 0.0707107, 2))
    (back,) = first.parts
    assert (back.kind, back.value, back.readers) == ("back", 0.5, ((2, 1.0), (3, 0.0)))
    ((answer,),) = working[2]
    assert [(part.kind, part.value) for part in answer.parts] == [("outcome", 1.0)]


def test_a_penalty_is_part_of_an_output_s_worth_by_hand() -> None:
    ((term,),) = terms([[0.0], [-0.1], [1.0], [0.0], [0.4]], scale="none")[1]
    assert (term.value, term.mean, term.adds) == pytest.approx((0.3, 0.4, -0.1))
    assert [(part.kind, pytest.approx(part.value)) for part in term.parts] == [("back", 0.4), ("own", -0.1)]


@pytest.mark.parametrize(
    "changes",
    [{0: ("w1", ("a1",))}, {0: ("w1", ("w1",))}, {1: ("w1", ())}, {2: ("a1", ("w9",))}],
    ids=["a circle", "itself", "one name for two", "nobody"],
)
def test_names_that_make_no_sense_are_not_explained(changes: dict[int, tuple[str, tuple[str, ...]]]) -> None:
    outputs = [Output(one.role, *changes.get(row, (one.output_id, one.fed_by))) for row, one in enumerate(SEARCH)]
    assert explain("mhgpo", [[0.0]] * 5, {}, outputs=outputs) is None
    assert explain("mhgpo", [[0.0]] * 5, {}) is None


def group(paid: list[float], **more: dict[str, Any]) -> list[DumpedRollout]:
    return [
        DumpedRollout("g", said("x", prompt="p"), (reward,), ("Vel",), {}, number=number, role=one.role,
                      output_id=one.output_id, fed_by=one.fed_by, estimator="mhgpo", **more.get(f"row{number}", {}))
        for number, (reward, one) in enumerate(zip(paid, SEARCH, strict=True))
    ]  # fmt: skip


def test_in_words() -> None:
    rollouts = group([0.0, -0.1, 1.0, 0.0, 0.4], row1={"penalty": 0.1})
    why = explain_group(rollouts, [(0.7071,), (-0.7071,), (1.0596,), (-0.9272,), (-0.1325,)], "mhgpo")
    assert all(one.adds_up for (one,) in why)
    assert [one.words for (one,) in why[:3]] == [
        "This output is worth 0.50: 0.50 came back from what read it (the mean of answerer 2 1.00, answerer 3 0.00); "
        "the 2 outputs of this role averaged 0.40 ± 0.14: +0.71.",
        "This output is worth 0.30: 0.40 came back from what read it (answerer 4 0.40) plus it was paid −0.10 itself; "
        "the 2 outputs of this role averaged 0.40 ± 0.14: −0.71. Of what it was paid, 0.10 was taken for its form.",
        "This output is worth 1.00: its last turn was paid 1.00, outcome included; the 3 outputs of this role averaged "
        "0.47 ± 0.50: +1.06.",
    ]


def test_a_dropped_answer_and_one_that_nothing_is_learnt_from() -> None:
    """a2 is lost, so w1 is worth a1 alone; a3 is frozen, and what it was paid reaches w2 all the same."""
    rollouts = group(
        [0.0, 0.0, 1.0, 0.0, 0.4], row3={"dropped": "no judge"}, row4={"learnt": False, "credited": (0.0,)}
    )
    why = explain_group(rollouts, [(0.7071,), (-0.7071,), (0.0,), (0.0,), (0.0,)], "mhgpo")
    assert why[0][0].adds_up and "worth 1.00" in why[0][0].words and "(answerer 2 1.00)" in why[0][0].words
    assert why[1][0].adds_up and "worth 0.40" in why[1][0].words
    assert why[2][0].words.endswith("there is no other output of this role to compare with: nothing.")
    assert why[3][0].words == "Left out of the update: no judge."
    assert why[4][0].words.startswith("Nothing is learnt from this output.")
