"""Follow turn rewards through verl's real trainer: tool calls, placement, scores, advantages, metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("verl")

from tests import oracles
from tests.integration.runs import QUESTIONS, ROLLOUTS, run, run_format
from verl_mtgrpo.credit import mt_grpo
from verl_mtgrpo.demo.toy import SEARCH_R1, XML
from verl_mtgrpo.integration.trainer.dump import NO_COMPANY
from verl_mtgrpo.report.catalog import read_catalog
from verl_mtgrpo.report.dump_files import dump_files
from verl_mtgrpo.report.why import explain_group

pytestmark = pytest.mark.imports_verl


@pytest.mark.verl
def test_two_steps_of_mt_grpo_with_real_tool_calls(assets: Path, tmp_path: Path):
    result = run(assets, tmp_path, f"trainer.rollout_data_dir={tmp_path / 'rollouts'}", "trainer.turn.dump.groups=3")
    assert result.returncode == 0, result.tail()
    assert "no rollout of this batch got a turn reward" not in result.log
    assert set(result.steps) == {1, 2}
    for step in result.steps.values():
        assert step["turn/1/rollouts"] == QUESTIONS * ROLLOUTS
        assert 0 < step["turn/2/rollouts"] < QUESTIONS * ROLLOUTS, "both habits occur"
        # A sampled call may be garbled and fail; then there is a second turn, but no tool was used.
        assert 0 < step["tool/used"] <= step["turn/2/rollouts"] / (QUESTIONS * ROLLOUTS) + 1e-6
        # The sum that verl's trainer computes from rm_scores is what the reward manager paid, turn by turn.
        paid = step["turn/1/reward"] + step["turn/2/reward"] * step["turn/2/rollouts"] / step["turn/1/rollouts"]
        assert step["critic/score/mean"] == pytest.approx(paid, abs=1e-4)
        assert step["critic/advantages/max"] > 0 > step["critic/advantages/min"]
        assert step["training/rollout_probs_diff_max"] < 1e-3
        assert {name: value for name, value in step.items() if name.startswith("guard/") and "_tokens" in name} == {
            "guard/bad_advantage_tokens": 0.0,
            "guard/masked_advantage_tokens": 0.0,
        }
        assert {step[f"guard/{name}"] for name in GUARDS} == {0.0}
    assert_validation_dump_has_the_credit_of_each_turn(tmp_path / "val" / "2.jsonl")
    assert_training_dump_has_what_was_trained_with(tmp_path / "rollouts", groups=3)
    assert_report_knows_why(tmp_path / "rollouts")


GUARDS = ("turn_rewards", "zero_variance", "bad_advantages", "masked_advantages", "tool_failures", "tool_use")


def assert_training_dump_has_what_was_trained_with(folder: Path, groups: int) -> None:
    """Compare the advantages of each group with the paper's definition, in a loop over the rewards in the dump."""
    for step in (1, 2):
        rows = [json.loads(line) for line in (folder / f"{step}.jsonl").read_text().splitlines()]
        by_prompt = {row["uid"].rsplit("_", 2)[0] for row in rows}
        assert (len(rows), len(by_prompt)) == (groups * ROLLOUTS, groups), "whole groups"
        paid = [json.loads(row["turn_rewards"]) for row in rows]
        assert [json.loads(row["turn_credited"]) for row in rows] == [pytest.approx(turns, abs=1e-6) for turns in paid]
        # One token per turn, followed by one that was not generated.
        masks = [[1, 0] * len(turns) for turns in paid]
        tokens = [[number for reward in turns for number in (reward, 0.0)] for turns in paid]
        expected = oracles.mt_grpo(tokens, masks, [row["uid"].rsplit("_", 2)[0] for row in rows])
        for row, advantages in zip(rows, expected, strict=True):
            assert json.loads(row["turn_advantages"]) == pytest.approx(advantages[::2], abs=1e-3)
            assert len(json.loads(row["transcript"])["turns"]) == row["turn/count"] == len(advantages) / 2
            assert (row["step"], row["estimator"]) == (step, "mt_grpo")
            assert json.loads(row["estimator_settings"])["missing_turn"] == "zero"
        assert any(any(json.loads(row["turn_advantages"])) for row in rows)


def assert_report_knows_why(folder: Path) -> None:
    """The credit report's terms add up to the advantage that was trained on, turn by turn."""
    catalog = read_catalog(dump_files(folder))
    for group, rollouts in catalog.read_groups(catalog.groups):
        assert group.training and group.estimator == "mt_grpo"
        why = explain_group(rollouts, [entry.advantages for entry in group.entries], group.estimator)
        assert all(turn.adds_up for one in why for turn in one)


def assert_validation_dump_has_the_credit_of_each_turn(dump: Path) -> None:
    import torch

    rows = [json.loads(line) for line in dump.read_text().splitlines()]
    assert len(rows) == QUESTIONS * 4
    searched = [row for row in rows if row["turn/count"] == 2]
    assert searched
    hits = []
    for row in searched:
        # The policy is sampled and may write a garbled turn, so we compute the rewards from what it did.
        calls = json.loads(row["transcript"])["turns"][0]["tool_calls"]
        hits.append(any("Oslo" in call["result"] for call in calls if call["ok"]))
        assert hits[-1] == any(document["id"] == "1" for call in calls for document in call["documents"])
        first, last = json.loads(row["turn_rewards"])
        executed = sum(call["ok"] for call in calls) / len(calls)
        assert first == pytest.approx(0.2 * executed + 0.5 * hits[-1])
        answered = 1.5 if row["outcome/em"] else 0.5 if row["outcome/contains"] else 0.0
        assert last == pytest.approx(answered + 0.2 * row["outcome/format"])
    assert any(hits)
    # One turn of the group of rows: searching is worth more than not searching.
    rewards = torch.zeros(len(rows), 3)
    mask = torch.tensor([[1, 0, 1] if row["turn/count"] == 2 else [1, 0, 0] for row in rows])
    for i, row in enumerate(rows):
        for position, reward in zip((0, 2), json.loads(row["turn_rewards"]), strict=False):
            rewards[i, position] = reward
    advantages, _ = mt_grpo(rewards, mask, ["all"] * len(rows), scale="none")
    used = mask[:, 2] == 1
    turn_credit = advantages[used, 0] - advantages[used, 2]  # A_1 - A_2 = Â^T
    assert (turn_credit[torch.tensor(hits)] > 0).all()


@pytest.mark.verl
def test_search_r1_in_raw_continuation_with_group_filtering(tmp_path: Path):
    # Groups that are all right or all wrong are left out and replaced, as verl does.
    filtering = ["algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=outcome/em"]
    result = run_format(SEARCH_R1, tmp_path, "reward.turn.preset=paper_v2", "trainer.total_epochs=20", *filtering)
    assert all(0 < step["outcome/em"] < 1 for step in result.steps.values())


SOMETIMES = """
from verl_mtgrpo.errors import DropRollout
from verl_mtgrpo.rewards import paper_v1

def sometimes(transcript, ground_truth):
    if "Rome" in transcript.turns[-1].text and len(transcript.turns) == 1:
        raise DropRollout("no judge for Rome")
    return paper_v1(transcript, ground_truth)
"""


@pytest.mark.verl
@pytest.mark.slow  # leaves that cannot be scored are in test_training_trees.py, another raw format is above
def test_the_papers_format_with_rollouts_that_cannot_be_scored(tmp_path: Path):
    (tmp_path / "own.py").write_text(SOMETIMES)
    dump = [f"trainer.rollout_data_dir={tmp_path / 'rollouts'}", "trainer.turn.dump.groups=0"]
    result = run_format(XML, tmp_path, f"reward.turn.preset='{tmp_path}/own.py:sometimes'", *dump)
    for step in result.steps.values():
        assert 0 < step["outcome/dropped"] < 1
        assert step["turn/1/rollouts"] == pytest.approx(QUESTIONS * ROLLOUTS * (1 - step["outcome/dropped"]))
    assert "left out of the update: no judge for Rome" in result.log
    for number, step in result.steps.items():
        rows = [json.loads(line) for line in (tmp_path / "rollouts" / f"{number}.jsonl").read_text().splitlines()]
        assert len(rows) == QUESTIONS * ROLLOUTS, "the lost ones are written down, too"
        lost = [row for row in rows if row["outcome/dropped"]]
        assert len(lost) == step["rollouts_total/dropped"] + step["rollouts_total/alone"]
        assert {row["dropped_reason"] for row in lost} <= {"no judge for Rome", NO_COMPANY}
        assert all(set(json.loads(row["turn_advantages"])) == {0.0} for row in lost)
        kept = [row for row in rows if not row["outcome/dropped"]]
        assert any(any(json.loads(row["turn_advantages"])) for row in kept)
