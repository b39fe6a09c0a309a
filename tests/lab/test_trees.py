"""The laboratory on trees: what is sampled, and the claims of docs/trees.md."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from verl_mtgrpo.cli.main import main
from verl_mtgrpo.credit.batch import read_batch
from verl_mtgrpo.credit.forest import read_forest
from verl_mtgrpo.lab import measure
from verl_mtgrpo.lab.processes import LENGTHS, STOPPING
from verl_mtgrpo.lab.trees import credit_of

SIBLINGS = {"baseline": "siblings", "scale": "none"}


def trees(process=STOPPING, groups=200, size=3, branching_turns=2, seed=0):
    return process.sample_trees(groups, size, torch.Generator().manual_seed(seed), branching_turns=branching_turns)


def test_every_state_of_the_first_turns_has_its_children_and_later_ones_have_one():
    rollouts = trees()
    children: dict[tuple, set] = {}
    for path, group in zip(rollouts.node_path, rollouts.index.tolist(), strict=True):
        ids = path.split("/")
        for k, one in enumerate(ids):
            children.setdefault((group, *ids[:k]), set()).add(one)
    assert {(len(state) - 1, len(found)) for state, found in children.items()} == {(0, 3), (1, 3), (2, 1), (3, 1)}


def test_rows_that_share_a_turn_share_its_state_action_and_place():
    rollouts = trees(LENGTHS)
    seen: dict[str, tuple] = {}
    for row, path in enumerate(rollouts.node_path):
        for k, one in enumerate(path.split("/")):
            what = tuple(table[row, k].item() for table in (rollouts.state_BK, rollouts.action_BK, rollouts.start_BK))
            assert seen.setdefault(one, what) == what
    lengths = {"good": 2, "bad": 9, "right": 2, "wrong": 12}
    names = {
        (s, a): action.name for s, state in enumerate(LENGTHS.order) for a, action in enumerate(LENGTHS.states[state])
    }
    assert rollouts.generated == sum(lengths[names[state, action]] for state, action, _ in seen.values())


def test_turns_occur_as_often_as_the_policy_says_and_earn_what_it_expects():
    rollouts = trees(groups=4000)
    batch = read_batch(rollouts.rewards, rollouts.mask, rollouts.index)
    forest = read_forest(batch, rollouts.node_path)
    first = Counter(forest.of_nodes(rollouts.action_BK)[forest.turn_N == 0].flatten().tolist())
    shares = torch.tensor([first[a] / 12_000 for a in range(3)], dtype=torch.float64)
    assert torch.allclose(shares, STOPPING.policy[0], atol=0.02)
    # With the weights of the policy, the rewards of a tree's turns add up to the value of the start.
    earned_B1 = (batch.reward_BK * forest.weight("policy")).sum(dim=1, keepdim=True)
    of_trees = batch.groups.sum(earned_B1) / batch.groups.length_G[:, None]
    assert of_trees.mean().item() == pytest.approx(STOPPING.values(STOPPING.logits)[0][0].item(), abs=0.02)


def test_one_branching_turn_makes_groups_of_chains():
    rollouts = trees(branching_turns=1)
    forest = read_forest(read_batch(rollouts.rewards, rollouts.mask, rollouts.index), rollouts.node_path)
    assert (forest.rows_N1 == 1).all()
    assert rollouts.generated == rollouts.mask.sum()
    assert rollouts.index.bincount().tolist() == [3] * 200


@pytest.mark.heavy
@pytest.mark.parametrize(("size", "branching_turns"), [(2, 3), (4, 2)])
def test_siblings_leave_no_bias_under_variable_stopping(size, branching_turns):
    unbiased = {
        "mt_grpo_tree": credit_of("mt_grpo_tree", SIBLINGS),
        "turn_rloo_tree": credit_of("turn_rloo_tree", {}),
        "turn_gae_tree": credit_of("turn_gae_tree", {"whiten": False}),
        "critic": credit_of("turn_gae_tree", {"whiten": False, "baseline": "critic"}),
    }
    found = measure(STOPPING, unbiased, size=size, groups=12_000, branching_turns=branching_turns)
    for name, measured in found.items():
        assert not measured.biased, (name, measured)
        assert measured.noise_in_bias < 0.06, "the interval is narrow enough to mean something"


@pytest.mark.heavy
def test_what_biases_a_tree():
    wrong = {
        "rows are no visits": credit_of("mt_grpo_tree", {**SIBLINGS, "weight": "rows"}),
        "once is no visit either": credit_of("mt_grpo_tree", {**SIBLINGS, "weight": "once"}),
        "Eq. 10-12 forget what later turns earn": credit_of("mt_grpo_tree", {"scale": "none"}),
    }
    found = measure(STOPPING, wrong, size=2, groups=12_000, branching_turns=3)
    assert all(measured.direction_biased for measured in found.values()), found


@pytest.mark.process
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = ["--out", str(tmp_path)]
    assert main(["lab", "trees", "--groups", "400", "--sizes", "2", "--branching-turns", "2", *out]) == 0
    shown = capsys.readouterr().out
    assert "| trees | turn_rloo_tree | 2 |" in shown and "| chains | mt_grpo, scale=none | 2 |" in shown
    assert "stopping" in (tmp_path / "trees.md").read_text()
    assert main(["lab", "trees", "--branching-turns", "0", *out]) == 1
    assert "--branching-turns 0, expected 2 or more, 2 or more, and 1 or more" in capsys.readouterr().err
    assert main(["lab", "learn", "--estimators", "arpo", *out]) == 1
    assert "compares branches of trees" in capsys.readouterr().err
