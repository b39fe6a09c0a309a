"""Two runs side by side in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import Watched, foreign_elements, watched_page
from tests.report.hostile import HOSTILE, hostile_rows
from tests.report.made import asked, rollout_of, training_row, transcript, write_rows
from verl_mtgrpo.report.against import Run, write_comparison
from verl_mtgrpo.report.catalog import Catalog, read_catalog
from verl_mtgrpo.report.metrics import RunMetrics

pytestmark = pytest.mark.browser


def catalog_of(folder: Path, answer: str, paid: float, only: str) -> Catalog:
    """Ten steps: one question each that both runs have, one that both have at every step, one that the other lacks."""
    folder.mkdir()
    rows: list[dict[str, Any]] = []
    for step in range(1, 11):
        for question in (f"Where is city {step}?", "Which river runs by Orrin?", f"{only} {step}?"):
            for n in range(2):
                said = asked(question, transcript(answer, searches=["x"]))
                earned = [paid, n * paid]
                rows.append(training_row(f"{question}-{step}", n, said, earned, [n - 0.5, 0.5 - n], step=step))
    return read_catalog([write_rows(folder / "train.jsonl", rows)])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("against")
    metrics = [RunMetrics(train={"turn/1/reward": {step: step * rise for step in range(1, 11)}}) for rise in (0.1, 0.2)]
    first = Run("mt_grpo", catalog_of(folder / "a", "Vel", 1.0, "Only left"), metrics[0])
    second = Run("grpo_or", catalog_of(folder / "b", "Mar", 0.25, "Only right"), metrics[1])
    write_comparison(folder / "r.html", (first, second), title="mt_grpo against grpo_or", made_by="tests")
    return folder / "r.html"


def test_the_curves_of_both_have_the_same_axes(seen: Watched):
    assert seen.texts("#overview table.facts-of-both tr")[0] == "run A: mt_grpo B: grpo_or"
    assert "11 questions are in both runs" in seen.text("#overview")
    figures = seen.page.locator("#overview figure", has_text="Mean reward by turn")
    assert figures.count() == 2
    axes = [one.locator("text").all_inner_texts() for one in figures.all()]
    assert axes[0] == axes[1], "0.25 on the right and 1 on the left are drawn at different heights"
    seen.look("against", full=True)


def test_the_rollouts_of_a_question_are_side_by_side(seen: Watched):
    seen.page.get_by_role("link", name="Rollouts", exact=True).click()
    assert seen.text("#count") == "11 of 11 questions in both runs"
    assert "null" not in seen.text("#both") and "undefined" not in seen.text("main")
    seen.page.get_by_label("Question", exact=True).fill("orrin")
    seen.page.locator("#list a").first.click()
    for side, answer, run in (("#left", "Vel", "A: mt_grpo"), ("#right", "Mar", "B: grpo_or")):
        seen.page.locator(f"{side} h2.question", has_text="Orrin").wait_for()
        assert seen.text(f"{side} h2.run") == run
        assert f"<answer>{answer}</answer>" in seen.text(side)
        assert seen.texts(f"{side} .steps strong") == ["1"], "the same step on both sides"
    assert seen.page.locator("#left table.matrix tbody tr").count() == 2
    # A cell of one side opens its turn and leaves the other side alone.
    seen.page.locator("#right").get_by_label("rollout 1, turn 1").click()
    seen.page.locator("#right article[aria-label='Rollout 1']").wait_for()
    assert seen.page.locator("#rightturn1 table.working").is_visible()
    assert seen.page.locator("#left article").get_attribute("aria-label") == "Rollout 0"
    seen.page.locator("#left .steps a", has_text="4").click()
    seen.page.locator("#left .steps strong", has_text="4").wait_for()
    assert seen.texts("#right .steps strong") == ["1"]
    seen.look("against-rollouts", full=True)


def test_what_both_logged_is_one_chart(seen: Watched):
    seen.page.get_by_role("link", name="Logged metrics").click()
    (keys,) = seen.texts("#metrics figure .keys")
    assert keys == "A: mt_grpo B: grpo_or"
    assert seen.page.locator("#metrics figure path.series").count() == 4, "two lines, and two in the legend"


@pytest.mark.parametrize(("width", "scheme"), [(420, "light"), (1360, "dark")])
def test_it_fits_the_window(browser: Any, report: Path, width: int, scheme: str):
    with watched_page(browser, width=width, scheme=scheme) as seen:
        seen.page.goto(report.as_uri() + "#rollouts")
        seen.page.locator("#right h2.question").wait_for()
        seen.look(f"against-{width}-{scheme}", full=True)
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        seen.page.goto(report.as_uri())
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        assert seen.console == []


def test_hostile_text_does_nothing(browser: Any, tmp_path: Path):
    rows = [row for text in HOSTILE for row in hostile_rows(text)]
    catalog = read_catalog([write_rows(tmp_path / "1.jsonl", rows)])
    metrics = RunMetrics(train={f"turn/{text}": {1: 1.0, 2: 2.0} for text in HOSTILE})
    runs = (Run(HOSTILE[0], catalog, metrics), Run(HOSTILE[5], catalog))
    write_comparison(tmp_path / "r.html", runs, title=HOSTILE[1], made_by=HOSTILE[3])
    with watched_page(browser) as seen:
        seen.page.goto((tmp_path / "r.html").as_uri())
        shown = 0
        for address in ("#overview", "#metrics", *(f"#rollouts/{n}/1/1" for n in range(2 * len(HOSTILE)))):
            seen.page.evaluate("address => { location.hash = address }", address)
            if address.startswith("#rollouts"):
                seen.page.wait_for_function(
                    "hash => [...document.querySelectorAll('.chosen th a')].some(a => hash.startsWith(a.hash + '/'))",
                    arg=address,
                )
            seen.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
            shown += seen.page.evaluate("document.body.innerText.includes('window.broken') ? 1 : 0")
            assert foreign_elements(seen.page) == []
            assert seen.page.evaluate("window.broken") is None
            assert "[native code]" not in seen.page.evaluate("document.body.innerText"), "a name of a property"
        assert shown > 10, "it is there, as text"
        assert seen.console == [] and seen.dialogs == []
        assert {url.split("#")[0] for url in seen.requests} == {(tmp_path / "r.html").as_uri()}


def test_runs_without_a_question_in_common_say_so(browser: Any, tmp_path: Path):
    catalogs = []
    for name in ("a", "b"):
        said = rollout_of("Vel", prompt=({"role": "user", "content": name},))
        dump = write_rows(tmp_path / f"{name}.jsonl", [training_row(name, 0, said, [1.0], [0.0])])
        catalogs.append(read_catalog([dump]))
    write_comparison(tmp_path / "r.html", (Run("a", catalogs[0]), Run("b", catalogs[1])), title="t", made_by="v")
    with watched_page(browser) as seen:
        seen.page.goto((tmp_path / "r.html").as_uri())
        assert "No question is in both runs" in seen.text("#overview")
        seen.page.get_by_role("link", name="Rollouts", exact=True).click()
        assert seen.text("#list") == "There is none."
        assert seen.console == []
