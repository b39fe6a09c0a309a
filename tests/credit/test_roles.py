"""MHGPO: by hand, against a recursion on random graphs, and what it reduces to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.credit.role_outputs import BY_HAND, KNOBS, SEARCH, Rows, outputs, random_outputs
from tests.oracles_roles import Outputs
from tests.oracles_roles import mhgpo as slowly
from verl_mtgrpo.credit import mhgpo
from verl_mtgrpo.errors import CreditInputError


def of_rows(result: Tensor) -> list[float]:
    return result[:, 0].tolist()


def test_two_roles_by_hand():
    result = SEARCH.advantages()
    assert of_rows(result) == pytest.approx(BY_HAND, abs=1e-4)
    assert torch.equal(result[:, 0], result[:, 1]) and not result[:, 2:].any()


def test_a_penalty_for_the_second_rewrite_by_hand():
    # R = .5 and .4 - .1 = .3: still two values, so the same z-scores; without division ±.1. The answers are untouched.
    rows = outputs(("rewriter", "w2", "", [-0.1]))
    punished = Rows(
        SEARCH.rewards.clone(), *(getattr(SEARCH, n) for n in ("mask", "index", "role", "output_id", "fed_by"))
    )
    punished.rewards[1] = rows.rewards[0]
    assert of_rows(punished.advantages()) == pytest.approx(BY_HAND, abs=1e-4)
    assert of_rows(punished.advantages(scale="none"))[:2] == pytest.approx([0.1, -0.1])
    # Apart: own 0 and -.1, c = .5: ±.7071 / 2, added to the outcomes' ±.7071.
    assert of_rows(punished.advantages(combine="apart", turn_coef=0.5)) == pytest.approx(
        [1.0607, -1.0607, *BY_HAND[2:]], abs=1e-4
    )


@pytest.mark.parametrize(("reduce", "first"), [("max", 0.6), ("min", -0.4), ("mean", 0.1)])
def test_what_an_output_is_worth_when_several_read_it(reduce, first):
    # max: 1 and .4, min: 0 and .4, mean: .5 and .4. Leave-one-out: the difference.
    result = SEARCH.advantages(reduce=reduce, baseline="others", scale="none")
    assert of_rows(result)[:2] == pytest.approx([first, -first])
    # Answers, each minus the mean of the other two: 1 - .2, 0 - .7, .4 - .5.
    assert of_rows(result)[2:] == pytest.approx([0.8, -0.7, -0.1])


def test_three_roles_and_an_answer_that_reads_two_outputs():
    # a reads the rewrite and the ranking, which read the rewrite too: worth of the rewrite is (a + ranking) / 2.
    rows = outputs(
        ("rewriter", "w", "", [0.0]),
        ("reranker", "r", "w", [-0.5]),
        ("answerer", "a", "w/r", [1.0]),
        ("rewriter", "w'", "", [0.0]),
        ("reranker", "r'", "w'", [0.0]),
        ("answerer", "a'", "w'/r'", [0.0]),
    )
    # r: 1 - .5 = .5, w: (1 + .5) / 2 = .75; the other session has 0 everywhere.
    result = of_rows(rows.advantages(baseline="others", scale="none"))
    assert result == pytest.approx([0.75, 0.5, 1.0, -0.75, -0.5, -1.0])


def test_turns_of_a_role_by_hand():
    # Two conversations of two turns; own rewards of turn 1 are .2 and .6, outcomes 1 and 0. Worth 1.2 and .6.
    rows = outputs(("planner", "p", "", [0.2, 1.0]), ("planner", "q", "", [0.6, 0.0]))
    plain = {"baseline": "others", "scale": "none"}
    role, turn = (rows.advantages(group_by=group_by, **plain)[:, ::3] for group_by in ("role", "role_turn"))
    assert role.tolist() == [pytest.approx([0.6, 0.6]), pytest.approx([-0.6, -0.6])]
    assert turn.tolist() == [pytest.approx([0.6, 1.0]), pytest.approx([-0.6, -1.0])]  # turn 2: only the outcome is left
    apart = rows.advantages(combine="apart", group_by="role_turn", turn_coef=0.5, **plain)[:, ::3]
    assert apart.tolist() == [pytest.approx([0.8, 1.0]), pytest.approx([-0.8, -1.0])]  # -.4 / 2 + 1


@pytest.mark.parametrize("block", range(4))
def test_equals_the_recursion_on_random_graphs(block):
    for seed in range(block * 24, block * 24 + 24):
        rows = random_outputs(seed)
        named = [role or "" for role in rows.role]
        graph = Outputs(
            rows.rewards.double().tolist(), rows.mask.tolist(), rows.index, named, rows.output_id, rows.fed_by
        )
        for knobs in KNOBS[seed % 4 :: 4]:
            oracle = {("c" if name == "turn_coef" else name): value for name, value in knobs.items()}
            expected = torch.tensor(slowly(graph, **oracle))
            assert torch.allclose(rows.advantages(**knobs), expected, atol=3e-4, rtol=3e-4), (seed, knobs)


@pytest.mark.imports_verl
def test_one_role_that_nobody_reads_is_verls_grpo():
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        length = torch.randint(1, 7, (9, 1), generator=generator)
        mask = (torch.arange(8) < length).long() * (torch.arange(8) != 3)  # one or two turns
        rewards = torch.randn(9, 8, generator=generator) * mask
        index = np.array([*"aaabbbbcc"], dtype=object)
        expected, _ = compute_grpo_outcome_advantage(rewards, mask, index)
        for role in ([None] * 9, ["answerer"] * 9):
            result, _ = mhgpo(rewards, mask, index, role, [None] * 9, [""] * 9)
            assert torch.allclose(result, expected, atol=2e-6, rtol=2e-6)


def test_chains_that_fork_at_the_first_role_give_every_role_its_leafs_credit():
    for seed in range(10):
        paid = torch.rand(5, generator=torch.Generator().manual_seed(seed)).tolist()
        rows = [
            (role, f"{n}:{k}", f"{n}:{k - 1}" if k else "", [f1 if k == 2 else 0.0])
            for n, f1 in enumerate(paid)
            for k, role in enumerate(["rewriter", "reranker", "answerer"])
        ]
        for reduce in ("mean", "max", "min"):
            result = outputs(*rows).advantages(reduce=reduce).view(5, 3, -1)
            assert torch.equal(result[:, 0], result[:, 2]) and torch.equal(result[:, 1], result[:, 2])
            alone = outputs(*(row for row in rows if row[0] == "answerer")).of_rows(list(range(5)))
            alone.fed_by = [""] * 5
            assert torch.equal(result[:, 2], alone.advantages())


def test_an_output_without_company_gets_nothing_and_what_was_equal_cancels():
    forked_later = outputs(
        ("rewriter", "w", "", [0.0]), *(("answerer", f"a{n}", "w", [f]) for n, f in enumerate([1, 0]))
    )
    assert of_rows(forked_later.advantages()) == pytest.approx([0.0, 0.7071, -0.7071], abs=1e-4)
    same = outputs(*(("answerer", f"a{n}", "", [1 / 3]) for n in range(3)))
    for knobs in KNOBS:
        assert (same.advantages(**knobs) == 0).all()


def test_a_frozen_role_passes_on_what_it_was_paid_and_is_not_trained():
    rows = outputs(
        ("rewriter", "w", "", [0.0]),
        ("answerer", "a", "w", [1.0]),
        ("rewriter", "v", "", [0.0]),
        ("answerer", "b", "v", [0.25]),
    )
    trained = rows.advantages()
    rows.mask[[1, 3]] = 0
    frozen = rows.advantages()
    assert torch.equal(frozen[[0, 2]], trained[[0, 2]]) and frozen[0].any()
    assert not frozen[[1, 3]].any()
    rows.rewards[1, 0] = float("nan")
    with pytest.raises(CreditInputError, match="NaN or infinite in a row of a frozen role"):
        rows.advantages()


@pytest.mark.parametrize("seed", range(8))
def test_order_padding_and_what_ids_are_called_mean_nothing(seed):
    rows = random_outputs(seed)
    wanted = rows.advantages()
    order = torch.randperm(len(rows.mask), generator=torch.Generator().manual_seed(seed)).tolist()
    assert torch.allclose(rows.of_rows(order).advantages(), wanted[order], atol=1e-6)
    renamed = rows.of_rows([*range(len(order))])
    renamed.output_id = [f"new{one}" for one in rows.output_id]
    renamed.fed_by = ["/".join(f"new{one}" for one in ids.split("/")) if ids else None for ids in rows.fed_by]
    assert torch.equal(renamed.advantages(), wanted)
    width = rows.mask.shape[1]
    padded = Rows(
        *(torch.nn.functional.pad(x, (0, 3, 0, 1)) for x in (rows.rewards, rows.mask)),
        *(
            [*names, last]
            for names, last in (
                (rows.index, rows.index[0]),
                (rows.role, None),
                (rows.output_id, None),
                (rows.fed_by, None),
            )
        ),
    )
    assert torch.equal(padded.advantages()[:-1, :width], wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fed_by": ["", "", "w1", "w1", "w9"]}, r"row 4 was fed by 'w9', and its prompt has no output 'w9', expected"),
        ({"index": [*"qqqqp"]}, r"row 4 was fed by 'w2', .* but row 1 of another prompt is called so"),
        ({"fed_by": ["a1", "", "w1", "w1", "w2"]}, r"2 outputs read each other in a circle.*: w1, a1"),
        ({"fed_by": ["", "w2", "w1", "w1", "w2"]}, "1 outputs read each other in a circle.*: w2"),
        ({"output_id": ["w1", "w2", "a1", "a1", "a3"]}, "rows 2 and 3 of one prompt are both called 'a1'"),
        ({"role": ["rewriter"] * 4}, "role has 4 entries for 5 rows, expected one per row"),
        ({"fed_by": []}, "fed_by has 0 entries for 5 rows"),
        ({"output_id": [None] * 5}, "row 2 was fed by 'w1', and its prompt has no output 'w1'"),
    ],
)
def test_names_that_make_no_sense_are_refused(change, message):
    fields = {name: change.get(name, getattr(SEARCH, name)) for name in ("index", "role", "output_id", "fed_by")}
    with pytest.raises(CreditInputError, match=message):
        mhgpo(SEARCH.rewards, SEARCH.mask, **fields)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"reduce": "softmax"}, r"reduce is 'softmax', expected one of \('mean', 'max', 'min'\)"),
        ({"combine": "both"}, "combine is 'both'"),
        ({"group_by": "turn"}, "group_by is 'turn'"),
        ({"baseline": "median"}, "baseline is 'median'"),
        ({"turn_coef": -1.0}, "turn_coef is -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(knobs, message):
    with pytest.raises(CreditInputError, match=message):
        SEARCH.advantages(**knobs)
