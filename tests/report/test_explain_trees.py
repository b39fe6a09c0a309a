"""The working behind advantages on trees, against the estimators, against slow loops and by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests import oracles_tree
from tests.credit.trees import TreeBatch, random_forest
from tests.report.trees import by_turn
from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.report.explain import explain
from verl_mtgrpo.report.explain_trees import EXPLAINED_ON_TREES
from verl_mtgrpo.report.terms import Term

HAND = ["a/a1", "a/a2", "c", "d"]
"""Leaves 0 and 1 share turn 1; 2 and 3 are alone."""

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("mt_grpo_tree", {}),
    ("mt_grpo_tree", {"turn_coef": 0.3, "discount": 0.8, "missing_turn": "exclude", "weight": "rows"}),
    ("mt_grpo_tree", {"scale": "none", "discount": 0.5, "weight": "once"}),
    ("mt_grpo_tree", {"baseline": "siblings"}),
    ("mt_grpo_tree", {"baseline": "siblings", "scale": "none", "turn_coef": 2.0, "discount": 0.9, "weight": "rows"}),
    ("turn_rloo_tree", {}),
    ("turn_rloo_tree", {"scale": "std", "discount": 0.9, "epsilon": 0.01, "weight": "once"}),
    ("turn_gae_tree", {"whiten": False, "lam": 0.7, "discount": 0.9}),
    ("turn_gae_tree", {"whiten": False, "baseline": "critic", "weight": "rows"}),
    ("arpo", {}),
    ("arpo", {"attribution": "hard"}),
    ("arpo", {"attribution": "once", "epsilon": 0.01}),
    ("tree_grpo", {}),
    ("tree_grpo", {"scale": "none"}),
    *(
        ("at2po", {"node_value": value, "mode": mode})
        for value in ("child_softmax", "child_mean", "leaf_mean")
        for mode in ("node_value", "diff_parent", "diff_global", "diff_localglobal")
    ),
]


def workings(name: str, batch: TreeBatch, settings: dict[str, Any]) -> list[list[float]]:
    """The sums of the terms for all groups of a batch, by row."""
    rewards, values = by_turn(batch, batch.rewards, "sum"), by_turn(batch, batch.values)
    surprisal = by_turn(batch, -batch.log_probs, "mean")
    found: list[list[float]] = [[]] * len(rewards)
    for group in set(batch.index):
        rows = [row for row, one in enumerate(batch.index) if one == group]
        working = explain(
            name,
            [rewards[row] for row in rows],
            settings,
            paths=[batch.paths[row] for row in rows],
            values=[values[row] for row in rows],
            surprisal=[surprisal[row] for row in rows],
        )
        assert working is not None
        for row, one in zip(rows, working, strict=True):
            found[row] = [sum(term.adds for term in terms) for terms in one]
    return found


def given(batch: TreeBatch, name: str) -> list[Any]:
    fields = {"node_path": batch.paths, "values": batch.values, "old_log_probs": batch.log_probs}
    return [fields[field] for field in ESTIMATORS[name].fields]


def slowly(name: str, batch: TreeBatch, settings: dict[str, Any]) -> Any:
    """The same by the loops of tests/oracles_tree.py."""
    named = {"turn_coef": "c", "discount": "alpha" if name == "mt_grpo_tree" else "gamma"}
    knobs = {named.get(key, key): value for key, value in settings.items() if key != "whiten"}
    if name == "mt_grpo_tree" and knobs.pop("baseline", "paper") == "siblings":
        return oracles_tree.mt_grpo_siblings(batch.oracle(), **knobs)
    if name == "turn_gae_tree":
        return oracles_tree.turn_gae_tree(batch.oracle(), batch.values.tolist(), **knobs)[0]
    more = [batch.log_probs.tolist()] if name == "at2po" else []
    return getattr(oracles_tree, name)(batch.oracle(), *more, **knobs)


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=str)
def test_the_terms_sum_to_what_the_estimator_and_the_slow_loops_give(name: str, settings: dict[str, Any]) -> None:
    shared = 0
    for seed in range(12):
        batch = random_forest(seed)
        if seed % 3 == 0:  # a row without a path is a chain, and a dropped one has no turn
            batch.paths[0] = None
            batch.mask[-1] = 0
            batch.paths[-1] = None
        got = workings(name, batch, settings)
        advantages, _ = ESTIMATORS[name](batch.rewards, batch.mask, batch.index, *given(batch, name), **settings)
        for wanted in (advantages.tolist(), slowly(name, batch, settings)):
            for mine, expected in zip(got, by_turn(batch, wanted), strict=True):
                assert mine == pytest.approx(expected, rel=2e-5, abs=2e-5)
        shared += any((path or "").count(".") for path in batch.paths)
    assert shared > 6


def test_every_estimator_that_asks_for_paths_is_explained_and_compared() -> None:
    on_trees = {name for name, record in ESTIMATORS.items() if "node_path" in record.fields}
    assert on_trees == set(EXPLAINED_ON_TREES) == {name for name, _ in SETTINGS}


@pytest.mark.parametrize(
    ("name", "chains"), [("mt_grpo_tree", "mt_grpo"), ("turn_rloo_tree", "turn_rloo"), ("arpo", "grpo")]
)
def test_on_chains_the_working_is_that_of_the_estimator_for_chains(name: str, chains: str) -> None:
    rng = random.Random(name)
    for _ in range(30):
        rewards = [[rng.choice([0.0, 0.1, 0.7]) for _ in range(rng.randint(0, 4))] for _ in range(rng.randint(1, 6))]
        got, wanted = explain(name, rewards, {}), explain(chains, rewards, {})
        assert got is not None and wanted is not None
        for mine, expected in zip(got, wanted, strict=True):
            assert [sum(t.adds for t in terms) for terms in mine] == pytest.approx(
                [sum(t.adds for t in terms) for terms in expected], abs=1e-6
            )


def test_siblings_by_hand() -> None:
    """Turn 1 of a, c and d: c and d end there, so a's 0.6 stands beside two zeros: mean 0.2, std .3464. The shared
    turn's weight is 4 leaves · 1/3 / 2 rows = 2/3. Turn 2 ends both of its rollouts; outcomes 1, 0, 1, 1."""
    working = explain("mt_grpo_tree", [[0.6, 1.0], [0.6, 0.0], [1.0], [1.0]], {}, paths=HAND)
    assert working is not None
    first, later, outcome = working[0][0]
    assert (first.kind, first.baseline, first.count, first.ended) == ("turn", "siblings", 3, 2)
    assert (first.value, first.mean, first.std) == pytest.approx((0.6, 0.2, 0.34641), abs=1e-5)
    assert first.weight == pytest.approx(2 / 3) and first.adds == pytest.approx(2 / 3 * 1.1547, abs=1e-4)
    assert (later.kind, later.baseline, later.count, later.adds) == ("ended", "siblings", 2, 0.0)
    assert (outcome.mean, outcome.std, outcome.adds) == pytest.approx((0.75, 0.5, 2 / 3 * 0.5), abs=1e-5)


def test_arpo_and_at2po_by_hand() -> None:
    """relatives.md 3.1e: rewards 1, 0, 1, 1 with turn 1 shared by the first two."""
    rewards = [[0.0, 1.0], [0.0, 0.0], [1.0], [1.0]]

    def adds(name: str, **settings: Any) -> list[float]:
        working = explain(name, rewards, settings, paths=HAND)
        assert working is not None
        return [sum(term.adds for term in terms) for one in working for terms in one]

    assert adds("arpo") == pytest.approx([0.5, 0.5, -1.5, -1.5, 0.5, 0.5], abs=1e-5)
    assert adds("arpo", attribution="hard") == pytest.approx([-0.5, 0.5, -0.5, -1.5, 0.5, 0.5], abs=1e-5)
    z = [0.57735, -1.73205]
    assert adds("at2po", node_value="child_mean") == pytest.approx(
        [-0.57735, z[0], -0.57735, z[1], z[0], z[0]], abs=1e-4
    )
    more = [own - base for own, base in zip(adds("tree_grpo"), adds("arpo"), strict=True)]
    assert more == pytest.approx([0.70711, 0.70711, -0.70711, -0.70711, 0.0, 0.0], abs=1e-5)


def test_a_turn_without_siblings_says_what_it_is_compared_with() -> None:
    def baseline(name: str, path: list[str], **settings: Any) -> Term:
        working = explain(name, [[0.5, 1.0], [0.1, 0.0]], settings, paths=path)
        assert working is not None
        return working[0][1][0]

    assert baseline("turn_rloo_tree", ["0/0.0", "1/1.0"]).baseline == "other_places"
    assert baseline("turn_rloo_tree", ["0/0.0", "0/0.1"]).baseline == "other_siblings"
    assert baseline("mt_grpo_tree", ["0/0.0", "1/1.0"]).baseline == "place"
    alone = explain("turn_rloo_tree", [[0.5, 1.0], [0.25]], {}, paths=["0/0.0", "1"])
    assert alone is not None and (alone[0][1][0].baseline, alone[0][1][0].mean) == ("others_outcome", 0.25)
    single = explain("turn_rloo_tree", [[0.5]], {}, paths=["0"])
    assert single is not None and single[0][0][0].baseline == "nobody"


@pytest.mark.parametrize("paths", [["0", "1"], ["0/1", "1/0"], ["0/0", "1/1"], ["0/1", "0/1"]])
def test_paths_that_make_no_tree_have_no_working(paths: list[str]) -> None:
    assert explain("turn_rloo_tree", [[0.5, 1.0], [0.1, 0.0]], {}, paths=paths) is None


def test_what_the_group_does_not_decide_has_no_working() -> None:
    rewards, paths = [[0.5, 1.0], [0.5, 0.0]], ["0/0.0", "0/0.1"]
    assert explain("turn_gae_tree", rewards, {}, paths=paths, values=rewards) is None, "whitened over the batch"
    assert explain("at2po", rewards, {}, paths=paths) is None, "an old dump without the surprisal"
    assert explain("mt_grpo_tree", [[0.0] * 501], {}) is None, "a square of terms"
