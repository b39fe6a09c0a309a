"""Trees in a real browser: a shared turn is drawn once, and paths that make no tree break nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import Watched, foreign_elements, watched_page
from tests.report.hostile import EVERYTHING, hostile_rows
from tests.report.made import training_row, write_rows
from tests.report.trees import MALFORMED, tree_rows
from verl_mtgrpo.report.catalog import read_catalog
from verl_mtgrpo.report.html import write_page
from verl_mtgrpo.rewards.transcript import Transcript, Turn

pytestmark = pytest.mark.browser

DEEP = 1_000


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree, the malformed ones, and two hostile rollouts that share a hostile turn."""
    folder = tmp_path_factory.mktemp("trees")
    rows = tree_rows()
    for number, paths in enumerate(MALFORMED.values()):
        rows += tree_rows(paths, prompt=f"malformed {number}")
    hostile = hostile_rows()
    for number, row in enumerate(hostile):
        row |= {"uid": f"hostile_0_{number}", "node_path": f"{EVERYTHING.replace('/', '')}/{number}", "step": 4}
        row["turn_rewards"] = "[0.5, 0.0]"
    rows += hostile
    return page_of(folder, rows)


def page_of(folder: Path, rows: list[dict[str, Any]]) -> Path:
    dump = write_rows(folder / "3.jsonl", rows)
    write_page(folder / "r.html", read_catalog([dump]), title="Trees", made_by="tests")
    return folder / "r.html"


def open_address(seen: Watched, group: int, rollout: int, turn: int = 1) -> None:
    """Open a turn, and wait until its group is there."""
    address = f"#rollouts/{group}/{rollout}/{turn}"
    seen.page.evaluate("address => { location.hash = address }", address)
    seen.page.wait_for_function(
        "hash => document.querySelector('.chosen th a')?.hash === hash.split('/').slice(0, 3).join('/')", arg=address
    )


def test_a_shared_turn_is_one_cell_across_its_rollouts(seen: Watched) -> None:
    open_address(seen, 0, 1, 2)
    rows = seen.texts("#detail table.tree tbody tr")
    assert rows == [
        "0 +0.60 +0.20 to +1.00 0.60 · in 2 +0.50 1.00 1.60 ✓ right",
        "1 −1.00 0.00 0.60 ✗ wrong",
        "2 −0.30 1.00 no such turn 1.00 ✓ right",
        "3 −0.90 0.00 +0.10 0.50 0.50 ✓ right",
    ]
    shared = seen.page.locator("#detail td.shared")
    assert shared.count() == 1 and shared.get_attribute("rowspan") == "2"
    above, below, cell = (
        seen.page.locator(one).bounding_box()
        for one in ("#detail tbody tr >> nth=0", "#detail tbody tr >> nth=1", "#detail td.shared .cell")
    )
    assert above and below and cell and cell["height"] > 1.5 * below["height"], "it reaches over both rows"
    label = "rollouts 0, 1, turn 1: advantage +0.60 on average, +0.20 to +1.00, paid 0.60"
    assert seen.page.get_by_label(label).count() == 1
    assert "mean paid 0.53 of 3 0.50 of 3" in seen.text("#detail table.tree tfoot"), (
        "0.6, 1 and 0: the shared turn counts once"
    )
    assert seen.page.locator("#detail td.mine").count() == 2, "the way to the chosen leaf"
    seen.look("tree", full=True)


def test_a_turn_names_its_siblings_and_who_shares_it(seen: Watched) -> None:
    open_address(seen, 0, 0)
    assert seen.text("#turn1 .kin") == (
        "The same turn: rollout 1. Sampled in the same state: rollout 2 (paid 1.00, advantage −0.30), "
        "rollout 3 (paid 0.00, advantage −0.90)."
    )
    assert seen.text("#turn2 .kin") == "Sampled in the same state: rollout 1 (paid 0.00, advantage −1.00)."
    assert "siblings, itself included" in seen.text("#turn1 table.working")
    seen.page.locator("#turn2 .kin a").click()
    seen.page.locator("article[aria-label='Rollout 1']").wait_for()
    seen.page.locator("#detail td.shared a").click()
    seen.page.locator("#turn1.current").wait_for()
    assert seen.page.url.endswith("#rollouts/0/1/1"), "a shared turn stays with the rollout that was chosen"


@pytest.mark.parametrize("number", range(len(MALFORMED)), ids=list(MALFORMED))
def test_paths_that_make_no_tree_are_shown_as_chains(seen: Watched, number: int) -> None:
    open_address(seen, 1 + number, 0)
    assert seen.text("#detail .scroll > .warning").startswith("The tree is not drawn, and its turns are not compared: ")
    assert seen.page.locator("#detail td.shared").count() == 0
    assert len(seen.texts("#detail table.matrix tbody tr")) == 4
    assert foreign_elements(seen.page) == []


def test_a_hostile_tree_does_nothing(seen: Watched) -> None:
    for rollout in range(2):
        open_address(seen, 1 + len(MALFORMED), rollout, 2)
        assert seen.page.locator("#detail td.shared").get_attribute("rowspan") == "2", "it is a tree, and it is drawn"
        seen.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
        assert foreign_elements(seen.page) == [] and seen.page.evaluate("window.broken") is None
        assert "window.broken" in seen.text("#detail"), "its text is there, as text"


def test_a_thousand_levels_are_drawn(browser: Any, tmp_path: Path) -> None:
    deep = Transcript(tuple(Turn("x", (2 * k, 2 * k + 1)) for k in range(DEEP)), "answered", (), DEEP)
    rows: list[dict[str, Any]] = []
    for number in range(2):
        path, numbers = "/".join([*map(str, range(DEEP - 1)), f"end {number}"]), [0.0] * DEEP
        rows.append(training_row("deep", 0, deep, numbers, numbers, step=5, estimator="arpo", node_path=path))
        rows[-1]["uid"] = f"deep_0_{number}"
    with watched_page(browser) as seen:
        seen.page.goto(page_of(tmp_path, rows).as_uri())
        open_address(seen, 0, 1)
        assert seen.page.locator("#detail td.shared").count() == DEEP - 1
        lowest = "document.querySelector('#detail table.tree tbody').rows[1].querySelectorAll('td.node').length"
        assert seen.page.evaluate(lowest) == 1
        assert seen.console == []


@pytest.mark.parametrize(("width", "scheme"), [(420, "dark")])
def test_narrow_and_dark(browser: Any, report: Path, width: int, scheme: str) -> None:
    with watched_page(browser, width=width, scheme=scheme) as seen:
        seen.page.goto(report.as_uri())
        open_address(seen, 0, 0)
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width, "nothing runs out of the window"
        seen.look(f"tree-{width}-{scheme}", full=True)
        assert seen.console == []
