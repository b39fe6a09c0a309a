"""Test issue 21, C, D, E and F, as an adversary tried them: sound set-ups refused, and broken ones accepted.

Each row adds overrides to a healthy command line: the former result of the checks, the right one, and its source.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

pytest.importorskip("verl")


from tests.composed import composed
from tests.doctor.setups import ROLLOUT, TURNS, fake_package
from tests.integration.reward_managers import TRANSCRIPT
from verl_mtgrpo.doctor.checks import CHECKS, checks_at_start, examine
from verl_mtgrpo.doctor.setup import Setup
from verl_mtgrpo.integration.reward_manager import metrics
from verl_mtgrpo.integration.trainer.accounting import rollout_metrics
from verl_mtgrpo.integration.verl_score import read_score
from verl_mtgrpo.rewards import TurnRewards
from verl_mtgrpo.rewards.presets import check_numbers, pay

pytestmark = pytest.mark.compose

ENGINE = f"{ROLLOUT}.name=vllm"
FILTER = "algorithm.filter_groups.enable=True"
OWN_MANAGER = ("reward.reward_manager.source=importlib", "reward.reward_manager.name=Mine")


def found(healthy, *change: str, checks=()):
    config = composed(*healthy.overrides, "trainer.n_gpus_per_node=1", *change, preset="mt_grpo")
    return examine(
        Setup(config, patience_s=2.0), [check for check in checks or checks_at_start() if check.name != "cpus"]
    )


@pytest.fixture(autouse=True)
def with_vllm(tmp_path, monkeypatch, surroundings):
    monkeypatch.syspath_prepend(str(fake_package(tmp_path, "vllm", "0.20.0")))
    monkeypatch.delenv("VERL_PLATFORM", raising=False)


SOUND = [
    # Without the node, reward.turn.pay has its default, turns, as mt_grpo needs (settings.py).
    ("reward.turn taken away", ("~reward.turn",)),
    # A class of the user's (verl: reward.reward_manager.source) reads nothing under reward.turn.
    ("own reward manager, other pay", (*OWN_MANAGER, "reward.turn.pay=outcome")),
    ("metric by name", (FILTER, "algorithm.filter_groups.metric=outcome/em")),
    ("metric by pattern", (FILTER, "algorithm.filter_groups.metric=turn_pattern")),
]


@pytest.mark.parametrize(("name", "change"), SOUND, ids=[name for name, _ in SOUND])
def test_sound_set_ups_are_not_refused(name, change, healthy):
    assert not [one for one in found(healthy, ENGINE, *change) if one.status == "fail"]


BROKEN = [
    # rollout.name is ??? in verl's rollout.yaml: "engine None on cuda: ok", and then MissingMandatoryValue in the run
    ("no engine", (), "engine", "fail", rf"{ROLLOUT}\.name is not set, .*set {ROLLOUT}\.name=vllm"),
    # verl's replay_buffer.py, _dapo_filtered_keys: RuntimeError "Finished groups are missing DAPO metric 'acc'"
    (
        "DAPO's metric",
        (ENGINE, FILTER, "algorithm.filter_groups.metric=acc"),
        "reward",
        "fail",
        r"metric=acc: the rewards have no number of this name.*set it to turn_pattern, reward or one of .*outcome/em",
    ),
    # None for a rollout without a call, on which verl's float() raises TypeError (same place)
    (
        "metric that only some rollouts have",
        (ENGINE, FILTER, "algorithm.filter_groups.metric=tool/success"),
        "reward",
        "warn",
        r"metric=tool/success: not every rollout has it",
    ),
    # verl sets tokenizer.chat_template to the text itself (workers/config/model.py)
    (
        "template given as a path",
        (ENGINE, "actor_rollout_ref.model.custom_chat_template=/my/template.jinja"),
        "tokenizer",
        "fail",
        r"is '/my/template.jinja', which is not a Jinja template: .*not a path; export CHAT_TEMPLATE",
    ),
]


@pytest.mark.parametrize(("name", "change", "check", "status", "says"), BROKEN, ids=[one[0] for one in BROKEN])
def test_broken_set_ups_are_told(name, change, check, status, says, healthy):
    told = [one for one in found(healthy, *change) if one.check == check and one.status in ("fail", "warn")]
    assert [one.status for one in told] == [status]
    assert re.search(says, str(told[0]))


def test_a_template_from_the_environment_is_the_way_that_the_message_names(healthy, monkeypatch):
    from verl_mtgrpo.demo.policy import CHAT_TEMPLATE

    monkeypatch.setenv("CHAT_TEMPLATE", CHAT_TEMPLATE)
    change = "actor_rollout_ref.model.custom_chat_template=${oc.env:CHAT_TEMPLATE}"
    assert not [one for one in found(healthy, ENGINE, change) if one.status == "fail"]


def test_a_tool_schema_that_verl_refuses_is_no_fault_of_ours(healthy):
    entry = "class_name: verl.tools.base_tool.BaseTool, config: {type: native}, tool_schema: {type: function}"
    file = healthy.file("schema.yaml", f"tools: [{{{entry}}}]")
    told = [one for one in found(healthy, ENGINE, f"{TURNS}.tool_config_path={file}") if one.check == "tools"]
    assert [one.status for one in told] == ["fail"]
    assert "verl rejects a tool_schema (function: Field required)" in told[0].message


@pytest.mark.parametrize("key", ["reward.turn.preset", f"{TURNS}.function_tool_path"])
def test_a_file_that_ends_the_program_is_a_failure_with_its_name(key, healthy):
    # like argparse at the top of a file
    file = healthy.file(f"exits_{key[-4:]}.py", "raise SystemExit(2)")
    told = found(healthy, ENGINE, f"{key}={file}{':f' if 'preset' in key else ''}")
    assert [one for one in told if one.status == "fail" and str(file) in one.message and "SystemExit" in one.message]


def test_what_verl_cannot_check_without_an_engine_is_skipped(healthy):
    # validate_config imports vllm for LoRA; another node may have it
    lora = ("trainer.nnodes=2", "actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.actor.use_dynamic_bsz=True")
    more = ("log_prob_use_dynamic_bsz=True", "load_format=safetensors", "tensor_model_parallel_size=1")
    told = found(healthy, ENGINE, *lora, *(f"{ROLLOUT}.{one}" for one in more), checks=CHECKS)
    assert [one.status for one in told if one.check == "verl"] == ["skip"]


def test_a_system_prompt_that_names_a_tag_explains_no_format(healthy):
    # "the prompts explain calls of the format search_r1" was said of any system prompt with <search> in it
    def name_a_tag(row):
        row["prompt"][:0] = [{"role": "system", "content": "Ignore HTML such as <search>."}]

    rows = healthy.questions("names_a_tag", name_a_tag)
    told = [one for one in found(healthy, ENGINE, f"data.train_files={rows}") if one.check == "prompts"]
    assert [one.status for one in told] == ["ok"]


@pytest.mark.parametrize(
    "number", [np.float32, np.int64, np.bool_, np.array, torch.tensor, bool], ids=lambda kind: kind.__name__
)
def test_numbers_of_numpy_and_torch_are_paid_and_measured(number):
    # each rollout ended in TypeError: Object of type float32 is not JSON serializable; of True no metric was made
    given = TurnRewards((number(1), number(0)), number(1), {"outcome/mine": number(1)})
    rewards = check_numbers(given, 2, "mine")
    assert json.dumps(pay(rewards, 2, "turns")) == "[1.0, 1.0]"
    measured = rollout_metrics([metrics(TRANSCRIPT, rewards, [1.0, 1.0])])
    assert (measured["outcome/mine"], measured["outcome/reward"]) == (1.0, 1.0)
    score, parts = read_score({"score": number(1), "acc": number(1), "pred": "x"})
    assert (score, parts["outcome/pred"]) == (1.0, "x")
    assert rollout_metrics([parts])["outcome/acc"] == 1.0
