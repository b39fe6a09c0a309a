"""What a run with trees needs beyond the loop: rows that ask for them, scores of several outputs, refusals."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

from tensordict import NonTensorStack
from verl import DataProto
from verl.utils import tensordict_utils as tu

from tests.composed import composed
from tests.integration.reward_managers import CALL, TRANSCRIPT, manager
from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.errors import ConfigError, CreditInputError, TranscriptError
from verl_mtgrpo.integration.preflight import check_run
from verl_mtgrpo.integration.several import mean_over_nodes, own_entry
from verl_mtgrpo.integration.trainer.accounting import refuse_several_outputs, tree_metrics
from verl_mtgrpo.integration.trees import ask_for_trees, takes_leaves
from verl_mtgrpo.rewards import Turn

pytestmark = [pytest.mark.compose, pytest.mark.network]

TREES = ("mt_grpo_tree", "arpo", "tree_grpo", "at2po")
LOOP = "actor_rollout_ref.rollout.agent.default_agent_loop"


def config(*overrides: str, preset: str = "arpo"):
    return composed("actor_rollout_ref.rollout.n=8", *overrides, preset=preset)


# ---- rows that ask for trees


def prompts(**columns):
    rows = {"uid": np.array(["a", "b", "c"], dtype=object), **columns}
    batch = tu.get_tensordict(rows)
    tu.assign_non_tensor_data(batch, "global_steps", 3)
    return batch


def asked(batch) -> list[tuple]:
    """What verl's worker reads of each row: sessions, and what the loop gets."""
    columns = dict(batch.items())

    def of(name, row):
        column = columns.get(name)
        assert column is None or isinstance(column, NonTensorStack), "else all rows would have the first one's"
        return None if column is None else column[row].data

    return [(of("__rollout_n__", row), of("mtgrpo_leaves", row)) for row in range(len(batch))]


def test_training_prompts_ask_for_one_session_with_n_leaves():
    batch = prompts()
    ask_for_trees(batch, config())
    assert asked(batch) == [(1, 8)] * 3
    again = batch.chunk(2)  # as for two workers
    assert [row for part in again for row in asked(part)] == [(1, 8)] * 3
    assert asked(tu.index_select_tensor_dict(batch, [2, 0])) == [(1, 8)] * 2, "asked again"


def test_rows_of_another_loop_and_runs_without_growth_ask_for_nothing():
    names = np.array(["mtgrpo_tool_agent", "mtgrpo_tree_agent", "mtgrpo_tool_agent"], dtype=object)
    batch = prompts(agent_name=names)
    ask_for_trees(batch, config())
    assert asked(batch) == [(8, 0), (1, 8), (8, 0)]
    batch = prompts(__rollout_n__=np.array([2, 4, 6], dtype=object))  # a column of the user's
    ask_for_trees(batch, config())
    assert asked(batch) == [(1, 2), (1, 4), (1, 6)]
    for off in (["trainer.turn.branch.grow=none"], [f"{LOOP}=mtgrpo_tool_agent"]):
        batch = prompts()
        ask_for_trees(batch, config(*off))
        assert "mtgrpo_leaves" not in batch and "__rollout_n__" not in batch


# ---- what does not fit together


@pytest.mark.parametrize("preset", TREES)
def test_the_presets_of_trees_fit_together(preset):
    run = config(preset=preset)
    check_run(run)
    assert run.actor_rollout_ref.rollout.agent.default_agent_loop == "mtgrpo_tree_agent"
    assert run.trainer.turn.branch.grow != "none"
    assert takes_leaves(run.algorithm.adv_estimator)


@pytest.mark.parametrize(
    ("preset", "overrides", "said"),
    [
        ("arpo", [f"{LOOP}=mtgrpo_tool_agent"], r"branch.grow=arpo, but .*=mtgrpo_tool_agent grows no trees"),
        (
            "turn_rloo",
            [f"{LOOP}=mtgrpo_tree_agent", "trainer.turn.branch.grow=arpo"],
            r"estimator=turn_rloo takes each row for a rollout of its own.*names node_path \(.*arpo.*\)",
        ),
        (
            "grpo_mr",
            [f"{LOOP}=mtgrpo_tree_agent", "trainer.turn.branch.grow=random"],
            r"adv_estimator=grpo takes each row for a rollout",
        ),
        ("arpo", ["actor_rollout_ref.rollout.agent.agent_loop_manager_class=null"], "manager of the rollout workers"),
        ("arpo", ["actor_rollout_ref.rollout.calculate_log_probs=False"], "measures the log-probs"),
        ("arpo", [f"{LOOP}=mtgrpo_raw_agent"], "grows no trees; set it to mtgrpo_raw_tree_agent, or set"),
        ("arpo", [f"{LOOP}=mtgrpo_env_agent"], "no trees; set trainer.turn.branch.grow=none: the two do not go"),
        ("arpo", ["trainer.turn.branch.initial=9"], "initial=9 is more than"),
        ("mt_grpo_tree", ["trainer.turn.branch.width=5", "trainer.turn.branch.turns=2"], r"5\^2 = 25 leaves"),
        ("arpo", ["trainer.turn.branch.widt=3"], r"unknown keys \['widt'\].*did you mean width"),
        ("arpo", ["trainer.turn.branch.grow=entropy"], "grow is 'entropy', expected one of"),
        ("arpo", ["distillation.enabled=True"], "teacher"),
        ("arpo", ["trainer.v1.trainer_mode=sync"], "adv_estimator=arpo needs .*node_path"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(preset, overrides, said):
    overrides = [f"+{one}" if "widt" in one else one for one in overrides]
    with pytest.raises(ConfigError, match=said):
        check_run(config(*overrides, preset=preset))


def test_the_tree_loop_without_growth_trains_with_any_estimator():
    check_run(config(f"{LOOP}=mtgrpo_tree_agent", preset="turn_rloo"))
    check_run(config("trainer.turn.branch.grow=none"))


def test_several_outputs_are_for_estimators_that_know_them():
    keys = ["a_0_0", "a_0_1", "b_0_0"]
    for estimator in (name for name in ESTIMATORS if takes_leaves(name)):
        refuse_several_outputs(keys, estimator)
    with pytest.raises(
        CreditInputError, match=r"1 of 2 rollouts came as several .*an estimator that takes several \(.*arpo"
    ):
        refuse_several_outputs(keys, "turn_rloo")


# ---- scores of several outputs

OTHER = replace(TRANSCRIPT, turns=(TRANSCRIPT.turns[0], Turn("<answer>Rome</answer>", (4, 6))))


def score(manager, *fields) -> dict:
    count = len(fields)
    rows = DataProto.from_dict(
        tensors={"responses": torch.zeros(count, 6)},
        non_tensors={
            "uid": np.array(["u-1"] * count, dtype=object),
            "reward_model": np.array([{"ground_truth": {"target": ["Oslo"]}}] * count, dtype=object),
            "tool_extra_fields": np.array(fields, dtype=object),
            "data_source": np.array(["toy"] * count, dtype=object),
            "extra_info": np.array([{"id": "7"}] * count, dtype=object),
        },
    )
    return asyncio.run(manager.run_single(rows))


def test_each_output_has_an_entry_of_its_own():
    result = score(
        manager(),
        {"transcript": TRANSCRIPT, "node_path": "0/0.0"},
        {"transcript": replace(TRANSCRIPT, turns=(), end_reason="failed"), "failure": "OSError: gone", "node_path": ""},
        {"transcript": OTHER, "node_path": "0/0.1"},
    )
    first, lost, last = (own_entry(result["reward_extra_info"], number) for number in range(3))
    assert json.loads(first["turn_rewards"]) == pytest.approx([0.7, 1.7])
    assert json.loads(last["turn_rewards"]) == pytest.approx([0.7, 0.2])
    assert (first["outcome/em"], last["outcome/em"]) == (1.0, 0.0)
    assert (lost["outcome/dropped"], lost["turn_rewards"]) == (1.0, "[]")
    assert lost["dropped_reason"] == "this branch of its tree failed: OSError: gone"
    assert result["reward_score"] == pytest.approx(0.9), "verl's is that of the last output"
    assert own_entry(result["reward_extra_info"], None) == last
    single = score(manager(), {"transcript": OTHER})
    assert single["reward_extra_info"] == last, "one output is scored as ever"


def test_of_outputs_without_transcripts_the_last_one_counts():
    result = score(manager(), {}, {"transcript": TRANSCRIPT})
    assert "outputs" not in result["reward_extra_info"]
    assert result["reward_score"] == pytest.approx(2.4)
    with pytest.raises(TranscriptError):
        score(manager(), {"transcript": TRANSCRIPT}, {})


HINDSIGHT = """
from verl_mtgrpo.errors import DropRollout
from verl_mtgrpo.rewards import TurnRewards

def hindsight(transcript, ground_truth):
    right = "Oslo" in transcript.turns[-1].text
    if "lost" in transcript.turns[-1].text:
        raise DropRollout("lost")
    return TurnRewards(turns=(1.0 if right else 0.25, 0.0), outcome=2.0 * right)
"""


def test_a_shared_turn_has_one_reward_even_if_it_is_judged_by_what_came_later(tmp_path):
    (tmp_path / "own.py").write_text(HINDSIGHT)
    lost = replace(OTHER, turns=(OTHER.turns[0], Turn("lost", (4, 6))))
    alone = replace(OTHER, turns=(Turn(CALL, (0, 2)), OTHER.turns[1]))
    fields = [(TRANSCRIPT, "0/0.0"), (OTHER, "0/0.1"), (lost, "0/0.2"), (alone, "1/1.0")]
    result = score(
        manager(f"reward.turn.preset={tmp_path / 'own.py'}:hindsight"),
        *({"transcript": transcript, "node_path": path} for transcript, path in fields),
    )
    entries = [own_entry(result["reward_extra_info"], number) for number in range(4)]
    # (1 + .25) / 2 at the shared first turn: the dropped leaf has no say, and the other first turn keeps its own.
    assert [json.loads(one["turn_rewards"]) for one in entries] == [[0.625, 2.0], [0.625, 0.0], [0.0, 0.0], [0.25, 0.0]]
    assert [one.get("turn/1/reward") for one in entries] == [0.625, 0.625, None, 0.25]
    assert (entries[0]["outcome/dropped"], entries[2]["outcome/dropped"]) == (0.0, 1.0)


def test_rewards_that_agree_are_not_touched():
    third = 1.0 / 3.0
    paid = [[third, 0.1], [third, 0.2], [third, 0.3], [0.7]]
    assert mean_over_nodes(paid, ["0/0.0", "0/0.1", "0/0.2", ""]) == paid
    assert mean_over_nodes([], []) == []


def test_metrics_of_trees_are_averaged_where_they_are_defined():
    trees = [{"branch/per_prompt": 4.0, "branch/depth": 2.0}, {"branch/per_prompt": 3.0}]
    assert tree_metrics(trees) == {"branch/per_prompt": 3.5, "branch/depth": 2.0}
    assert tree_metrics([]) == {}
