from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import uvicorn

pytest.importorskip("verl")

from verl.experimental.reward_loop.reward_manager.registry import get_reward_manager_cls
from verl.experimental.reward_loop.router.naive_router import NaiveRouter
from verl.trainer.ppo.reward import get_custom_reward_fn

from tests.composed import composed
from tests.integration.reward_managers import TRANSCRIPT, config, manager, score
from tests.judge_server import JudgeServer
from verl_mtgrpo.deciders import REJECTED
from verl_mtgrpo.errors import ConfigError, CreditInputError, EmptyBatchError, TranscriptError
from verl_mtgrpo.integration.preflight import check_run
from verl_mtgrpo.integration.settings import turn_reward_settings
from verl_mtgrpo.integration.trainer.accounting import refuse_empty_batch, rollout_metrics
from verl_mtgrpo.integration.trainer.left_out import Sorted

pytestmark = [pytest.mark.network, pytest.mark.compose]

JUDGED = [
    "reward.custom_reward_function.path=pkg://verl_mtgrpo.rewards.judge",
    "reward.custom_reward_function.name=scored_by_judge",
]


def test_rewards_and_named_metrics():
    result = score(manager(), {"transcript": TRANSCRIPT})
    info = result["reward_extra_info"]
    assert result["reward_score"] == pytest.approx(0.7 + 1.7)
    assert json.loads(info["turn_rewards"]) == pytest.approx([0.7, 1.7])
    assert info["turn/1/reward"] == pytest.approx(0.7)
    assert info["turn/2/reward"] == pytest.approx(1.7)
    assert (info["turn/count"], info["tool/hit"], info["outcome/em"], info["uid"]) == (2.0, 1.0, 1.0, "u-1")
    assert (info["data_source"], info["question_id"]) == ("toy", "7"), "what mtgrpo eval sorts and pairs by"
    assert "transcript" not in info, "the agent loop has it, and puts it where it is read"


@pytest.mark.parametrize(("how", "paid"), [("outcome", [0.0, 1.7]), ("merged", [0.0, 2.4])])
def test_where_it_is_paid(how, paid):
    meant = "trainer.turn.on_purpose=[reward.turn.pay]"
    info = score(manager(f"reward.turn.pay={how}", meant), {"transcript": TRANSCRIPT})["reward_extra_info"]
    assert json.loads(info["turn_rewards"]) == pytest.approx(paid)
    assert info["tool/hit"] == 1.0  # measured, though not paid


@pytest.mark.parametrize(("how", "paid"), [("turns", [0.2, 1.7]), ("merged", [0.0, 1.9])])
def test_a_rejected_attempt_pays_its_penalty(how, paid):
    """Penalties are taken before it is decided where rewards are paid. They change no measure."""
    meant = "trainer.turn.on_purpose=[reward.turn.pay]"
    fields = {"transcript": TRANSCRIPT, REJECTED: {0: 0.5}}
    info = score(manager(f"reward.turn.pay={how}", meant), fields)["reward_extra_info"]
    assert json.loads(info["turn_rewards"]) == pytest.approx(paid)
    assert (info["outcome/em"], info["tool/hit"]) == (1.0, 1.0)


OWN = """
from verl_mtgrpo.errors import DropRollout
from verl_mtgrpo.rewards import TurnRewards

async def later(transcript, ground_truth):
    return TurnRewards(turns=(0.25, 0.0), outcome=0.5, components={"outcome/mine": 1.0})

def wrong(transcript, ground_truth):
    return 1.0

def unable(transcript, ground_truth):
    raise DropRollout("the judge is on holiday")

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert (data_source, extra_info["id"]) == ("toy", "7")
    assert "It is Oslo." not in solution_str, "a tool result"
    return {"score": 0.75 if "<answer>Oslo</answer>" in solution_str else 0.0, "acc": 1.0}
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def test_an_async_reward_function_of_ones_own(own):
    result = score(manager(f"reward.turn.preset='{own}:later'"), {"transcript": TRANSCRIPT})
    assert result["reward_score"] == pytest.approx(0.75)
    assert json.loads(result["reward_extra_info"]["turn_rewards"]) == [0.25, 0.5]
    assert result["reward_extra_info"]["outcome/mine"] == 1.0


def test_a_reward_function_that_returns_something_else(own):
    with pytest.raises(TranscriptError, match=r"own.py:wrong returned float, expected .*TurnRewards"):
        score(manager(f"reward.turn.preset='{own}:wrong'"), {"transcript": TRANSCRIPT})


def test_a_rollout_that_cannot_be_scored_is_dropped_and_counted(own, caplog):
    result = score(manager(f"reward.turn.preset='{own}:unable'"), {"transcript": TRANSCRIPT})
    info = result["reward_extra_info"]
    assert result["reward_score"] == 0.0
    assert (info["outcome/dropped"], json.loads(info["turn_rewards"])) == (1.0, [0.0, 0.0])
    assert not any(name.startswith("turn/") for name in info), "it is in no average"
    assert "left out of the update: the judge is on holiday" in caplog.text
    assert info["dropped_reason"] == "the judge is on holiday"
    kept = score(manager(), {"transcript": TRANSCRIPT})["reward_extra_info"]
    assert (kept["outcome/dropped"], kept["dropped_reason"]) == (0.0, "")


def test_group_filtering_never_takes_a_dropped_rollout_for_an_equal_one(own):
    filtering = ["algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=outcome/em"]
    scoring = manager(f"reward.turn.preset='{own}:unable'", *filtering)
    info = score(scoring, {"transcript": TRANSCRIPT})["reward_extra_info"]
    # verl demands the metric of every rollout, and filters groups whose values have a deviation of 0
    assert np.std([info["outcome/em"], 0.0]) != 0.0
    assert "outcome/em" not in rollout_metrics([info]), "it is in no average"


def test_verls_compute_score_as_the_outcome(own):
    settings = ["reward.turn.outcome=compute_score", f"reward.custom_reward_function.path={own}"]
    scoring = manager(*settings)
    scoring.compute_score = get_custom_reward_fn(config(*settings))
    info = score(scoring, {"transcript": TRANSCRIPT})["reward_extra_info"]
    assert json.loads(info["turn_rewards"]) == pytest.approx([0.7, 0.75])
    assert (info["outcome/score"], info["outcome/acc"], info["tool/hit"]) == (0.75, 1.0, 1.0)


@pytest.mark.parametrize("extra_fields", [{}, None])
def test_a_rollout_of_another_agent_loop_is_an_error(extra_fields):
    with pytest.raises(TranscriptError, match="default_agent_loop=mtgrpo_tool_agent"):
        score(manager(), extra_fields)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("actor_rollout_ref.rollout.n=1", r"rollout.n=1; set it to 2 or more"),
        ("actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent", "set it to mtgrpo_tool_agent"),
        ("+algorithm.turn.gama=1", r"unknown keys \['gama'\]"),
        ("+reward.turn.payment=all", r"unknown keys \['payment'\]"),
        ("reward.turn.outcome=preset reward.custom_reward_function.path=mine.py", "mine.py would not be used: .*=auto"),
        ("reward.turn.outcome=both", "reward.turn.outcome is 'both', expected one of"),
        ("reward.turn.preset=paper_v7", "reward.turn.preset is 'paper_v7', expected one of"),
        ("algorithm.rollout_correction.rollout_rs='seq_mean_k1,token_k2'", "removes single tokens from response_mask"),
        ("algorithm.adv_estimator=grpo", r"mt_grpo stands for algorithm.adv_estimator=mt_grpo, but .*=grpo"),
        ("algorithm.adv_estimator=turn_rloo", r"use the group that goes with it \(\+mtgrpo=turn_rloo\)"),
    ],
)
def test_settings_that_do_not_fit_stop_the_run_before_the_first_rollout(override, message):
    with pytest.raises(ConfigError, match=message):
        manager(*override.split(" "))


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (
            "grpo",
            r"grpo is one of verl's and does not read algorithm.turn .*'~algorithm.turn' removes those of a group",
        ),
        ("turn_rloo", r"of turn_rloo has unknown keys \['missing_turn', 'turn_coef'\]"),
    ],
)
def test_another_estimator_on_purpose_has_knobs_of_its_own(estimator, message):
    with pytest.raises(ConfigError, match=message):
        manager(f"algorithm.adv_estimator={estimator}", "trainer.turn.on_purpose=[algorithm.adv_estimator]")


def test_rejecting_whole_rollouts_or_in_bypass_mode_leaves_turns_alone():
    check_run(config("algorithm.rollout_correction.rollout_rs=seq_mean_k1"))
    correction = "algorithm.rollout_correction"
    check_run(config(f"{correction}.rollout_rs=token_k1", f"{correction}.bypass_mode=True"))


def test_a_model_without_chat_template_stops_the_run_before_the_first_rollout():
    with pytest.raises(ConfigError, match=r"no chat template, .*actor_rollout_ref.model.custom_chat_template"):
        manager(template=None)


def test_a_reward_model_that_would_bypass_the_manager_is_refused():
    enabled = "reward.reward_model.enable=True"
    with pytest.raises(ConfigError, match=r"never called; for a judge set reward.custom_reward_function.path=pkg://"):
        manager(enabled)
    with pytest.raises(ConfigError, match=r"never called without a judge; set reward.turn.preset=judge"):
        manager(enabled, *JUDGED)


@pytest.fixture
def router() -> Iterator[tuple[JudgeServer, str]]:
    """A judge behind verl's own reward-model router, and the router's address."""
    judge = JudgeServer()
    judge.scoring(1, outcome=1)
    well = judge.answer
    judge.answer = lambda body, n: 500 if n == 1 else well(body, n)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = NaiveRouter(worker_urls=[judge.url.removesuffix("/v1")]).app
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield judge, f"127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
    judge.stop()


def test_the_judge_behind_verls_reward_model_router(router):
    judge, address = router
    run = [
        "reward.reward_model.enable=True",
        "reward.reward_model.enable_resource_pool=True",
        "reward.reward_model.model_path=my/judge",
        *JUDGED,
    ]
    settings = [*run, "reward.turn.preset=judge"]
    assert callable(get_custom_reward_fn(config(*settings))), "verl itself can load what stands in its place"
    scoring = manager(*settings, reward_router_address=address)
    result = score(scoring, {"transcript": TRANSCRIPT})
    # turn 1: score 1 - 0.1 for a search; outcome 1, on the last turn
    assert json.loads(result["reward_extra_info"]["turn_rewards"]) == pytest.approx([0.9, 1.0])
    assert {body["model"] for body in judge.bodies} == {"my/judge"}
    assert len(judge.bodies) == 3, "two scores, and one request again that the router had failed"


def test_the_papers_judge_behind_verls_reward_model_router(router):
    judge, address = router
    judge.answer = lambda body, n: 500 if n == 1 else '{"scores": [0.3, 1.0]}'
    run = [
        "reward.reward_model.enable=True",
        "reward.reward_model.enable_resource_pool=True",
        "reward.reward_model.model_path=my/judge",
        *JUDGED,
    ]
    scoring = manager(*run, "reward.turn.preset=judge_paper", reward_router_address=address)
    result = score(scoring, {"transcript": TRANSCRIPT})
    assert json.loads(result["reward_extra_info"]["turn_rewards"]) == pytest.approx([0.3, 1.0]), (
        "the judge's own scores"
    )
    assert len(judge.bodies) == 2, "one request for all turns, sent again after the router had failed it"


def test_all_workers_of_a_run_show_the_judge_the_same_rules():
    """The mark is made from the run's config: one prefix for the cache of the engine, another in another run."""
    judge = JudgeServer()
    judge.scoring(1, outcome=1)
    asks = ["reward.turn.preset=judge", "+reward.turn.judge.model=m", f"+reward.turn.judge.base_url={judge.url}"]
    try:
        for run in (asks, asks, [*asks, "trainer.experiment_name=another"]):
            score(manager(*run), {"transcript": TRANSCRIPT})
    finally:
        judge.stop()
    rules = sorted(body["messages"][0]["content"] for body in judge.bodies)
    assert len(rules) == 6 and sorted(rules.count(text) for text in set(rules)) == [1, 1, 2, 2]


def test_colocated_reward_models_are_refused():
    with pytest.raises(ConfigError, match="enable_resource_pool=True"):
        get_reward_manager_cls("mtgrpo").assemble_rm_scores(None, [1.0])


def test_a_forgotten_search_path_does_not_silently_train_something_else():
    assert composed("+mtgrpo=mt_grpo").algorithm.adv_estimator == "mt_grpo"


def test_latency_has_percentiles():
    # 21 rollouts with 0 to 2 s in steps of a tenth, and one that called nothing: the 95th percentile is the 20th of 21
    infos = [{"tool/latency_s": n / 10} for n in range(21)] + [{"tool/latency_s": None}]
    metrics = rollout_metrics(infos)
    assert metrics["tool/latency_s"] == pytest.approx(1.0)
    assert metrics["tool/latency_s/p50"] == pytest.approx(1.0)
    assert metrics["tool/latency_s/p95"] == pytest.approx(1.9)
    assert metrics["tool/latency_s/max"] == pytest.approx(2.0)


def test_a_rollout_in_several_outputs_is_refused_by_estimators_that_would_take_them_for_rollouts():
    from verl_mtgrpo.integration.trainer.accounting import refuse_several_outputs

    whole = ["a_0_0", "a_1_0", "b_0_0", "b_1_0"]
    for estimator in ("mt_grpo", "turn_gae"):
        refuse_several_outputs(whole, estimator)
        with pytest.raises(CreditInputError, match=r"1 of 4 rollouts came as several outputs \(such as b_1: 3\)"):
            refuse_several_outputs([*whole, "b_1_1", "b_1_2"], estimator)
    refuse_several_outputs([*whole, "b_1_1"], "grpo")  # verl brings them together


def test_a_batch_of_which_nothing_is_left_stops_the_run_and_says_why():
    dropped = {"outcome/dropped": 1.0, "dropped_reason": "search is down"}
    refuse_empty_batch([], Sorted([], [], []), 3)
    refuse_empty_batch([dropped, {"outcome/dropped": 0.0}], Sorted([1], [0], []), 3)
    message = r"step 3: all 3 rollouts .* dropped.*: 2 x search is down; 1 x the judge is ill; fix that"
    with pytest.raises(EmptyBatchError, match=message):
        ill = {**dropped, "dropped_reason": "the judge is ill"}
        refuse_empty_batch([dropped, ill, dropped], Sorted([], [0, 1, 2], []), 3)
    message = r"step 3: of 2 rollouts .* 1 were dropped, and each of the others is the only one left .*: 1 x search is"
    with pytest.raises(EmptyBatchError, match=message):
        refuse_empty_batch([dropped, {"outcome/dropped": 0.0}], Sorted([], [0], [1]), 3)


def test_training_metrics_average_what_is_defined():
    infos = [
        {"turn/1/reward": 0.7, "turn/2/reward": 1.0, "tool/success": 1.0, "tool/errors/timeout": 3.0, "uid": "a"},
        {"turn/1/reward": 0.1, "tool/success": None, "uid": "b"},
    ]
    assert rollout_metrics(infos) == {
        "turn/1/reward": pytest.approx(0.4),
        "turn/2/reward": 1.0,
        "tool/success": 1.0,
        "tool/errors/timeout": 1.5,
        "turn/1/rollouts": 2.0,
        "turn/2/rollouts": 1.0,
    }
    assert rollout_metrics([]) == {}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), "preset"),
        (("reward.custom_reward_function.path=mine.py",), "compute_score"),
        (("reward.custom_reward_function.path=mine.py", "reward.turn.outcome=preset"), "preset"),
        (("reward.custom_reward_function.path=pkg://verl_mtgrpo.rewards.judge",), "preset"),
        (("reward.turn.outcome=compute_score",), "compute_score"),
    ],
)
def test_whose_outcome_it_is(overrides, expected):
    assert turn_reward_settings(config(*overrides).reward).outcome == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), "search_tool.yaml"),
        (("function_tool_path=mine.py",), ""),
        (("function_tool_path=mine.py", "tool_config_path=mine.yaml"), "mine.yaml"),
        (("tool_config_path=null",), ""),
    ],
)
def test_the_search_tool_is_there_unless_the_run_names_tools(overrides, expected):
    turns = "actor_rollout_ref.rollout.multi_turn"
    multi_turn = config(*(f"{turns}.{override}" for override in overrides)).actor_rollout_ref.rollout.multi_turn
    assert str(multi_turn.tool_config_path or "").rpartition("/")[2] == expected
