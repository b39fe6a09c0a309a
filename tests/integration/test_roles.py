"""What a run with roles needs beyond the loop: parts, sessions, scores, books, the dump."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

from omegaconf import OmegaConf
from verl import DataProto
from verl.utils import tensordict_utils as tu

from tests.composed import composed
from tests.integration.reward_managers import manager
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.parts import check_parts
from verl_mtgrpo.integration.roles import outputs_per_prompt
from verl_mtgrpo.integration.trainer.accounting import Batch, count_rollouts, rollout_metrics
from verl_mtgrpo.integration.trainer.left_out import sort_rows
from verl_mtgrpo.integration.trees import ask_for_trees
from verl_mtgrpo.rewards import Transcript, Turn

pytestmark = pytest.mark.compose

LOOP = "actor_rollout_ref.rollout.agent.default_agent_loop=mtgrpo_roles_agent"
NAMES = "+trainer.turn.roles.names={rewriter:{pattern:'<q>(.*)</q>',penalty:0.25},answerer:{}}"
MHGPO = "algorithm.adv_estimator=mhgpo"
ON_PURPOSE = "trainer.turn.on_purpose=[algorithm.adv_estimator]"
ROLES = (LOOP, NAMES, MHGPO, ON_PURPOSE, "~algorithm.turn")


def config(*overrides: str):
    return composed("actor_rollout_ref.rollout.n=4", *ROLES, *overrides, preset="mt_grpo")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("algorithm.adv_estimator=mt_grpo",), r"would compare the rows of different roles.*mhgpo"),
        (("actor_rollout_ref.rollout.agent.default_agent_loop=mtgrpo_tool_agent",), "plays none"),
        (("actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",), "is not set"),
        (("trainer.turn.roles.order=alternate", "trainer.turn.roles.finish_role=nobody"), "names nobody"),
        (("distillation.enabled=True",), "asks its teacher for the last output of a session only, and with roles"),
    ],
)
def test_a_run_that_lacks_a_part_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_parts(config(*overrides))


def test_a_run_with_roles_and_no_tools_needs_no_tool():
    multi = "actor_rollout_ref.rollout.multi_turn"
    bare = config(f"{multi}.tool_config_path=null")
    check_parts(bare)
    with_tool = config(f"{multi}.tool_config_path=null", "+trainer.turn.roles.names.rewriter.tools=[search]")
    with pytest.raises(ConfigError, match="has no tool"):
        check_parts(with_tool)


def test_prompts_ask_for_one_session_with_all_branches():
    prompts = tu.get_tensordict({"index": torch.arange(3)}, {})
    ask_for_trees(prompts, config())
    assert [tu.get(prompts, name) for name in ("__rollout_n__", "mtgrpo_leaves")] == [[1] * 3, [4] * 3]


def score(made, *rows):
    """Return what the manager says of a session's rows: texts of turns and extra fields."""
    fields = []
    for number, (role, fed_by, text, more) in enumerate(rows):
        reason = more.pop("end_reason", "answered")
        transcript = Transcript((Turn(text, (0, 2)),) if text else (), reason)
        fields.append({"role": role, "output_id": f"0:{number}", "fed_by": fed_by, "transcript": transcript, **more})
    count = len(fields)
    objects = {
        "uid": ["u-1"] * count,
        "reward_model": [{"ground_truth": {"target": ["Oslo"]}}] * count,
        "tool_extra_fields": fields,
        "data_source": ["toy"] * count,
        "extra_info": [{"id": "7"}] * count,
    }
    arrays = {name: np.empty(count, dtype=object) for name in objects}
    for name, values in objects.items():
        arrays[name][:] = values
    data = DataProto.from_dict(tensors={"responses": torch.zeros(count, 6)}, non_tensors=arrays)
    info = asyncio.run(made.run_single(data))["reward_extra_info"]
    return info["outputs"] if count > 1 else [info]


RIGHT, WRONG = "<answer>Oslo</answer>", "<answer>Bergen</answer>"


def paid(infos):
    return [json.loads(info["turn_rewards"]) for info in infos]


def test_a_chain_pays_penalties_at_each_role_and_the_outcome_at_the_end():
    made = manager(*ROLES, "reward.turn.preset=search_r1_em")
    infos = score(
        made,
        ("rewriter", "", "<q>tower</q>", {}),
        ("rewriter", "", "tower", {}),
        ("answerer", "0:0", RIGHT, {}),
        ("answerer", "0:1", WRONG, {}),
    )
    assert paid(infos) == [[0.0], [-0.25], [1.0], [0.0]]
    assert [info.get("role/rewriter/format") for info in infos] == [1.0, 0.0, None, None]
    assert [info.get("outcome/reward") for info in infos] == [None, None, 1.0, 0.0], "a rewriter has no outcome"
    assert [info["answering"] for info in infos] == ["", "", "1", "1"]
    means = rollout_metrics(infos)
    assert (means["role/rewriter/reward"], means["role/answerer/reward"]) == (-0.125, 0.5)
    assert (means["outcome/reward"], means["outcome/em"]) == (0.5, 0.5)
    assert "tool/used" not in means, "no role has a tool, so no guard says that none is used"


def test_what_a_lost_answer_takes_along():
    made = manager(*ROLES, "reward.turn.preset=search_r1_em")
    infos = score(
        made,
        ("rewriter", "", "<q>tower</q>", {}),
        ("rewriter", "", "<q>tower</q>", {}),
        ("answerer", "0:0", RIGHT, {}),
        ("answerer", "0:1", "", {"end_reason": "failed", "failure": "RuntimeError: ill"}),
    )
    assert [info["outcome/dropped"] for info in infos] == [0.0, 1.0, 0.0, 1.0]
    assert "no output that read it" in infos[1]["dropped_reason"] and "ill" in infos[3]["dropped_reason"]
    keys = [f"u_0_{number}" for number in range(4)]
    rows = sort_rows(keys, infos, need_company=True, leaves=True)
    counts = count_rollouts(Batch(keys, asked=8, leaves=True), rows, 0, 0)
    assert {name: counts[f"rollouts_total/{name}"] for name in ("asked", "trained", "dropped", "failed")} == {
        **{"asked": 8, "trained": 2, "dropped": 2, "failed": 4},
    }


@pytest.mark.parametrize(("unfinished", "expected"), [("score", 1.0), ("zero", 0.0), ("mask", None)])
def test_every_side_of_a_conversation_earns_its_outcome(unfinished, expected):
    alternate = ("trainer.turn.roles.order=alternate", "trainer.turn.roles.finish=DONE")
    names = "+trainer.turn.roles.names={meta:{},reasoner:{}}"
    made = manager(
        *(LOOP, names, MHGPO, ON_PURPOSE, "~algorithm.turn", *alternate, "reward.turn.preset=search_r1_em"),
        f"trainer.turn.roles.unfinished={unfinished}",
    )
    done, cut = {"conversation": "0:0", "finished": "1"}, {"conversation": "0:1", "finished": "0"}
    rows = [
        ("meta", "", "plan DONE", dict(done)),
        ("meta", "", "plan", dict(cut)),
        ("reasoner", "", WRONG, dict(done)),
        ("reasoner", "", RIGHT, dict(cut)),
    ]
    infos = score(made, *rows)
    assert [sum(one) for one in paid(infos)] == [0.0, expected or 0.0, 0.0, expected or 0.0]
    assert [info["outcome/dropped"] for info in infos] == [0.0, float(expected is None)] * 2


def test_a_roles_own_turns_earn_what_its_own_function_says(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from verl_mtgrpo.rewards import TurnRewards\n"
        "def short(transcript, truth):\n"
        "    turns = tuple(float(len(turn.text) < 5) for turn in transcript.turns)\n"
        "    return TurnRewards(turns, outcome=9.0, components={'outcome/short': sum(turns)})\n"
    )
    own = f"+trainer.turn.roles.names.rewriter.reward={file}:short"
    made = manager(*ROLES, own, "reward.turn.preset=search_r1_em")
    infos = score(made, ("rewriter", "", "<q>tower</q>", {}), ("answerer", "0:0", RIGHT, {}))
    assert paid(infos) == [[0.0], [1.0]], "its outcome is not used"
    infos = score(made, ("rewriter", "", "abc", {}), ("answerer", "0:0", RIGHT, {}))
    assert paid(infos) == [[0.75], [1.0]], "1 for a short text, minus the penalty for its form"
    assert infos[0]["outcome/short"] == 1.0


def test_rows_per_prompt():
    assert outputs_per_prompt(config()) == 8
    assert outputs_per_prompt(composed("actor_rollout_ref.rollout.n=4", preset="mt_grpo")) == 4
    alternate = config("trainer.turn.roles.order=alternate")
    assert outputs_per_prompt(alternate) == 8
    assert OmegaConf.select(alternate, "trainer.turn.roles.rounds") == 30
