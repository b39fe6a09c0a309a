"""The page as a file: what is in it, and that nothing of a rollout is markup."""

from __future__ import annotations

import base64
import hashlib
import json
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.report.hostile import EVERYTHING, HOSTILE, hostile_rows
from tests.report.made import dump_row, training_row, transcript, write_rows
from tests.report.parsed import Page
from verl_mtgrpo.report.catalog import read_catalog
from verl_mtgrpo.report.html import embedded, packed, write_page
from verl_mtgrpo.report.metrics import RunMetrics

README = [[0.7, 1.0], [0.2, 0.0], [0.5]]
ADVANTAGES = [[2.1094, 1.0], [-1.2774, -1.0], [-0.8321]]


def page_of(tmp_path: Path, rows: list[dict[str, Any]], **more: Any) -> Page:
    catalog = read_catalog([write_rows(tmp_path / "3.jsonl", rows)])
    write_page(tmp_path / "report.html", catalog, title="t", made_by="v", **more)
    return Page(tmp_path / "report.html")


def readme_rows() -> list[dict[str, Any]]:
    return [
        training_row("q", n, transcript("Vel", searches=["Orrin"] * (len(paid) - 1)), paid, credit, step=3)
        for n, (paid, credit) in enumerate(zip(README, ADVANTAGES, strict=True))
    ]


def test_a_group_has_what_the_reward_function_said(tmp_path: Path) -> None:
    said = json.dumps({"turns": ["judge +0.5: precise", "the last"], "outcome": "judge 1: right"})
    page = page_of(tmp_path, [{**readme_rows()[0], "turn_notes": said}, *readme_rows()[1:]])
    told, silent, _ = page.group(0)["rollouts"]
    assert [turn["note"] for turn in told["turns"]] == ["judge +0.5: precise", "the last"]
    assert told["outcomeNote"] == "judge 1: right"
    assert ([turn["note"] for turn in silent["turns"]], silent["outcomeNote"]) == (["", ""], "")


def test_the_list_has_the_numbers(tmp_path: Path) -> None:
    page = page_of(tmp_path, readme_rows())
    (row,) = page.index["groups"]
    step, training, source, question, estimator, rollouts = row
    assert (step, training, question, estimator) == (3, 1, "Which river runs by Orrin?", "mt_grpo")
    assert page.index["sources"][source] == ""
    assert [(number, rewards, advantages) for number, rewards, advantages, _ in rollouts] == [
        (n, paid, credit) for n, (paid, credit) in enumerate(zip(README, ADVANTAGES, strict=True))
    ]
    # right 1, used 4, hit 8: the first two searched and found it, all three answered right.
    assert [flags for *_, flags in rollouts] == [13, 13, 1]
    assert list(page.index["kinds"]) == ["training"]
    assert page.index["estimators"]["mt_grpo"]["settings"] == [{"discount": 1.0}]


def test_the_overview_compares_turn_rewards_with_the_outcome(tmp_path: Path) -> None:
    """README: turn 1 was paid .7, .2 and nothing (it ended), outcomes 1, 0 and .5; means .3 and .5.

    x: .4, -.1, -.3; y: .5, -.5, 0: Σxy = .25, Σx² = .26, Σy² = .5, so r = .25 / √.13 = .69.
    """
    (found,) = page_of(tmp_path, readme_rows()).index["kinds"]["training"]["calibration"]
    correlations, conflicts, balances = (table["rows"] for table in found["tables"])
    assert correlations[0] == ["reward of turn 1", "+0.69", "± 0.71", "1", "3"]
    assert conflicts == [["turn 1", "0 %", "2"]]
    assert balances[0][:1] + balances[0][3:] == ["mt_grpo", "turn_coef", "1", "1", "1"]
    assert found["about"].startswith(
        "Training rollouts of step 3, with the advantages that they were trained on. r is "
    )
    for table in found["tables"]:
        assert len(table["titles"]) == len(table["head"]) and sum(map(bool, table["titles"])) > 1
    assert dict(zip(found["tables"][0]["head"], found["tables"][0]["titles"], strict=True))["± by chance"].startswith(
        "1 / √"
    )


def test_a_group_has_the_text_and_the_working(tmp_path: Path) -> None:
    group = page_of(tmp_path, readme_rows()).group(0)
    assert group["answers"] == ["Vel", "the Vel"] and group["prompt"][1] == ["user", "Which river runs by Orrin?"]
    first = group["rollouts"][0]["turns"][0]
    assert (first["text"], first["reward"], first["advantage"]) == ("<tool_call>Orrin</tool_call>", 0.7, 2.1094)
    (call,) = first["calls"]
    assert group["documents"][call["documents"][0]] == ["7", "Orrin", "Vel is a river.", 3.2]
    assert len(group["documents"]) == 1, "both searches found it"
    assert first["addsUp"] is True and sum(term[6] for term in first["terms"]) == pytest.approx(2.1094, abs=1e-3)
    assert first["terms"][0][:3] == ["turn", 1, 0.7]


def test_a_validation_is_recomputed(tmp_path: Path) -> None:
    rows = [
        dump_row("q", n, transcript("Vel", searches=["x"] * (len(paid) - 1)), paid) for n, paid in enumerate(README)
    ]
    page = page_of(tmp_path, rows)
    (row,) = page.index["groups"]
    assert row[:2] == [3, 0], "the step is the file's name"
    assert [one[2] for one in row[5]] == [pytest.approx(some, abs=1e-3) for some in ADVANTAGES]
    assert all(turn["addsUp"] for one in page.group(0)["rollouts"] for turn in one["turns"])


def test_curves_of_the_steps(tmp_path: Path) -> None:
    """Step 1: rewards 0 and 1 at turn 1. Step 2: 1 and 1, nothing to learn from; one rollout was dropped."""
    said = transcript("Vel")
    one = write_rows(
        tmp_path / "1.jsonl", [training_row("p", n, said, [float(n)], [n - 0.5], step=1) for n in range(2)]
    )
    rows = [training_row("q", n, said, [1.0], [0.0], step=2) for n in range(2)]
    lost = {**training_row("q", 2, said, [0.0], [0.0], step=2), "outcome/dropped": 1.0}
    two = write_rows(tmp_path / "2.jsonl", [*rows, lost])
    metrics = RunMetrics(train={"actor/entropy": {1: 0.5, 2: float("nan"), 3: 0.25}})
    write_page(tmp_path / "r.html", read_catalog([one, two]), title="t", made_by="v", metrics=metrics)
    index = Page(tmp_path / "r.html").index
    found = {
        title: {one["label"]: one["points"] for one in some}
        for title, some in index["kinds"]["training"]["curves"].items()
    }
    assert found["Mean reward by turn"] == {"turn 1": [[1, 0.5], [2, 1.0]]}
    assert found["Mean |advantage| by turn"] == {"turn 1": [[1, 0.5], [2, 0.0]]}
    assert found["Groups in which all were paid the same"]["turn 1"] == [[1, 0.0], [2, 1.0]]
    assert found["Share of rollouts"]["dropped"] == [[1, 0.0], [2, pytest.approx(1 / 3, abs=1e-6)]]
    assert found["Share of rollouts"]["right answer"] == [[1, 1.0], [2, 1.0]]
    assert index["metrics"] == {"actor/entropy": [[1, 0.5], [3, 0.25]]}
    rewards, advantages = index["kinds"]["training"]["histograms"]
    assert (rewards["low"], rewards["high"], sum(rewards["counts"][0])) == (0.0, 1.0, 4)
    assert (advantages["low"], advantages["high"], advantages["counts"][0][15]) == (-0.5, 0.5, 2)


def test_hostile_text_is_nowhere_markup(tmp_path: Path) -> None:
    harmless = page_of(tmp_path, hostile_rows("nothing"))
    page = page_of(tmp_path, hostile_rows())
    assert page.tags == harmless.tags, "as many elements of the same kinds as with text that means nothing"
    assert page.code == harmless.code
    group = page.group(0)
    assert group["rollouts"][0]["turns"][0]["text"] == EVERYTHING and group["documents"][0][2] == EVERYTHING
    assert not [text for text in HOSTILE if "<" in text and text in page.text]


def test_a_hostile_title(tmp_path: Path) -> None:
    catalog = read_catalog([write_rows(tmp_path / "3.jsonl", readme_rows())])
    write_page(tmp_path / "a.html", catalog, title="t", made_by="v")
    write_page(tmp_path / "b.html", catalog, title=EVERYTHING, made_by=EVERYTHING)
    assert Page(tmp_path / "a.html").tags == Page(tmp_path / "b.html").tags


ANY_TEXT = st.text(st.characters(), max_size=30) | st.sampled_from(
    ["</script>", "<!--", "]]>", "\u2028", "\ud800", "\0"]
)


@given(value=st.recursive(ANY_TEXT | st.floats(allow_nan=False, allow_infinity=False), lambda some: st.lists(some)))
def test_whatever_text_comes_back_and_no_character_of_it_can_end_a_script(value: Any) -> None:
    text = embedded(value)
    assert json.loads(text) == value
    assert text.isascii() and not set("<>&") & set(text) and text.isprintable()
    assert json.loads(zlib.decompress(base64.b64decode(packed(value)))) == value


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(ANY_TEXT, min_size=1).map("".join))
def test_whatever_a_rollout_says_the_page_stays_what_it_is(text: str, tmp_path: Path) -> None:
    page = page_of(tmp_path, hostile_rows(text))
    assert page.tags == page_of(tmp_path, hostile_rows("nothing")).tags
    assert page_of(tmp_path, hostile_rows(text)).group(0)["rollouts"][0]["turns"][0]["text"] == text


def test_the_policy_allows_the_pages_own_code_and_nothing_else(tmp_path: Path) -> None:
    page = page_of(tmp_path, readme_rows())
    rules = dict(rule.split(" ", 1) for rule in page.policy.split("; "))
    assert rules["default-src"] == "'none'" and "connect-src" not in rules
    hashes = {base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in page.code}
    assert {found.strip("'").removeprefix("sha256-") for found in rules["script-src"].split()} == hashes
    assert rules["require-trusted-types-for"] == "'script'" and rules["trusted-types"] == "'none'"
    assert "unsafe" not in page.policy


def test_the_same_dump_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = readme_rows()
    first = page_of(tmp_path, rows).text
    assert page_of(tmp_path, rows).text == first


def test_a_page_that_could_not_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    catalog = read_catalog([write_rows(tmp_path / "3.jsonl", readme_rows())])
    (tmp_path / "r.html").write_text("old")

    def full_disk(_: object) -> Any:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_page(tmp_path / "r.html", catalog, title="t", made_by="v", on_group=full_disk)
    assert (tmp_path / "r.html").read_text() == "old" and not list(tmp_path.glob("*.part"))


@pytest.mark.heavy
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """8 MB of text are written with a few MB of memory: a group at a time."""

    def peak(groups: int) -> int:
        said = transcript("word " * 20_000, searches=["x"])
        rows = [dump_row(f"q{n}", 0, said, [0.5, 1.0]) for n in range(groups)]
        path = write_rows(tmp_path / "0.jsonl", rows)
        del rows
        tracemalloc.start()
        write_page(tmp_path / "r.html", read_catalog([path]), title="t", made_by="v")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(40) < 1.5 * peak(4)
