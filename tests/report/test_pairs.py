"""Pairs of actions in dumps and reports: both rows are read, and the term of each is worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.report.made import write_rows
from tests.report.pairs import ADVANTAGES, HOSTILE, pair_rows
from tests.report.parsed import Page
from verl_mtgrpo.credit.pairs import pair_dpo
from verl_mtgrpo.report.catalog import read_catalog
from verl_mtgrpo.report.html import write_page
from verl_mtgrpo.report.pairs import explain_pairs, pairs_of
from verl_mtgrpo.report.rollouts import DumpedRollout, read_dump
from verl_mtgrpo.report.why import explain_group


def dumped(folder: Path, **changes: dict[str, object]) -> list[DumpedRollout]:
    return read_dump(write_rows(folder / "3.jsonl", pair_rows(**changes)))


def test_both_actions_of_a_pair_are_read_even_if_they_look_alike(tmp_path: Path) -> None:
    alike = pair_rows()[0]["transcript"]
    rows = dumped(tmp_path, row1={"transcript": alike})
    assert [one.pair_side for one in rows] == ["expert", "own", "equal", "expert", "own"]
    (pair,) = pairs_of(rows) or ()
    assert (pair.expert, pair.own) == (0, 1)
    assert (pair.margin, pair.share) == pytest.approx((0.3, 0.4255575))


def test_the_terms_are_what_the_estimator_gives(tmp_path: Path) -> None:
    """Three pairs with random log-probs, the last of one row only."""
    torch.manual_seed(0)
    old, ref = -torch.rand(5, 4), -torch.rand(5, 4)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    ids, sides = ["a", "a", "b", "b", "c"], ["expert", "own", "own", "expert", "own"]
    advantages, _ = pair_dpo(torch.zeros(5, 4), mask, ["g"] * 5, old, ref, ids, sides, beta=0.7)
    ratios = ((old - ref) * mask).sum(dim=1).tolist()
    template = dumped(tmp_path)[0]
    rows = [
        DumpedRollout("g", template.transcript, (0.0,), (), {}, pair_id=pair, pair_side=side, log_ratio=(ratio,),
                      settings={"beta": 0.7})
        for pair, side, ratio in zip(ids, sides, ratios, strict=True)
    ]  # fmt: skip
    working = explain_pairs(rows)
    assert working is not None
    assert [term.adds for ((term,),) in working] == pytest.approx(advantages[:, 0].tolist(), abs=1e-6)
    assert all(adds for adds in advantages[:4, 0].tolist()) and advantages[4, 0] == 0


def test_in_words(tmp_path: Path) -> None:
    rows = dumped(tmp_path)
    why = [one for (one,) in explain_group(rows, [one.advantages or () for one in rows], "pair_dpo")]
    assert why[0].adds_up and why[1].adds_up
    told = "Compared with its reference, the policy has moved by +2.00 towards the expert's action and by −1.00 "
    told += "towards its own (log ratios), so D = 0.1 · (2.00 − −1.00) = 0.30; "
    assert why[0].words == told + "+0.100 · σ(−D) 0.426: +0.043."
    assert why[1].words == told + "−0.100 · σ(−D) 0.426: −0.043."
    assert why[2].words.startswith("The policy wrote what the expert wrote")
    assert why[3].words == "Left out of the update: no judge."
    assert why[4].words.startswith("The other action of its pair is not there")


def test_the_page_has_both_actions_and_the_margin(tmp_path: Path) -> None:
    catalog = read_catalog([write_rows(tmp_path / "3.jsonl", pair_rows())])
    write_page(tmp_path / "r.html", catalog, title="t", made_by="v")
    group = Page(tmp_path / "r.html").group(0)
    assert group["pairs"]["sides"] == ["expert", "own", "equal", "expert", "own"]
    (pair,) = group["pairs"]["pairs"]
    assert pair == pytest.approx([0, 1, 2.0, -1.0, 0.1, 0.3, 0.425557], abs=1e-5)
    assert [one["turns"][0]["text"] for one in group["rollouts"]][:2] == ["go left", "go right"]
    (term,) = group["rollouts"][0]["turns"][0]["terms"]
    assert (term[0], term[6]) == ("pair", pytest.approx(ADVANTAGES["expert"], abs=1e-5))


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_names_and_numbers_that_make_no_sense_break_nothing(tmp_path: Path, changes: dict) -> None:
    catalog = read_catalog([write_rows(tmp_path / "3.jsonl", pair_rows(**changes))])
    write_page(tmp_path / "r.html", catalog, title="t", made_by="v")
    group = Page(tmp_path / "r.html").group(0)
    assert len(group["rollouts"]) == 5
    numbers = [value for pair in group["pairs"]["pairs"] for value in pair]
    assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers)
