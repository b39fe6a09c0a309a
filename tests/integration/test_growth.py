"""Strategies of growing trees: shapes worked out by hand, frequencies, budgets, and independence of time."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from tests.trees import grown, paths
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.growth import branch_probability, check_growth, surprisal, widths_of
from verl_mtgrpo.integration.settings import BranchSettings


def turns(count, log_probs=(-1.0, -1.0)):
    """Rollouts of so many turns."""
    return lambda node: (log_probs, node.depth == count)


def test_the_full_tree_of_the_paper():
    """Three turns, three children at each of the first two: nine leaves, Figure 7 of the paper's second version."""
    tree = grown(turns(3), n=9, grow="full", width=3, turns=2)
    assert sorted(paths(tree)) == [f"{a}/{a}.{b}/{a}.{b}.0" for a in "012" for b in "012"]
    # 3 + 9 + 9 turns of two tokens are generated; nine chains of three turns would be 27 turns.
    assert tree.measures()["branch/generated_tokens"] == 42.0
    assert tree.measures()["branch/saved_tokens"] == pytest.approx(1 - 21 / 27)
    assert (tree.measures()["branch/per_prompt"], tree.measures()["branch/shortfall"]) == (9.0, 0.0)
    assert tree.measures()["branch/depth"] == 2.0


def test_a_full_tree_whose_rollouts_end_early_is_short_and_says_so():
    tree = grown(lambda node: ((-1.0,), node.depth == 3 or node.name == "1"), n=9, grow="full", width=3, turns=2)
    assert sorted(paths(tree)) == ["0/0.0/0.0.0", "0/0.1/0.1.0", "0/0.2/0.2.0", "1", "2/2.0/2.0.0"] + [
        f"2/2.{b}/2.{b}.0" for b in "12"
    ]
    assert (tree.measures()["branch/per_prompt"], tree.measures()["branch/shortfall"]) == (7.0, 2.0)


@pytest.mark.parametrize(
    ("n", "max_turns", "widths"),
    [
        *((8, 2, [8]), (16, 3, [4, 4]), (8, 3, [4, 2]), (8, 4, [2, 2, 2]), (12, 3, [4, 3]), (7, 3, [7, 1])),
        *((9, 0, [3, 3]), (1, 3, [1, 1])),
    ],
)
def test_a_full_tree_divides_its_budget_over_all_turns_but_the_last(n, max_turns, widths):
    assert widths_of(BranchSettings(grow="full"), n, max_turns) == widths
    check_growth(BranchSettings(grow="full"), n, max_turns)
    tree = grown(turns(max_turns or 3), n=n, grow="full", max_turns=max_turns)
    assert (len(tree.leaves), tree.room) == (n, 0)
    found = Counter(path.split("/")[0] for path in paths(tree))
    assert sorted(found.values()) == [n // widths[0]] * widths[0]


@pytest.mark.parametrize(
    ("settings", "n", "said"),
    [
        ({"grow": "full", "turns": 4}, 16, "turns=4, but a rollout has at most 3 turns"),
        ({"grow": "full", "width": 16, "turns": 3}, 16, r"16\^3 = 4096 leaves per prompt, but .*rollout.n=16.*n=4096"),
        ({"grow": "full", "width": 2, "turns": 2}, 8, r"2\^2 = 4 leaves"),
        ({"grow": "arpo", "initial": 9}, 8, r"branch.initial=9 is more than .*n=8"),
    ],
)
def test_what_no_tree_can_be_is_refused_in_words(settings, n, said):
    with pytest.raises(ConfigError, match=said):
        check_growth(BranchSettings(**settings), n, 3)
    check_growth(BranchSettings(grow="full", width=4, turns=2), 16)
    check_growth(BranchSettings(grow="arpo"), 1)


@pytest.mark.parametrize("settings", [{"width": 2, "turns": 20_000}, {"width": 2, "turns": 10**9}, {"width": 2}])
def test_a_tree_that_explodes_is_refused_in_words_and_not_counted(settings):
    most = 0 if "turns" in settings else 20_000
    with pytest.raises(ConfigError, match=r"grows 2\^\d+ leaves per prompt, but .*rollout.n=16.*smaller width"):
        check_growth(BranchSettings(grow="full", **settings), 16, most)
    assert len(widths_of(BranchSettings(grow="full", turns=10**9), 16, 0)) < 20


def test_a_rollout_of_one_turn_is_not_told_to_branch_at_none():
    with pytest.raises(ConfigError, match=r"branch.turns to 1, or to null"):
        check_growth(BranchSettings(grow="full", width=4, turns=2), 16, 1)


def test_the_formula_of_arpo():
    # the first 2 of 3 tokens, by hand; then 0.5 + 0.2 * (1.5 - 1.0), and both ends of the clip
    assert surprisal([-1.0, -2.0, -30.0], 2) == 1.5
    assert surprisal([-1.0, -2.0]) == 1.5
    assert branch_probability(1.5 - 1.0, probability=0.5, weight=0.2) == pytest.approx(0.6)
    assert branch_probability(-9.0, probability=0.5, weight=0.2) == 0.0
    assert branch_probability(9.0, probability=0.5, weight=0.2) == 1.0


@pytest.mark.parametrize(("later", "p"), [(1.0, 0.3), (2.5, 0.6), (0.0, 0.1), (6.0, 1.0), (-0.5, 0.0)])
def test_how_often_a_tool_result_branches(later, p):
    """P = α + β·ΔH with α = 0.3, β = 0.2, and a first turn of 1 nat: over 600 questions, within five sigma."""

    def turn(node):
        return ((-1.0,) if node.depth == 1 else (-later, -99.0)), node.depth == 2

    branched = 0
    for question in range(600):
        settings = {"grow": "arpo", "initial": 1, "probability": 0.3, "weight": 0.2, "tokens": 1}
        tree = grown(turn, n=2, of=f"3 {question}", **settings)
        second = paths(tree)[1]
        assert second in ("0/0.1", "1/1.0")
        branched += second == "0/0.1"
        assert tree.measures()["branch/signal_mean"] == pytest.approx(later - 1.0)
        assert tree.measures()["branch/fired"] == (second == "0/0.1")
    assert abs(branched - 600 * p) <= 5 * math.sqrt(600 * p * (1 - p))


def test_a_threshold_instead_of_a_coin():
    def turn(node):
        return ((-1.0,) if node.depth == 1 else (-2.0 - int(node.name[0]),)), node.depth == 2

    settings = {"grow": "arpo", "initial": 3, "decide": "threshold", "threshold": 0.75, "width": 3, "tokens": 5}
    # ΔH is 1, 2, 3 and P is .7, .9, 1.1: the second and the third rollout branch into three, whatever the seed.
    for seed in range(5):
        tree = grown(turn, n=7, seed=seed, **settings)
        assert Counter(path[0] for path in paths(tree)) == {"0": 1, "1": 3, "2": 3}


def test_a_state_is_measured_once_and_branches_at_every_tool_result():
    settings = {"grow": "arpo", "initial": 1, "probability": 1.0, "weight": 0.0}
    tree = grown(turns(3), n=4, **settings)
    # After the first result a sibling of the second turn, then of both third turns: 0.0.0 and 0.1.0.
    assert sorted(paths(tree)) == ["0/0.0/0.0.0", "0/0.0/0.0.1", "0/0.1/0.1.0", "0/0.1/0.1.1"]
    assert tree.growth.decided == 3


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("grow", ["none", "arpo", "at2po", "random"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_there_are_n_leaves_and_no_leaf_twice(grow, n, count):
    for seed in range(4):
        tree = grown(turns(count), n=n, grow=grow, seed=seed)
        assert len(paths(tree)) == len(set(paths(tree))) == n
        assert tree.measures()["branch/shortfall"] == 0.0


@pytest.mark.parametrize("grow", ["at2po", "random"])
def test_many_rounds_without_a_turn_to_branch_at_end_at_once(grow):
    assert paths(grown(turns(1), n=6, grow=grow, rounds=100_000)) == ["0", "1", "2", "3", "4", "5"]


def test_a_very_long_rollout_has_a_path():
    (path,) = paths(grown(turns(1_500), n=1, grow="none"))
    assert path.count("/") == 1_499


def test_nothing_branches_without_a_tool_call():
    for grow in ("arpo", "at2po", "random"):
        tree = grown(turns(1), n=6, grow=grow, initial=2)
        assert sorted(paths(tree)) == list("012345")
        assert "branch/depth" not in tree.measures()
        assert tree.measures()["branch/saved_tokens"] == 0.0


def test_arpo_that_never_branches_is_n_chains():
    tree = grown(turns(2), n=6, grow="arpo", probability=0.0, weight=0.0)
    assert sorted(paths(tree)) == [f"{k}/{k}.0" for k in range(6)]
    assert tree.measures()["branch/fired"] == 0.0


def test_at2po_writes_the_least_certain_turns_again():
    surprise = {"0": 1.0, "0.0": 2.0, "0.0.0": 50.0, "1": 1.5, "1.0": 1.96, "1.0.0": 60.0}

    def turn(node):
        return (-surprise.get(node.name, 0.1),), node.depth == 3

    # Round 1, two branches: the turns 0.0 and 1.0 are the least certain (answers are never written again), so
    # siblings of them. Round 2, two branches: 0.0 has 2.0 - 0.05 and 1.0 has 1.96 - 0.05, again before 1 with 1.5.
    tree = grown(turn, n=6, grow="at2po", initial=2, rounds=2)
    assert paths(tree) == ["0/0.0/0.0.0", "1/1.0/1.0.0", "0/0.1/0.1.0", "1/1.1/1.1.0", "0/0.2/0.2.0", "1/1.2/1.2.0"]
    # With a penalty of 0.5 they have 1.5 and 1.46 in round 2, and the first turn of rollout 1, whose only sibling is 0,
    # has 1.99 - 0.5: after 0.0 it is next, by a new first turn.
    surprise["1"] = 1.99
    tree = grown(turn, n=6, grow="at2po", initial=2, rounds=2, sibling_penalty=0.5)
    assert paths(tree)[4:] == ["0/0.2/0.2.0", "2/2.0/2.0.0"]


def test_tree_grpo_spreads_its_branches_over_the_first_turns():
    for seed in range(6):
        tree = grown(turns(3), n=8, grow="random", initial=2, rounds=1, seed=seed)
        assert Counter(path.partition("/")[0] for path in paths(tree)) == {"0": 4, "1": 4}


@pytest.mark.parametrize("grow", ["full", "arpo", "at2po", "random"])
def test_a_tree_depends_on_its_seed_and_not_on_who_is_first(grow):
    def turn(node):
        log_probs = [-((hash_of(node.name) * k) % 7) / 3 for k in (1, 2, 3)]
        return log_probs, node.depth == 4 or hash_of(node.name) % 5 == 0

    def hash_of(name):
        return sum((k + 3) * (ord(letter) - 40) for k, letter in enumerate(name))

    settings = {"n": 8, "grow": grow, "width": 2, "turns": 3}
    first = paths(grown(turn, **settings))
    for hurry in range(8):
        assert paths(grown(turn, hurry=hurry, **settings)) == first
    if grow in ("arpo", "random"):
        assert any(paths(grown(turn, seed=seed, **settings)) != first for seed in range(1, 6))
        assert any(paths(grown(turn, of=f"2 {question}", **settings)) != first for question in range(5))


def test_a_leaf_that_fails_ends_alone():
    def turn(node):
        if node.name == "0.1":
            raise RuntimeError("boom")
        return (-1.0,), node.depth == 3

    tree = grown(turn, n=8, grow="full", width=2, turns=3)
    failed = [leaf for leaf in tree.leaves if leaf.error]
    assert [str(leaf.error) for leaf in failed] == ["boom"]
    # 0.1 would have had two children: its place counts as a leaf, the other is missing.
    assert (len(tree.leaves), tree.measures()["branch/shortfall"]) == (7, 1.0)
