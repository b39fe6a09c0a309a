"""Trees of rollouts on their way through verl's real trainer: rows, shared turns, books, advantages, validation."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

pytest.importorskip("verl")

from tests import oracles_tree
from tests.integration.runs import QUESTIONS, ROLLOUTS, run
from verl_mtgrpo.report.rollouts import read_dump

pytestmark = pytest.mark.imports_verl

SOMETIMES = """
from verl_mtgrpo.errors import DropRollout
from verl_mtgrpo.rewards import paper_v1

def sometimes(transcript, ground_truth):
    if "Rome" in transcript.turns[-1].text and len(transcript.turns) == 2:
        raise DropRollout("no judge for Rome")
    return paper_v1(transcript, ground_truth)
"""


def train(assets: Path, folder: Path, preset: str, *overrides: str, cpu: str = "default"):
    dump = [f"trainer.rollout_data_dir={folder / 'rollouts'}", "trainer.turn.dump.groups=0"]
    result = run(assets, folder, *dump, *overrides, preset=preset, cpu=cpu)
    assert result.returncode == 0, result.tail()
    assert set(result.steps) == {1, 2}
    return result


def rows_of_step(folder: Path, step: int) -> list[dict]:
    return [json.loads(line) for line in (folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()]


def assert_books_are_right(step: dict, rows: list[dict]) -> None:
    books = {name.partition("/")[2]: value for name, value in step.items() if name.startswith("rollouts_total/")}
    assert books["asked"] == QUESTIONS * ROLLOUTS
    assert books["asked"] == sum(books[fate] for fate in ("trained", "dropped", "alone", "failed", "filtered", "short"))
    assert (books["failed"], books["filtered"]) == (0, 0)
    assert books["short"] == QUESTIONS * step["branch/shortfall"]
    assert len(rows) == books["asked"] - books["short"] == QUESTIONS * step["branch/per_prompt"]
    assert sum(bool(row["outcome/dropped"]) for row in rows) == books["dropped"] + books["alone"]
    assert step["outcome/failed"] == 0.0


def assert_shared_turns_are_one(rows: list[dict]) -> float:
    """Rows with a node in common have the same turns and rewards up to it; return how many rows a node has."""
    nodes, through = {}, defaultdict(int)
    for row in rows:
        turns, paid = json.loads(row["transcript"])["turns"], json.loads(row["turn_rewards"])
        names = row.get("node_path", "").split("/") if row.get("node_path") else []
        assert len(names) == (0 if row["outcome/dropped"] and not names else len(turns))
        for k, node in enumerate(names):
            key = (row["uid"].rsplit("_", 2)[0], node)
            here = ([turn["text"] for turn in turns[: k + 1]], [turn["span"] for turn in turns[: k + 1]], paid[k])
            assert nodes.setdefault(key, here) == here
            through[key] += 1
    return sum(through.values()) / len(through)


def tree_of(rows: list[dict]):
    """What was trained on, as the loops of ``tests/oracles_tree.py`` read it: one token per turn, one behind it."""
    paid = [json.loads(row["turn_credited"]) for row in rows]
    masks = [[1, 0] * len(turns) for turns in paid]
    tokens = [[number for reward in turns for number in (reward, 0.0)] for turns in paid]
    groups = [row["uid"].rsplit("_", 2)[0] for row in rows]
    return oracles_tree.Tree(tokens, masks, groups, [row.get("node_path") for row in rows])


def assert_advantages(rows: list[dict], oracle, **knobs) -> None:
    trained = [row for row in rows if not row["outcome/dropped"]]
    expected = oracle(tree_of(trained), **knobs)
    for row, advantages in zip(trained, expected, strict=True):
        found = json.loads(row["turn_advantages"])
        assert found == pytest.approx(advantages[::2][: len(found)], abs=2e-3)
    assert any(any(json.loads(row["turn_advantages"])) for row in trained)
    assert all(set(json.loads(row["turn_advantages"])) == {0.0} for row in rows if row["outcome/dropped"])


@pytest.mark.parametrize(
    "cpu", [pytest.param("default", marks=pytest.mark.verl), pytest.param("vllm", marks=pytest.mark.vllm)]
)
def test_two_steps_of_arpo_with_leaves_that_cannot_be_scored(cpu: str, assets: Path, tmp_path: Path):
    (tmp_path / "own.py").write_text(SOMETIMES)
    own = [f"reward.turn.preset='{tmp_path}/own.py:sometimes'", "algorithm.turn.attribution=hard"]
    result = train(assets, tmp_path, "arpo", *own, "trainer.turn.branch.probability=0.9", cpu=cpu)
    rows_per_node = []
    for number, step in result.steps.items():
        rows = rows_of_step(tmp_path, number)
        assert len(rows) == QUESTIONS * ROLLOUTS and step["branch/shortfall"] == 0
        assert_books_are_right(step, rows)
        rows_per_node.append(assert_shared_turns_are_one(rows))
        assert_advantages(rows, oracles_tree.arpo, attribution="hard")
        assert 0 < step["branch/saved_tokens"] < 1
        assert 0 < step["branch/fired"] <= 1
        assert step["branch/depth"] == 2.0, "the only tool result is behind the first turn"
        assert step["training/rollout_probs_diff_max"] < 1e-3, "copied log-probs are those of the policy"
        assert len(read_dump(tmp_path / "rollouts" / f"{number}.jsonl")) == len(rows), "the report sees all leaves"
    assert max(rows_per_node) > 1, "in one step all that branched may have been dropped, in two hardly"
    validated = [json.loads(line) for line in (tmp_path / "val" / "2.jsonl").read_text().splitlines()]
    assert len(validated) == QUESTIONS * 4
    assert not any(row.get("node_path") for row in validated), "validation grows no tree"


@pytest.mark.verl
@pytest.mark.slow  # the way of a tree through the trainer is that of arpo above
def test_two_steps_of_the_papers_tree_with_rollouts_that_end_early(assets: Path, tmp_path: Path):
    """Three turns, eight leaves: four first turns, and two second turns after each of those that search."""
    result = train(assets, tmp_path, "mt_grpo_tree", "actor_rollout_ref.rollout.multi_turn.max_assistant_turns=3")
    for number, step in result.steps.items():
        rows = rows_of_step(tmp_path, number)
        assert_books_are_right(step, rows)
        assert 0 < step["branch/shortfall"] < 4, "half of the rollouts answer at once, and branch nowhere"
        assert assert_shared_turns_are_one(rows) > 1
        assert_advantages(rows, oracles_tree.mt_grpo_tree)
        first = defaultdict(set)
        for row in rows:
            first[row["uid"].rsplit("_", 2)[0]].add(row["node_path"].split("/")[0])
        assert all(names == {"0", "1", "2", "3"} for names in first.values())
