"""The credit report in a real browser: what a person sees, clicks and waits for, and what hostile text cannot do."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import Watched, foreign_elements, mean_colour, pixels_of, watched_page
from tests.report.hostile import HOSTILE, hostile_rows
from tests.report.large import GROUPS, large_dump
from tests.report.made import asked, dump_row, rollout_of, training_row, transcript, write_rows
from verl_mtgrpo.report.catalog import read_catalog
from verl_mtgrpo.report.html import write_page
from verl_mtgrpo.report.metrics import RunMetrics
from verl_mtgrpo.rewards.transcript import ToolCall

pytestmark = pytest.mark.browser

README = [[0.7, 1.0], [0.2, 0.0], [0.5]]
ADVANTAGES = [[2.1094, 1.0], [-1.2774, -1.0], [-0.8321]]
"""The example at the top of the README, worked out in tests/report/test_explain.py."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training rollouts of 40 steps and a validation: one group is the README's, one was lost, the rest are alike."""
    folder = tmp_path_factory.mktemp("report")
    rng = random.Random(0)
    rows: list[dict[str, Any]] = []
    for step in range(1, 41):
        for n in range(4):
            paid = [rng.random(), rng.random()]
            said = asked(f"Where is city {step} of {rng.randint(0, 9)}?", transcript("Vel", searches=["city"]))
            rows.append(training_row(f"s{step}", n, said, paid, [0.1 * n, -0.1 * n], step=step, data_source="nq"))
    for n, (paid, credit) in enumerate(zip(README, ADVANTAGES, strict=True)):
        said = asked(
            "Which river runs by Orrin?", transcript("Vel" if n == 0 else "Mar", searches=["x"] * (len(paid) - 1))
        )
        rows.append(training_row("readme", n, said, paid, credit, step=7, data_source="triviaqa"))
    lost = rollout_of(None, ToolCall("search", "{}", "no answer in 20 s", ok=False, error_kind="timeout"))
    rows.append(
        training_row("lost", 0, asked("Who was lost?", lost), [0.0, 0.0], [0.0, 0.0], step=9, data_source="nq",
                     **{"outcome/dropped": 1.0, "dropped_reason": "no answer in 20 s"})
    )  # fmt: skip
    training = write_rows(folder / "train.jsonl", rows)
    validation = write_rows(
        folder / "0.jsonl", [dump_row("v", n, transcript("Vel"), [float(n)], step=0) for n in range(2)]
    )
    metrics = RunMetrics(train={"turn/1/reward": {step: step / 40 for step in range(1, 41)}})
    write_page(
        folder / "report.html", read_catalog([training, validation]), title="A report", made_by="tests", metrics=metrics
    )
    return folder / "report.html"


def numbers(seen: Watched, selector: str) -> list[float]:
    return [float(text.replace("−", "-")) for text in seen.texts(selector)]


def open_group(seen: Watched, question: str) -> None:
    seen.page.get_by_role("link", name="Rollouts", exact=True).click()
    seen.page.get_by_label("Question", exact=True).fill(question)
    seen.page.get_by_label("Rollouts of", exact=True).select_option("training")
    seen.page.locator("#list a").first.click()
    seen.page.locator("#detail h2", has_text=question).wait_for()


def test_the_overview_has_curves_with_their_points(seen: Watched) -> None:
    assert seen.texts("#overview dd") == ["166", "43", "0 to 40 (41)", "1", "nq, triviaqa"]
    curves = seen.page.locator("#overview figure", has_text="Mean reward by turn").locator("path.series")
    paths = [path.get_attribute("d") for path in curves.all() if len(path.get_attribute("d") or "") > 20]
    assert len(paths) == 2 and all(path.count("L") == 39 for path in paths), (
        "a line for each turn, a point for each step"
    )
    heights = {float(point.split()[1]) for point in paths[0][1:].split("L")}
    assert len(heights) > 20, "no flat line"
    figure = seen.page.locator("#overview figure", has_text="Mean reward by turn").screenshot()
    assert pixels_of(figure, (0, 114, 178)) > 50 < pixels_of(figure, (213, 94, 0))
    # Turn 1 of the 165 rollouts that were not dropped of training: the table says so.
    assert seen.texts("#overview table.numbers tbody tr")[0].split()[:2] == ["1", "163"]
    # Random rewards of 40 groups of four, and the README's group: no finding, but tables.
    assert "reward of turn 1" in seen.texts("#overview table.numbers")[1]
    assert "both count about alike" in seen.text("#overview ul")
    seen.look("overview", full=True)


def test_the_group_shows_the_numbers_that_were_put_in(seen: Watched) -> None:
    open_group(seen, "Orrin")
    rows = seen.texts("#detail table.matrix tbody tr")
    assert rows == ["0 +2.11 0.70 +1.00 1.00 1.70 ✓ right", "1 −1.28 0.20 −1.00 0.00 0.20 ✗ wrong",
                    "2 −0.83 0.50 no such turn 0.50 ✗ wrong"]  # fmt: skip
    blue, orange = (seen.page.locator("#detail .cell").nth(n).screenshot() for n in (0, 2))
    assert mean_colour(blue)[2] > mean_colour(blue)[0] + 30 and mean_colour(orange)[0] > mean_colour(orange)[2] + 30
    seen.look("group", full=True)


def test_what_a_judge_said_stands_at_its_turn(browser: Any, tmp_path: Path) -> None:
    said = json.dumps({"turns": ["judge +0.5: <b>precise</b>", "the last"], "outcome": "judge 1: right"})
    opened = ToolCall("door", "{}", "It opens.", changed=True)
    row = training_row("q", 0, asked("Which?", rollout_of("Vel", opened)), [0.4, 1.0], [0.1, 0.2], turn_notes=said)
    write_page(tmp_path / "r.html", read_catalog([write_rows(tmp_path / "1.jsonl", [row])]), title="t", made_by="t")
    with watched_page(browser) as watched:
        watched.page.goto((tmp_path / "r.html").as_uri() + "#rollouts/0/0")
        assert watched.text("#turn1 .note") == "The reward function: judge +0.5: <b>precise</b>"
        assert watched.text("article > .note") == "The outcome: judge 1: right"
        assert "changed something" in watched.text("#turn1 .call .label")
        watched.look("notes", full=True)
        assert watched.console == [] and watched.dialogs == []


def test_a_click_on_a_cell_answers_why(seen: Watched) -> None:
    open_group(seen, "Orrin")
    seen.page.get_by_label("rollout 1, turn 1").click()
    seen.page.locator("article[aria-label='Rollout 1']").wait_for()
    why = "the 3 rollouts that got this far (1 ended there: counted as 0) averaged 0.30 ± 0.36: −0.28."
    assert why in seen.text("#turn1 .why p")
    working = seen.page.locator("#turn1 table.working")
    assert working.is_visible(), "the working of the turn that was clicked on is open"
    adds = numbers(seen, "#turn1 table.working tbody .adds")
    assert len(adds) == 2 and sum(adds) == pytest.approx(-1.277, abs=2e-3)
    assert seen.text("#turn1 table.working tfoot .sum") == "−1.277"
    assert seen.page.locator("#turn2 table.working").is_hidden()
    assert seen.texts("#turn1 pre.text")[0] == "<tool_call>x</tool_call>"
    seen.page.locator("#turn1 .documents summary").click()
    assert "Mar is a river." in seen.texts("#turn1 .documents pre")[0]
    seen.look("why", full=True)
    seen.page.get_by_role("link", name="next").click()
    seen.page.locator("article[aria-label='Rollout 2']").wait_for()
    seen.page.go_back()
    seen.page.locator("article[aria-label='Rollout 1']").wait_for()


def test_stored_advantages_that_the_working_does_not_give_are_said_to_be_such(seen: Watched) -> None:
    open_group(seen, "city 3 of")
    seen.page.locator("#turn1 summary", has_text="The working").click()
    (total,) = numbers(seen, "#turn1 table.working tfoot .sum")
    assert total == pytest.approx(sum(numbers(seen, "#turn1 table.working tbody .adds")), abs=2e-3) != 0.3
    said = seen.text("#turn1 .why .warning")
    assert "This does not give the +0.30 that was trained on" in said
    assert "sum (stored: +0.300)" in seen.page.locator("#turn1 table.working").text_content()


def test_filters_and_order(seen: Watched) -> None:
    seen.page.get_by_role("link", name="Rollouts", exact=True).click()
    page, counted = seen.page, lambda: seen.text("#count")
    assert counted() == "43 groups, 166 rollouts of 166"
    assert "Orrin" in seen.texts("#list .question")[0], "the largest advantage comes first"
    page.get_by_label("Data", exact=True).select_option(label="triviaqa")
    assert counted() == "1 group, 3 rollouts of 166"
    page.get_by_label("Answer", exact=True).select_option("wrong")
    assert counted() == "1 group, 2 rollouts of 166" and "2 fit" in seen.text("#list")
    page.get_by_label("Tool", exact=True).select_option("no")
    assert counted() == "1 group, 1 rollout of 166"
    page.get_by_role("button", name="Reset").click()
    assert counted() == "43 groups, 166 rollouts of 166"
    page.get_by_label("Dropped", exact=True).select_option("yes")
    assert seen.texts("#list .question") == ["Who was lost?"]
    page.get_by_role("button", name="Reset").click()
    page.get_by_label("Tool errors", exact=True).select_option("yes")
    assert seen.texts("#list .question") == ["Who was lost?"]
    page.get_by_role("button", name="Reset").click()
    page.get_by_label("Rollouts of", exact=True).select_option("validation")
    assert counted() == "1 group, 2 rollouts of 166"
    page.get_by_role("button", name="Reset").click()
    page.get_by_label("Step", exact=True).select_option("7")
    assert counted() == "2 groups, 7 rollouts of 166"
    page.get_by_role("button", name="Reset").click()
    page.get_by_label("Sort by", exact=True).select_option("low")
    page.get_by_label("List", exact=True).select_option("rollouts")
    totals = [float(line.split("paid ")[1].split()[0]) for line in seen.texts("#list .quiet")]
    assert totals == sorted(totals) and len(totals) == 40, "a page of the list"
    page.get_by_role("button", name="Next").click()
    assert "2 of 5" in seen.text("#pager")
    page.get_by_label("Question", exact=True).fill("nothing like this")
    assert "Nothing fits" in seen.text("#list")


def test_the_keyboard_is_enough(seen: Watched) -> None:
    """From the link of the overview to the working of a turn without a mouse."""
    page = seen.page
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#detail .cell").first.wait_for()
    page.locator("#detail .cell").first.focus()
    page.keyboard.press("Enter")
    page.locator("#turn1 table.working").wait_for()
    assert page.evaluate("document.activeElement.matches('.cell[aria-current]')"), "the focus stays on the cell"


def test_logged_metrics_are_found_by_name(seen: Watched) -> None:
    seen.page.get_by_role("link", name="Logged metrics").click()
    assert "1 of 1 metrics" in seen.text("#metrics")
    assert (seen.page.locator("#metrics path.series").first.get_attribute("d") or "").count("L") == 39


@pytest.mark.parametrize(("width", "scheme"), [(420, "light"), (420, "dark"), (1360, "dark")])
def test_narrow_and_dark(browser: Any, report: Path, width: int, scheme: str) -> None:
    with watched_page(browser, width=width, scheme=scheme) as seen:
        seen.page.goto(report.as_uri())
        overview = seen.look(f"overview-{width}-{scheme}", full=True)
        open_group(seen, "Orrin")
        seen.page.get_by_label("rollout 0, turn 1").click()
        picture = seen.look(f"why-{width}-{scheme}", full=True)
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width, "nothing runs out of the window"
        for one in (overview, picture):
            dark = sum(mean_colour(one)) < 3 * 128
            assert dark == (scheme == "dark")
        assert seen.console == []


def test_hostile_text_does_nothing(browser: Any, tmp_path: Path) -> None:
    """In every field of a dump, and looked at in every part of the page, with everything unfolded."""
    rows = [row for text in HOSTILE for row in hostile_rows(text)]
    metrics = RunMetrics(train={f"turn/{text}": {1: 1.0, 2: 2.0} for text in HOSTILE})
    write_page(
        tmp_path / "r.html",
        read_catalog([write_rows(tmp_path / "1.jsonl", rows)]),
        title=HOSTILE[0],
        made_by=HOSTILE[3],
        metrics=metrics,
    )
    with watched_page(browser) as seen:
        seen.page.goto((tmp_path / "r.html").as_uri())
        shown = 0
        for address in (
            "#overview",
            "#metrics",
            *(f"#rollouts/{n}/{k}/1" for n in range(len(HOSTILE)) for k in range(2)),
        ):
            seen.page.evaluate("address => { location.hash = address }", address)
            if address.startswith("#rollouts"):
                at = address.split("/")[2]
                seen.page.wait_for_function(
                    "([hash, at]) => location.hash === hash && document.querySelector('.chosen th a')?.hash.startsWith("
                    "hash.split('/').slice(0, 2).join('/') + '/' + at)", arg=[address, at]
                )  # fmt: skip
            seen.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
            shown += seen.page.evaluate("document.body.innerText.includes('window.broken') ? 1 : 0")
            assert foreign_elements(seen.page) == []
            assert seen.page.evaluate("window.broken") is None
            assert "[native code]" not in seen.page.evaluate("document.body.innerText"), "a name of a property"
        assert shown > 10, "it is there, as text"
        seen.page.wait_for_timeout(200)
        seen.look("hostile", full=True)
        assert seen.console == [] and seen.dialogs == []
        assert {url.split("#")[0] for url in seen.requests} == {(tmp_path / "r.html").as_uri()}
        assert seen.page.evaluate("({}).polluted === undefined && Object.keys(Object.prototype).length") == 0


def test_the_policy_holds_even_if_the_page_were_to_insert_markup(seen: Watched) -> None:
    """The second line of defence works by itself: what the first never lets happen is stopped by the browser."""
    failed = seen.page.evaluate(
        "() => { try { document.body.innerHTML = '<img src=x onerror=1>'; return false } catch { return true } }"
    )
    assert failed and seen.console, "the browser says that it stopped it"
    seen.console.clear()


def test_ten_thousand_rollouts_open_in_three_seconds(browser: Any, tmp_path: Path) -> None:
    started = time.perf_counter()
    dump = large_dump(tmp_path / "1.jsonl")
    made = time.perf_counter()
    page = tmp_path / "large.html"
    write_page(page, read_catalog([dump]), title="10,000 rollouts", made_by="tests")
    written = time.perf_counter()
    # Twice if need be: the machine may be busy with something else.
    times = opened(browser, page)
    if max(times.values()) >= 3.0:
        times = opened(browser, page)
    print(
        f"\n10,000 rollouts: dump {dump.stat().st_size / 1e6:.0f} MB made in {made - started:.1f} s, page "
        f"{page.stat().st_size / 1e6:.1f} MB written in {written - made:.1f} s; seconds from navigation: "
        + ", ".join(f"{name} {seconds:.2f}" for name, seconds in times.items())
    )
    assert max(times.values()) < 3.0, times


def opened(browser: Any, path: Path) -> dict[str, float]:
    """Seconds from the start of navigation until the list is there, a group is open, and the last group is open."""
    times: dict[str, float] = {}
    with watched_page(browser) as seen:
        start = time.perf_counter()
        seen.page.goto(path.as_uri() + "#rollouts", wait_until="commit")
        seen.page.locator("#list .entry").first.wait_for()
        times["list"] = time.perf_counter() - start
        seen.page.locator("#detail table.matrix").wait_for()
        times["first group"] = time.perf_counter() - start
        seen.page.evaluate(f"location.hash = '#rollouts/{GROUPS - 1}'")
        seen.page.locator("#detail h2", has_text=f"question {GROUPS - 1} ").wait_for()
        times["last group of the file"] = time.perf_counter() - start
        assert seen.text("#count") == "1,250 groups, 10,000 rollouts of 10,000"
        seen.page.get_by_label("Question", exact=True).fill(f"question {GROUPS - 1}")
        assert seen.text("#count") == "1 group, 8 rollouts of 10,000"
        seen.look("large")
        assert seen.console == []
    return times
