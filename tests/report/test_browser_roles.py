"""Roles and pairs in a real browser: what belongs together side by side, and ids that make no sense break nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.browser import Watched, foreign_elements
from tests.report.made import write_rows
from tests.report.pairs import HOSTILE as HOSTILE_PAIRS
from tests.report.pairs import pair_rows
from tests.report.roles import HOSTILE, conversation_rows, role_rows
from verl_mtgrpo.report.catalog import read_catalog
from verl_mtgrpo.report.html import write_page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of two roles, a conversation, the hostile ones, pairs, and the hostile ones of those."""
    folder = tmp_path_factory.mktemp("roles")
    rows = [*role_rows(), *conversation_rows()]
    for number, changes in enumerate(HOSTILE.values()):
        rows += role_rows(f"hostile {number}", **changes)
    rows += pair_rows()
    for number, changes in enumerate(HOSTILE_PAIRS.values()):
        rows += pair_rows(f"hostile pair {number}", **changes)
    catalog = read_catalog([write_rows(folder / "3.jsonl", rows)])
    write_page(folder / "r.html", catalog, title="Roles", made_by="tests")
    return folder / "r.html"


def open_address(seen: Watched, group: int, rollout: int) -> None:
    address = f"#rollouts/{group}/{rollout}"
    seen.page.evaluate("address => { location.hash = address }", address)
    seen.page.wait_for_function("hash => document.querySelector('.chosen th a')?.hash === hash", arg=address)


def test_a_query_and_the_answers_that_read_it_are_side_by_side(seen: Watched) -> None:
    open_address(seen, 0, 0)
    assert seen.texts("#detail .roles > div") == [
        "rewriter 0 paid −0.25 advantage +0.50 river Orrin",
        "answerer 2 paid 1.00 advantage +1.20 read rewriter 0 <answer>Vel</answer> "
        "answerer 3 paid 0.00 advantage 0.00 read rewriter 0 <answer>Mar</answer>",
    ]
    assert [one.split(" ")[0] for one in seen.texts("#detail table.matrix tbody th")] == ["rewriter"] * 2 + [
        "answerer"
    ] * 3
    open_address(seen, 0, 4)
    assert [one.split(" paid")[0] for one in seen.texts("#detail .roles > div")] == ["rewriter 1", "answerer 4"]
    assert "You answer." in (seen.page.locator("#detail").text_content() or ""), "the prompt of its own role"
    seen.look("roles", full=True)


def test_the_working_names_and_links_the_outputs_that_read_one(seen: Watched) -> None:
    open_address(seen, 0, 0)
    seen.page.locator("#detail .why summary").click()
    assert seen.texts("#detail .working tbody th") == [
        "worth of this output 1.000 back from what read it: answerer 2 1.000 −0.250 paid itself"
    ]
    link = seen.page.locator("#detail .working .part a").get_attribute("href")
    assert link == "#rollouts/0/2"


def test_a_pair_is_side_by_side_with_its_margin(seen: Watched) -> None:
    pairs = 2 + len(HOSTILE)
    open_address(seen, pairs, 1)
    expert, own, learnt = seen.texts("#detail .roles > div")
    assert expert == "The expert expert 0 lr 2.000 advantage +0.043 go left"
    assert own == "The policy own 1 lr −1.000 advantage −0.043 go right"
    assert "= 0.1 · (2.000 − −1.000) = 0.300" in learnt and "β σ(−D) = 0.1 · 0.426 = 0.0426" in learnt
    open_address(seen, pairs, 2)
    assert not seen.texts("#detail .roles > div"), "equal actions have nothing beside them"
    seen.look("pairs", full=True)


@pytest.mark.parametrize("number", range(len(HOSTILE_PAIRS)))
def test_pairs_that_make_no_sense_break_nothing(seen: Watched, number: int) -> None:
    for rollout in (0, 1, 4):
        open_address(seen, 3 + len(HOSTILE) + number, rollout)
        assert not foreign_elements(seen.page)


def test_a_conversation_has_a_column_for_each_side(seen: Watched) -> None:
    open_address(seen, 1, 1)
    meta, reasoner = seen.texts("#detail .roles > div")
    assert meta == "meta 0 paid 1.00 Nothing is learnt from it. plan a plan b DONE"
    assert reasoner.endswith("step a <answer>Vel</answer>")


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_ids_that_make_no_sense_break_nothing(seen: Watched, number: int) -> None:
    for rollout in (0, 2):
        open_address(seen, 2 + number, rollout)
        assert not foreign_elements(seen.page)
