"""Issue 21, E26, E27, E29, E31, E34 and a line of F38: what `mtgrpo doctor` and the start of a run say of a set-up.

Each row (:mod:`.start_names`, :mod:`.start_rewards`) is a command line that passed as healthy before, with its row of
the new user's table of mistakes or why it is sound, and what is right: the check that speaks, whether it refuses or
warns, and what it says. "ok" rows are sound set-ups that must not be refused.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.registry import get_reward_manager_cls
from verl.trainer.ppo import core_algos

from tests.composed import composed
from tests.doctor.setups import doctor
from tests.integration.reward_managers import TRANSCRIPT, config
from tests.regressions.start_names import NAMES
from tests.regressions.start_rewards import REWARDS
from tests.regressions.start_setups import ESTIMATOR
from verl_mtgrpo.config import group_names
from verl_mtgrpo.credit import ESTIMATORS, Estimator, mt_grpo, mt_grpo_v1
from verl_mtgrpo.demo.policy import build_tokenizer
from verl_mtgrpo.doctor.start_check import StartCheck
from verl_mtgrpo.errors import ConfigError, CreditInputError, EmptyBatchError, TranscriptError
from verl_mtgrpo.integration.intent import check_preset, packaged
from verl_mtgrpo.integration.reward_manager import metrics
from verl_mtgrpo.integration.settings import TrainerTurnSettings, trainer_turn_settings
from verl_mtgrpo.integration.trainer.accounting import refuse_failed_batch
from verl_mtgrpo.rewards import TurnRewards
from verl_mtgrpo.rewards.measures import tool_trouble, tool_use
from verl_mtgrpo.rewards.metric_names import own_metrics
from verl_mtgrpo.rewards.presets import load_preset

pytestmark = [pytest.mark.usefixtures("surroundings"), pytest.mark.compose]

CASES = [*NAMES, *REWARDS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.item}-{case.source}-{case.says}"[:90])
def test_what_the_doctor_and_the_start_say(case, healthy, configs, monkeypatch, capsys):
    for name, value in case.env.items():
        monkeypatch.setenv(name, value)
    made = case.make(healthy) if case.make else ()
    code, findings = doctor(capsys, healthy, *made, *case.change, preset=case.preset)
    told = [
        one
        for one in findings
        if one["check"] == case.check and re.search(case.says, f"{one['message']}; {one['fix']}")
    ]
    assert told and {one["status"] for one in told} == {case.status}, findings
    assert code == (case.status == "fail"), findings
    assert all(one["fix"] for one in findings if one["status"] in ("fail", "warn"))
    if case.status == "fail":
        with pytest.raises(SystemExit, match=case.says):
            StartCheck().on_job_start(config=configs[-1])
    else:
        assert {one["check"] for one in findings if one["status"] == "warn"} == (
            {case.check} if case.status == "warn" else set()
        )
        StartCheck().on_job_start(config=configs[-1])


def test_an_unknown_name_is_said_once(healthy, capsys):
    _, findings = doctor(capsys, healthy, f"{ESTIMATOR}=mtgrpo")
    assert [one["check"] for one in findings if one["status"] == "fail"] == ["estimator"]
    _, findings = doctor(capsys, healthy, f"{ESTIMATOR}=turn_rloo")
    assert [one["check"] for one in findings if one["status"] == "fail"] == ["estimator"]


def test_estimators_of_ones_own_are_known_and_no_leftovers(healthy, capsys, monkeypatch):
    """E26, E27: one registered with verl alone, and one of this package's registry, over two groups."""

    def mine(token_level_rewards, response_mask, index, *, missing_turn="zero"):
        return mt_grpo(token_level_rewards, response_mask, index, missing_turn=missing_turn)

    mine.__module__ = "my_recipe"
    record = Estimator(mine, "mine", "", compares_rollouts=True, divides_by_group_std=False)
    monkeypatch.setitem(ESTIMATORS, "mine", record)
    # As verl's register_adv_est does, so that it can be undone.
    monkeypatch.setitem(core_algos.ADV_ESTIMATOR_REGISTRY, "of_verls_registry", mine)
    for name in ("mine", "of_verls_registry"):
        for preset in ("mt_grpo", "mt_ppo"):
            turn = () if preset == "mt_ppo" else ("~algorithm.turn",)
            code, findings = doctor(capsys, healthy, f"{ESTIMATOR}={name}", *turn, preset=preset)
            assert (code, [one for one in findings if one["status"] != "ok"]) == (0, []), (name, preset)
    wrong = (f"{ESTIMATOR}=mine", "~algorithm.turn", "+algorithm.turn.missing_turn=skip")
    code, findings = doctor(capsys, healthy, *wrong)
    (warned,) = [one for one in findings if one["status"] != "ok"]
    assert (code, warned["status"], warned["check"]) == (0, "warn", "estimator"), (
        "an estimator of the user's only warns"
    )
    assert "missing_turn is 'skip'" in warned["message"]


@pytest.mark.parametrize("name", group_names())
def test_every_group_says_its_name_and_is_what_it_says(name):
    """E27: the packaged file read by itself says what Hydra composes of it."""
    group = packaged(name)
    run = composed(preset=name)
    assert run.trainer.turn.preset == group.trainer.turn.preset == name
    for key in ("algorithm.adv_estimator", "reward.turn.pay"):
        assert OmegaConf.select(run, key) == OmegaConf.select(group, key)
    check_preset(run)
    assert group.reward.reward_manager.name == "mtgrpo", "the defaults are merged in"


def test_nothing_is_compared_without_a_group():
    run = config()
    run.trainer.turn.preset = ""
    run.algorithm.adv_estimator = "grpo"
    check_preset(run)
    run.trainer.turn.preset = "a_group_of_my_own"
    check_preset(run)
    assert trainer_turn_settings(None) == TrainerTurnSettings()
    with pytest.raises(ConfigError, match="on_purpose is 'x', expected a list"):
        trainer_turn_settings({"turn": {"on_purpose": "x"}})


@pytest.mark.parametrize("function", [mt_grpo, mt_grpo_v1])
def test_the_estimators_themselves_refuse_a_weight_that_is_no_number(function):
    """E26: by hand, as every other knob; below 0 is for the caller to say."""
    batch = torch.tensor([[0.2, 1.0], [0.1, 0.0]]), torch.tensor([[1, 1], [1, 1]]), ["a", "a"]
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(CreditInputError, match=f"turn_coef is {wrong}, expected a finite number"):
            function(*batch, turn_coef=wrong)
    function(*batch, turn_coef=-1.0)


# ---- E29 and E34 in the reward manager


def new_manager(*overrides: str, compute_score: Any = None, kind: str = "mtgrpo", **more: Any) -> Any:
    tokenizer = build_tokenizer(["a b c <tool_response> Oslo Where is it"], [])
    return get_reward_manager_cls(kind)(config(*overrides), tokenizer=tokenizer, compute_score=compute_score, **more)


def manager(*overrides: str, **more: Any) -> Any:
    async def make() -> Any:
        return new_manager(*overrides, **more)

    return asyncio.run(make())


def row(made: Any, text: str = "a b Oslo c") -> DataProto:
    """A row as verl's agent loop gives it to a reward manager: prompt left padded, response right padded."""
    ids = [*made.tokenizer.encode(text, add_special_tokens=False), made.tokenizer.eos_token_id]
    response, padding = torch.tensor([[*ids, 0, 0, 0]]), 3
    attention = torch.tensor([[0, 1, 1, *[1] * len(ids), *[0] * padding]])
    return DataProto.from_dict(
        tensors={"prompts": torch.zeros(1, 3, dtype=torch.long), "responses": response, "attention_mask": attention},
        non_tensors={
            "uid": np.array(["u-1"], dtype=object),
            "reward_model": np.array([{"ground_truth": {"target": ["Oslo"]}}], dtype=object),
            "tool_extra_fields": np.array([{"transcript": TRANSCRIPT, "mine": 3}], dtype=object),
            "data_source": np.array(["toy"], dtype=object),
            "extra_info": np.array([{"id": "7"}], dtype=object),
            "__num_turns__": np.array([4], dtype=object),
        },
    )


@pytest.mark.parametrize("router", [None, "127.0.0.1:1"])
def test_compute_score_is_called_as_verls_own_manager_calls_it(router):
    """E34: the very arguments of verl's NaiveRewardManager with solution=response; with turns only the text differs."""
    calls: list[dict[str, Any]] = []

    def compute_score(**arguments: Any) -> float:
        calls.append(arguments)
        return 0.25

    outcome = "reward.turn.outcome=compute_score"
    more = {"reward_router_address": router, "reward_model_tokenizer": "its tokenizer"}

    async def score_it(*overrides: str, kind: str = "mtgrpo") -> None:
        made = new_manager(*overrides, kind=kind, compute_score=compute_score, **more)
        await made.run_single(row(made))

    asyncio.run(score_it(kind="naive"))
    asyncio.run(score_it(outcome, "reward.turn.solution=response"))
    asyncio.run(score_it(outcome))
    verls, response, turns = calls
    assert response == verls
    assert verls["solution_str"].split() == ["a", "b", "Oslo", "c"], "decoded whole, without its end token and padding"
    assert turns == verls | {"solution_str": "\n".join(turn.text for turn in TRANSCRIPT.turns)}


def test_parts_of_compute_score_replace_no_metric_of_ours():
    """E29: `dropped` among a score's parts took the rollout out of the update."""
    made = manager("reward.turn.outcome=compute_score", compute_score=lambda **_: {"score": 1, "dropped": 1, "acc": 0})
    info = asyncio.run(made.run_single(row(made)))["reward_extra_info"]
    assert (info["outcome/dropped"], info["outcome/compute_score/dropped"]) == (0.0, 1)
    assert (info["outcome/score"], info["outcome/acc"]) == (1, 0)


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (
            TurnRewards((0.0, 0.0), 1.0, {"tool/used": 1.0}),
            r"names a component tool/used, which .*such as tool/my_used",
        ),
        (TurnRewards((0.0, 0.0), 1.0, {"turn/2/reward": 1.0}), r"component turn/2/reward"),
        (TurnRewards((0.0, 0.0), 1.0, {"uid": 1.0}), r"component uid"),
        (TurnRewards((0.0, float("nan")), 1.0), r"turns=\(0.0, nan\) .*expected finite numbers"),
        (TurnRewards((0.0, 0.0), float("-inf")), r"outcome=-inf, expected finite numbers"),
        (TurnRewards((0.0,), 1.0), r"gave 1 turn rewards for 2 turns"),
        (TurnRewards((0.0, "much"), 1.0), r"expected a number for each turn"),
        (TurnRewards(None, 1.0), r"turns=None"),
        (0.5, r"returned float, expected verl_mtgrpo.rewards.TurnRewards"),
    ],
)
def test_the_manager_refuses_what_the_start_refuses(gives, message):
    made = manager()
    made.reward_function = lambda transcript, ground_truth: gives
    with pytest.raises(TranscriptError, match=message):
        asyncio.run(made.run_single(row(made)))


def test_compute_score_without_a_number():
    made = manager("reward.turn.outcome=compute_score", compute_score=lambda **_: float("nan"))
    with pytest.raises(TranscriptError, match=r"returned nan, expected a finite number"):
        asyncio.run(made.run_single(row(made)))


def test_the_list_of_kept_names_is_whole_and_leaves_the_presets_theirs():
    """E29: every name that the manager itself gives is kept, and none that a packaged preset gives."""
    made = manager()
    info = asyncio.run(made.run_single(row(made)))["reward_extra_info"]
    rewards = load_preset("paper_v1")(TRANSCRIPT, {"target": ["Oslo"]})
    assert isinstance(rewards, TurnRewards)
    ours = set(info) - set(rewards.components)
    ours |= {*tool_use(TRANSCRIPT), *tool_trouble(TRANSCRIPT), *metrics(TRANSCRIPT, TurnRewards((0, 0), 0), [0.0, 0.0])}
    ours |= {"turn/1/rollouts", "turn/2/advantage_mean", "guard/tool_use", "outcome/failed", "tool/errors/timeout"}
    assert set(own_metrics(ours)) == ours
    for preset in ("paper_v1", "paper_v2"):
        given = load_preset(preset)(TRANSCRIPT, {"target": ["Oslo"]})
        assert isinstance(given, TurnRewards)
        assert own_metrics(given.components) == []


def test_a_step_whose_rollouts_all_failed_names_verls_setting():
    """F38. The condition is verl's own text (0.9.1, replay_buffer.py, end of ``ReplayBuffer.sample``)."""
    verls = RuntimeError(
        "Sync replay buffer selected terminal groups with no materializable trajectories. Enable "
        "trainer.v1.sampler.sync_refill_failed_groups to replace failed groups."
    )
    with pytest.raises(
        EmptyBatchError, match=r"all rollouts .* failed.*sync_refill_failed_groups=True makes verl replace"
    ):
        refuse_failed_batch(verls, 3)
