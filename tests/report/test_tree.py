"""Turns that rollouts share: read from paths, in words and in the page's data, whatever the paths are."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.report.made import write_rows
from tests.report.trees import ADVANTAGES, MALFORMED, PATHS, tree_rows
from verl_mtgrpo.report.catalog import read_catalog
from verl_mtgrpo.report.html import write_page
from verl_mtgrpo.report.rollouts import DumpedRollout, read_dump
from verl_mtgrpo.report.tree import chains, read_tree, tree_of
from verl_mtgrpo.report.why import explain_group


def dumped(tmp_path: Path, rows: list[dict[str, Any]]) -> list[DumpedRollout]:
    return read_dump(write_rows(tmp_path / "3.jsonl", rows))


def test_nodes_by_hand() -> None:
    tree = read_tree(PATHS, [2, 2, 1, 2])
    assert tree.nodes == ((0, 1), (0, 2), (3,), (4, 5))
    assert tree.parents == (-1, 0, 0, -1, -1, 4) and tree.rollouts[0] == (0, 1)
    assert tree.siblings(0) == [0, 3, 4] and tree.siblings(1) == [1, 2] and tree.siblings(5) == [5]
    assert tree.places == {0: [0, 3, 4], 1: [1, 2, 5]} and tree.is_shared


def test_rollouts_that_share_a_turn_are_neighbours() -> None:
    tree = read_tree(["0/0.0", "1/1.0", "0/0.1", None, "1/1.1"], [2, 2, 2, 1, 2])
    assert tree.order == [0, 2, 1, 4, 3]


def test_rollouts_without_a_path_are_chains() -> None:
    assert read_tree([None, "", "0"], [2, 1, 1]) == chains([2, 1, 1]) and not chains([2, 1]).is_shared
    assert read_tree(["0/1", "a/b/c"], [2, 0]).nodes == ((0, 1), ()), "the path of a row without turns is not read"


def test_a_very_deep_tree() -> None:
    ids = [str(n) for n in range(10_000)]
    tree = read_tree(["/".join(ids), "/".join([*ids[:-1], "x"])], [10_000, 10_000])
    assert tree.size == 10_001 and len(tree.siblings(9_999)) == 2 and tree.order == [0, 1]


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_tree_becomes_chains_with_a_reason(name: str, tmp_path: Path) -> None:
    rollouts = dumped(tmp_path, tree_rows(MALFORMED[name]))
    tree, note = tree_of(rollouts)
    assert tree == chains([2, 2, 1, 2]) and re.fullmatch(r"[\w ,]+", note), note
    why = explain_group(rollouts, ADVANTAGES, "mt_grpo_tree")
    assert [len(one) for one in why] == [2, 2, 1, 2]
    assert not any(one.terms for some in why for one in some), "no working from a tree that there is not"


def test_every_leaf_is_a_rollout_of_its_own(tmp_path: Path) -> None:
    """Leaves are outputs of one session; a dropped one has an empty path, and one without a path is not of a tree."""
    rows = tree_rows(("0/0.0", "", "1", "2/2.0"))
    rows[1] |= {"outcome/dropped": 1.0, "dropped_reason": "no answer in 20 s"}
    rollouts = dumped(tmp_path, rows)
    assert [one.number for one in rollouts] == [0, 1, 2, 3] and {one.group for one in rollouts} == {"tree"}
    several = tree_rows((None,) * 4)
    assert len(dumped(tmp_path, [several[0], several[0], several[2]])) == 2, "one transcript twice is one rollout"


def test_rollouts_of_several_trees_have_numbers_of_their_own(tmp_path: Path) -> None:
    rows = tree_rows()
    rows[2]["uid"], rows[3]["uid"] = "tree_1_0", "tree_1_1"
    catalog = read_catalog([write_rows(tmp_path / "3.jsonl", rows)])
    (group,) = catalog.groups
    assert [entry.number for entry in group.entries] == [0, 1, 2, 3]
    ((_, rollouts),) = catalog.read_groups([group])
    assert [one.number for one in rollouts] == [0, 1, 2, 3]


def test_why_a_shared_turn_got_its_advantage(tmp_path: Path) -> None:
    """turn_rloo_tree: G of the shared turn is .6 + (1 + 0) / 2 = 1.1; its siblings' are 1.0 and 0.5, mean .75.
    4 leaves · 1/3 / 2 rows = 2/3, so it is (1.1 - .75) · 2/3 = .2333."""
    rollouts = dumped(tmp_path, tree_rows(estimator="turn_rloo_tree"))
    advantages = [(0.2333, 2 / 3), (0.2333, -2 / 3), (0.3333,), (-0.7333, 0.0)]
    why = explain_group(rollouts, advantages, "turn_rloo_tree")
    assert why[0][0].words == (
        "From turn 1 on 1.10 was paid, averaged over the branches to 2 rollouts; the 2 others sampled in this state "
        "averaged 0.75, times 0.67: +0.23. This turn is in 2 rollouts."
    )
    assert why[0][0].adds_up and why[1][0].adds_up and why[0][1].adds_up
    assert why[3][1].words.startswith(
        "From turn 2 on 0.50 was paid; no other turn was sampled in this state, and the 2 others at this place averaged"
    )


def test_where_the_group_does_not_decide_siblings_are_told(tmp_path: Path) -> None:
    """turn_gae_tree whitens over the batch: what the siblings were paid is all that can be said."""
    why = explain_group(dumped(tmp_path, tree_rows(estimator="turn_gae_tree")), ADVANTAGES, "turn_gae_tree")
    assert why[1][1].words == (
        "This turn was paid 0.00; the 2 turns sampled in this state averaged 0.50. From here on 0.00 was paid; they "
        "averaged 0.50."
    )
    assert why[0][0].words.startswith("This turn was paid 0.60; the 3 turns sampled in this state averaged 0.53.")


def test_the_page_gets_numbers_instead_of_paths(tmp_path: Path) -> None:
    """Whatever a path says, nothing of it is in the file."""
    rows = tree_rows() + tree_rows(("secret<b>/0.0", "secret<b>/0.1", "1", "2/2.0"), prompt="other")
    rows += tree_rows(MALFORMED["markup"], prompt="markup") + tree_rows((None,) * 4, prompt="chains")
    write_page(tmp_path / "r.html", read_catalog([write_rows(tmp_path / "3.jsonl", rows)]), title="t", made_by="tests")
    page = (tmp_path / "r.html").read_text()
    groups = [
        zlib.decompress(base64.b64decode(chunk)).decode()
        for chunk in re.findall(r'<script type="application/octet-stream" id="g\d+">(.*?)</script>', page)
    ]
    assert "secret" not in page + "".join(groups) and "onerror" not in page + "".join(groups)
    drawn, other, markup, without = (json.loads(text)["tree"] for text in groups)
    assert (
        drawn
        == other
        == {
            "nodes": [[0, 1], [0, 2], [3], [4, 5]],
            "parents": [-1, 0, 0, -1, -1, 4],
            "order": [0, 1, 2, 3],
            "note": "",
        }
    )
    assert markup["note"] and markup["nodes"] == [[0, 1], [2, 3], [4], [5, 6]]
    assert without is None
