"""Estimators on trees: against loops over explicit nodes, by hand, and what holds for all of them."""

from __future__ import annotations

import pytest
import torch

from tests import oracles_tree as oracles
from tests.credit.trees import TreeBatch, random_forest
from verl_mtgrpo.credit import ESTIMATORS, arpo, at2po, mt_grpo, mt_grpo_tree, tree_grpo, turn_gae, turn_rloo
from verl_mtgrpo.credit.batch import read_batch
from verl_mtgrpo.credit.forest import Forest, read_forest
from verl_mtgrpo.errors import CreditInputError

ON_TREES = ("mt_grpo_tree", "turn_rloo_tree", "turn_gae_tree", "arpo", "tree_grpo", "at2po")
every = pytest.mark.parametrize("name", ON_TREES)
seeds = pytest.mark.parametrize("seed", range(4))
VARIANTS = {
    "mt_grpo_tree": (
        {"baseline": "paper"},
        {"baseline": "siblings"},
        {"baseline": "siblings", "scale": "none", "weight": "once", "discount": 0.5},
        {"baseline": "paper", "missing_turn": "exclude", "weight": "rows", "turn_coef": 0.3, "discount": 0.5},
    ),
    "turn_rloo_tree": ({}, {"weight": "rows", "discount": 0.5}, {"scale": "std", "weight": "once"}),
    "turn_gae_tree": ({}, {"lam": 0.7, "discount": 0.9}, {"baseline": "critic", "weight": "rows", "lam": 0.5}),
    "arpo": ({"attribution": "soft"}, {"attribution": "hard"}, {"attribution": "once"}),
    "tree_grpo": ({}, {"scale": "none"}),
    "at2po": tuple(
        {"node_value": value, "mode": mode}
        for value in ("child_softmax", "child_mean", "leaf_mean")
        for mode in ("node_value", "diff_parent", "diff_global", "diff_localglobal")
    ),
}
CASES = [(name, knobs) for name, all_knobs in VARIANTS.items() for knobs in all_knobs]


def on(name: str, batch: TreeBatch, **knobs) -> tuple[torch.Tensor, torch.Tensor]:
    fields = {"values": batch.values, "node_path": batch.paths, "old_log_probs": batch.log_probs}
    given = {field: fields[field] for field in ESTIMATORS[name].fields}
    return ESTIMATORS[name](batch.rewards, batch.mask, batch.index, **given, **knobs)


def expected(name: str, batch: TreeBatch, knobs: dict) -> torch.Tensor:
    tree = batch.oracle()
    names = {"discount": "gamma"} if name.startswith("turn") else {"turn_coef": "c", "discount": "alpha"}
    told = {names.get(knob, knob): value for knob, value in knobs.items()}
    if name == "mt_grpo_tree":
        oracle = oracles.mt_grpo_siblings if told.pop("baseline") == "siblings" else oracles.mt_grpo_tree
        return torch.tensor(oracle(tree, **told))
    if name == "turn_gae_tree":
        return torch.tensor(oracles.turn_gae_tree(tree, batch.values.double().tolist(), **told)[0])
    if name == "at2po":
        return torch.tensor(oracles.at2po(tree, batch.log_probs.double().tolist(), **told))
    return torch.tensor(getattr(oracles, name)(tree, **told))


@pytest.mark.parametrize(
    ("name", "knobs"), CASES, ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x.values()))
)
def test_equals_the_naive_loop(name, knobs):
    for seed in range(12):
        batch = random_forest(seed, stop=0.2 + 0.1 * (seed % 4))
        settings = {**knobs, "whiten": False} if name == "turn_gae_tree" else knobs
        result, _ = on(name, batch, **settings)
        assert torch.allclose(result, expected(name, batch, knobs), atol=3e-4, rtol=3e-4), f"seed {seed}"


def test_the_critics_targets_on_a_tree_equal_the_naive_loop():
    for seed in range(12):
        batch = random_forest(seed)
        _, returns = on("turn_gae_tree", batch, lam=0.8, discount=0.9)
        _, wanted = oracles.turn_gae_tree(batch.oracle(), batch.values.double().tolist(), gamma=0.9, lam=0.8)
        assert torch.allclose(returns, torch.tensor(wanted), atol=1e-4)


# ---- relatives.md 3.1e, by hand: leaves a and b share their first turn, c and d stand alone; rewards 1 0 1 1.
MASK = torch.tensor([[1, 0, 1], [1, 0, 1], [1, 0, 1], [1, 0, 1]])
REWARDS = torch.tensor([[0, 0, 1.0], [0, 0, 0.0], [0, 0, 1.0], [0, 0, 1.0]])
PATHS = ["0/0.0", "0/0.1", "1/1.0", "2/2.0"]
HAND = (REWARDS, MASK, ["q"] * 4, PATHS)


def test_by_hand():
    # mean .75, std_{N-1} .5: .5 -1.5 .5 .5; the shared turn (.5 - 1.5)/2 = -.5, once -.25.
    assert arpo(*HAND)[0][:, 2].tolist() == pytest.approx([0.5, -1.5, 0.5, 0.5], abs=1e-4)
    assert arpo(*HAND)[0][:, 0].tolist() == pytest.approx([0.5, -1.5, 0.5, 0.5], abs=1e-4)
    assert arpo(*HAND, attribution="hard")[0][:, 0].tolist() == pytest.approx([-0.5, -0.5, 0.5, 0.5], abs=1e-4)
    assert arpo(*HAND, attribution="once")[0][:, 0].tolist() == pytest.approx([-0.25, -0.25, 0.5, 0.5], abs=1e-4)
    # Tree-GRPO adds 1 0 normalised in the tree of a and b: .7071 -.7071; c and d are alone in theirs.
    added = tree_grpo(*HAND)[0] - arpo(*HAND)[0]
    assert added[:, 2].tolist() == pytest.approx([0.7071, -0.7071, 0, 0], abs=1e-4)
    # AT2PO: std_N = sqrt(3)/4: .5774 -1.7321 .5774 .5774; the shared node their mean, -.5774.
    value = at2po(*HAND, torch.zeros(4, 3), node_value="child_mean")[0]
    assert value[:, 2].tolist() == pytest.approx([0.5774, -1.7321, 0.5774, 0.5774], abs=1e-4)
    assert value[:, 0].tolist() == pytest.approx([-0.5774, -0.5774, 0.5774, 0.5774], abs=1e-4)


def test_a_node_that_surprises_weighs_more_by_hand():
    # -log π: a 2, b 1 (their second turns). Weights e²/(e² + e) = .7311, .2689:
    # .7311 · .5774 - .2689 · 1.7321 = -.0436.
    log_probs = torch.tensor([[0, 0, -2.0], [0, 0, -1.0], [0, 0, 0], [0, 0, 0]])
    assert at2po(*HAND, log_probs)[0][0, 0].item() == pytest.approx(-0.0436, abs=1e-3)


def test_mt_grpo_tree_by_hand():
    # First turns paid 1 0 | second turns .4 .8 behind the first, .5 behind the second | outcomes 1 0 1.
    # Turn 1: nodes 1 0 -> .7071 -.7071. Turn 2: siblings .4 .8 -> -.7071 .7071; the third is alone in its state: among
    # .4 .8 .5, mean .5667, std .2082: -.3203. Outcomes 1 0 1: mean .6667, std .5774: .5774 -1.1547 .5774.
    mask = torch.tensor([[1, 0, 1, 0, 1]] * 3)
    rewards = torch.tensor([[1, 0, 0.4, 0, 1.0], [1, 0, 0.8, 0, 0.0], [0, 0, 0.5, 0, 1.0]])
    result, _ = mt_grpo_tree(rewards, mask, ["q"] * 3, ["0/0.0/a", "0/0.1/b", "1/1.0/c"], weight="rows")
    assert result[0, ::2].tolist() == pytest.approx([0.7071 - 0.7071 + 0.5774, -0.7071 + 0.5774, 0.5774], abs=1e-3)
    assert result[1, ::2].tolist() == pytest.approx([0.7071 + 0.7071 - 1.1547, 0.7071 - 1.1547, -1.1547], abs=1e-3)
    assert result[2, ::2].tolist() == pytest.approx([-0.7071 - 0.3203 + 0.5774, -0.3203 + 0.5774, 0.5774], abs=1e-3)
    # The policy takes each first turn half the time; there are 3 rows. The first: 3/(2·2) in each of its two rows, its
    # children 3/(2·2·1), the other first turn 3/(2·1).
    weighted, _ = mt_grpo_tree(rewards, mask, ["q"] * 3, ["0/0.0/a", "0/0.1/b", "1/1.0/c"])
    assert torch.allclose(weighted, result * torch.tensor([[0.75], [0.75], [1.5]]))


# ---- rollouts that share nothing


def grpo_of_verl(batch: TreeBatch) -> torch.Tensor:
    """verl 0.9.1's ``compute_grpo_outcome_advantage`` with its operations, for tests that do not import verl."""
    scores = batch.rewards.sum(-1)
    for group in set(batch.index):
        rows = [i for i, label in enumerate(batch.index) if label == group]
        among = torch.stack([scores[i] for i in rows])
        mean, std = (among.mean(), among.std()) if len(rows) > 1 else (torch.tensor(0.0), torch.tensor(1.0))
        scores[rows] = torch.stack([(x - mean) / (std + 1e-6) for x in among])
    return scores[:, None] * batch.mask


@pytest.mark.parametrize("paths", ["named", "none"])
@pytest.mark.parametrize("seed", range(20))
def test_on_chains_each_estimator_is_the_one_of_today_bit_for_bit(seed, paths):
    batch = random_forest(seed, chains=True, prompts=6)
    if paths == "none":
        batch.paths = [(None, "")[i % 2] for i in range(len(batch.index))]
    given = (batch.rewards, batch.mask, batch.index)
    for knobs in ({}, {"missing_turn": "exclude", "turn_coef": 0.3, "discount": 0.7}, {"scale": "none"}):
        assert torch.equal(on("mt_grpo_tree", batch, **knobs)[0], mt_grpo(*given, **knobs)[0])
    for knobs in ({}, {"discount": 0.7}, {"scale": "std"}):
        assert torch.equal(on("turn_rloo_tree", batch, **knobs)[0], turn_rloo(*given, **knobs)[0])
    for knobs in ({}, {"lam": 0.7, "discount": 0.9}, {"whiten": False}):
        ours = on("turn_gae_tree", batch, baseline="critic", **knobs)
        for one, other in zip(ours, turn_gae(*given, batch.values, **knobs), strict=True):
            assert torch.equal(one, other)
    for attribution in ("soft", "hard", "once"):
        assert torch.equal(on("arpo", batch, attribution=attribution)[0], grpo_of_verl(batch))
    assert torch.allclose(on("tree_grpo", batch)[0], grpo_of_verl(batch), atol=1e-5)


@pytest.mark.imports_verl
def test_arpo_on_chains_is_verls_grpo_bit_for_bit():
    import numpy as np
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    for seed in range(20):
        batch = random_forest(seed, chains=True, prompts=6)
        theirs, _ = compute_grpo_outcome_advantage(batch.rewards, batch.mask, np.array(batch.index, dtype=object))
        assert torch.equal(on("arpo", batch)[0], theirs)
        assert torch.equal(grpo_of_verl(batch), theirs), "the copy of its operations above is right"


@pytest.mark.parametrize("scale", ["std", "none"])
def test_two_turns_of_the_papers_tree_are_mt_grpo(scale):
    """K = 2: the state of turn 1 is the prompt, turn 2 is not sampled again, and the tree is the plain group."""
    for seed in range(10):
        batch = random_forest(seed, chains=True, turns=2, stop=0.0)
        plain, _ = mt_grpo(batch.rewards, batch.mask, batch.index, scale=scale)
        assert torch.equal(on("mt_grpo_tree", batch, scale=scale)[0], plain)


def test_with_two_turns_siblings_leave_one_out_is_mt_grpo_times_n_over_n_minus_one():
    mask, rewards = torch.tensor([[1, 0, 1]] * 3), torch.tensor([[0.7, 0, 1.0], [0.2, 0, 0.0], [0.1, 0, 1.0]])
    ours, _ = mt_grpo_tree(rewards, mask, ["q"] * 3, [None] * 3, baseline="siblings", scale="none")
    assert torch.allclose(ours, 1.5 * mt_grpo(rewards, mask, ["q"] * 3, scale="none")[0], atol=1e-6)


# ---- what changes nothing


@every
@seeds
def test_permuting_rows_permutes_the_output(name, seed):
    batch = random_forest(seed)
    order = torch.randperm(len(batch.index), generator=torch.Generator().manual_seed(seed)).tolist()
    assert torch.allclose(on(name, batch.rows(order))[0], on(name, batch)[0][order], atol=1e-5)


@every
@seeds
def test_padding_rows_and_dropped_leaves_enter_nothing(name, seed):
    batch = random_forest(seed)
    wanted = on(name, batch)[0]
    more = batch.rows([*range(len(batch.index)), 0, 1])
    more.mask[-2:] = 0  # a row that verl adds to fill the batch, and a leaf that was dropped and still has its path
    more.rewards[-2:] = 9.0
    more.paths[-2:] = [None, f"{batch.paths[1]}.lost/x/y/z"]
    result = on(name, more)[0]
    assert torch.equal(result[:-2], wanted)
    assert (result[-2:] == 0).all()


@every
def test_labels_and_ids_mean_nothing_but_equality(name):
    batch = random_forest(3)
    wanted = on(name, batch)[0]
    renamed = batch.rows(list(range(len(batch.index))))
    renamed.paths = [
        "/".join(f"node {one} of {label}" for one in path.split("/"))
        for path, label in zip(batch.paths, batch.index, strict=True)
    ]
    renamed.index = [f"other {label}" for label in batch.index]
    assert torch.equal(on(name, renamed)[0], wanted)


@pytest.mark.parametrize("name", ["mt_grpo_tree", "turn_rloo_tree", "arpo", "tree_grpo", "at2po"])
def test_prompts_do_not_see_each_other(name):
    batch = random_forest(5)
    together = on(name, batch)[0]
    for label in set(batch.index):
        rows = [i for i, other in enumerate(batch.index) if other == label]
        assert torch.allclose(on(name, batch.rows(rows))[0], together[rows], atol=1e-6)


@every
def test_a_shared_turn_has_one_advantage_in_every_row_unless_the_rule_is_soft(name):
    knobs = {"mt_grpo_tree": {"baseline": "siblings"}, "arpo": {"attribution": "hard"}}.get(name, {})
    batch = random_forest(1)
    if name == "tree_grpo":
        return  # leaf by leaf, as published
    result = on(name, batch, **knobs)[0]
    forest = read_forest(read_batch(batch.rewards, batch.mask, batch.index), batch.paths)
    per_turn = read_batch(result, batch.mask, batch.index).turns.at_first(result)
    assert torch.equal(forest.to_rows(forest.of_nodes(per_turn)), per_turn)
    assert (forest.rows_N1 > 1).any()


def test_on_a_tree_with_as_many_children_everywhere_every_turn_weighs_the_same():
    paths = [f"{a}/{a}{b}/{a}{b}{c}" for a in range(3) for b in range(2) for c in range(2)]
    mask = torch.tensor([[1, 0, 1, 0, 1]] * 12)
    forest = read_forest(read_batch(torch.zeros(12, 5), mask, ["q"] * 12), paths)
    assert torch.equal(forest.weight("policy"), torch.ones(12, 3))


@pytest.mark.parametrize("paid", [0.1, 0.3, 0.7])
@pytest.mark.parametrize(
    ("name", "knobs"), [("turn_rloo_tree", {"scale": "std"}), ("mt_grpo_tree", {"baseline": "siblings"})]
)
def test_siblings_that_are_worth_the_same_have_exactly_no_advantage(name, knobs, paid):
    # One sibling branches later and the other does not: two ways to add up the same rewards.
    paths = ["0/a/b/c0", "0/a/b/c1", "0/a/b/c2", "0/d/e/f", "1/g/h/i"]
    mask = torch.tensor([[1, 0] * 4] * 5)
    result, _ = ESTIMATORS[name](mask * paid, mask, ["q"] * 5, paths, discount=0.6, **knobs)
    assert result.abs().max().item() == 0.0


# ---- attribution and the loss


def gradients(advantages: torch.Tensor, batch: TreeBatch, mode: str) -> torch.Tensor:
    """The summed gradient with respect to the log-probability of each *distinct* token, at ratio 1."""
    weight = batch.mask / batch.mask.sum()
    if mode == "seq-mean-token-mean":
        weight = batch.mask / batch.mask.sum(1, keepdim=True) / len(batch.mask)
    forest = read_forest(read_batch(batch.rewards, batch.mask, batch.index), batch.paths)
    turns = read_batch(advantages * weight, batch.mask, batch.index)
    return forest.mean_of_rows(turns.reward_BK) * forest.rows_N1  # every token of a turn has the same


@seeds
def test_hard_and_soft_have_the_same_gradient_if_every_token_weighs_the_same(seed):
    batch = random_forest(seed)
    soft, hard = (on("arpo", batch, attribution=how)[0] for how in ("soft", "hard"))
    assert not torch.allclose(soft, hard, atol=0.1)
    assert torch.allclose(gradients(soft, batch, "token-mean"), gradients(hard, batch, "token-mean"), atol=1e-6)
    mean = "seq-mean-token-mean"
    assert not torch.allclose(gradients(soft, batch, mean), gradients(hard, batch, mean), atol=1e-4)


# ---- values of nodes


def forest_of_hand() -> Forest:
    return read_forest(read_batch(REWARDS, MASK, ["q"] * 4), PATHS)


@pytest.mark.parametrize(("how", "value"), [("mean", 0.5), ("max", 1.0), ("min", 0.0), ("softmax", 0.7311)])
def test_the_value_of_a_node_by_hand(how, value):
    forest = forest_of_hand()
    own = forest.of_nodes(read_batch(REWARDS, MASK, ["q"] * 4).reward_BK)
    got = forest.value(own, how, scores_N1=own)[0].item()  # softmax of 1 and 0: e/(e + 1) = .7311
    assert got == pytest.approx(value, abs=1e-4)
    assert forest.value(own, how, scores_N1=own, discount=0.5)[0].item() == pytest.approx(value / 2, abs=1e-4)


def test_the_nodes_of_the_hand_tree():
    forest = forest_of_hand()
    assert forest.node_BK.tolist() == [[0, 1], [0, 2], [3, 4], [5, 6]]
    assert forest.rows_N1[:, 0].tolist() == [2, 1, 1, 1, 1, 1, 1]
    assert forest.parent_N.tolist() == [-1, 0, 0, -1, 3, -1, 5]
    assert forest.siblings_N1[:, 0].tolist() == [3, 2, 2, 3, 1, 3, 1]
    assert forest.once_BK.tolist() == [[True, True], [False, True], [True, True], [True, True]]


def test_the_same_id_in_two_prompts_is_two_nodes():
    forest = read_forest(read_batch(REWARDS, MASK, ["q", "q", "r", "r"]), ["0/0.0", "0/0.1", "0/0.0", "0/0.1"])
    assert forest.size == 6


BAD = [
    (["0/0.0", "0/0.1", "1/1.0", "2"], r"row 3 has 2 turns .* node_path is '2', expected one id per turn"),
    (["0/0.0", "0/0.1", "1/1.0", 5], r"row 3 has 2 turns .* node_path is 5"),
    (["0/0.0", "0/0.0", "1/1.0", "2/2.0"], r"rows 0 and 1 \('0/0.0', '0/0.0'\) share the last turn"),
    (["0/0.0", "1/0.0", "2/x", "3/y"], r"rows 0 and 1 .* name the same turn \('0.0'\) at different places"),
    (["0/0", "1/1.1", "2/x", "3/y"], r"row 0 .* name the same turn \('0'\) at different places"),
    (["0/0.0", "0/0.1"], "node_path holds 2 paths for 4 rows"),
]


@pytest.mark.parametrize(("paths", "message"), BAD)
def test_paths_that_make_no_tree_are_refused(paths, message):
    with pytest.raises(CreditInputError, match=message):
        arpo(REWARDS, MASK, ["q"] * 4, paths)


def test_a_refusal_does_not_quote_a_path_of_a_megabyte():
    long = "/".join("9" * 1000 for _ in range(1000))
    with pytest.raises(CreditInputError, match=r"row 0 has 2 turns .*9\.\.\.9") as refused:
        arpo(REWARDS, MASK, ["q"] * 4, [long, "0/0.1", "1/1.0", "2/2.0"])
    assert len(str(refused.value)) < 1000


def test_a_row_that_ends_inside_the_tree_is_refused():
    mask = torch.tensor([[1, 0, 0], [1, 0, 1]])
    with pytest.raises(CreditInputError, match=r"rows 0 and 1 \('0', '0/0.0'\) share the last turn of the first one"):
        arpo(torch.zeros(2, 3), mask, ["q", "q"], ["0", "0/0.0"])


@pytest.mark.parametrize(
    ("rewards", "mask", "message"),
    [
        ([[0.5, 0, 0, 1.0], [0.4, 0, 0, 1.0]], [[1, 0, 0, 1]] * 2, r"turn 1, but its reward is 0.5 .* and 0.4 in"),
        ([[0.0] * 4] * 2, [[1, 1, 0, 1], [1, 0, 0, 1]], r"but its number of tokens is 2 in the first and 1"),
        ([[0.0] * 4] * 2, [[1, 0, 0, 1], [0, 1, 0, 1]], r"but its first token is 0 in the first and 1"),
    ],
)  # fmt: skip
def test_rows_that_disagree_about_a_shared_turn_are_refused(rewards, mask, message):
    with pytest.raises(CreditInputError, match=message):
        arpo(torch.tensor(rewards), torch.tensor(mask), ["q", "q"], ["0/a", "0/b"])


def test_rounding_of_a_kl_penalty_in_the_reward_is_not_a_disagreement():
    rewards = torch.tensor([[0.5, 0, 0, 1.0], [0.5001, 0, 0, 1.0]])
    assert arpo(rewards, torch.tensor([[1, 0, 0, 1]] * 2), ["q", "q"], ["0/a", "0/b"])[0].isfinite().all()
