"""The documented metrics are those that are logged: every name of the one list is in the other."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("verl")
pytest.importorskip("openai")

import torch

from tests.judge_server import JudgeServer
from tests.trees import grown
from verl_mtgrpo.credit import segment_turns
from verl_mtgrpo.credit.discriminator import discriminator_quality
from verl_mtgrpo.credit.turn_td import critic_quality
from verl_mtgrpo.integration.reward_manager import metrics
from verl_mtgrpo.integration.settings import TurnCriticSettings
from verl_mtgrpo.integration.trainer.accounting import Batch, count_rollouts, rollout_metrics, share_failed
from verl_mtgrpo.integration.trainer.left_out import Sorted
from verl_mtgrpo.integration.trainer.replay import Replay
from verl_mtgrpo.integration.trainer.turn_critic import MEMORY_ERROR
from verl_mtgrpo.integration.verl_score import read_score
from verl_mtgrpo.rewards import ToolCall, Transcript, Turn, TurnRewards, load_preset
from verl_mtgrpo.rewards.judge import Judge
from verl_mtgrpo.rewards.judge_client import JudgeSettings
from verl_mtgrpo.rewards.measures import tool_trouble
from verl_mtgrpo.rewards.metric_names import COMPONENT_METRICS, ROLLOUT_METRICS, STEP_METRICS, own_metrics
from verl_mtgrpo.watch.dense import dense_metrics
from verl_mtgrpo.watch.diagnostics import measure_credit
from verl_mtgrpo.watch.forest import forest_metrics
from verl_mtgrpo.watch.guards import Guards, GuardSettings

pytestmark = [pytest.mark.network, pytest.mark.compose]

TRUTH = {"target": ["Oslo"]}


def transcript(format: str) -> Transcript:
    """Two turns, one call that worked at the second try, and one that failed."""
    calls = (
        ToolCall("search", "{}", result="Oslo", latency_s=0.1, faults=("timeout",), defused=True),
        ToolCall("search", "{}", ok=False, error_kind="busy"),
    )
    turns = (Turn("a search", (0, 1), calls), Turn("<answer>Oslo</answer>", (2, 3)))
    prompt = ({"role": "user", "content": "What is the capital of Norway?"},)
    return Transcript(turns, "answered", prompt=prompt, format=format)


def documented(names: Iterable[str]) -> set[str]:
    """The names as they are documented, with ``<k>``, ``<kind>`` and ``<name>``."""
    by_turn = {re.sub(r"^turn/\d+/", "turn/<k>/", name) for name in names}
    by_turn = {re.sub(r"^(turn/<k>/dense)/\w+$", r"\1/<name>", name) for name in by_turn}
    return {re.sub(r"^(tool/(?:errors|retried))/\w+$", r"\1/<kind>", name) for name in by_turn}


def of_a_rollout() -> dict[str, Any]:
    one = transcript("hermes")
    return {**metrics(one, TurnRewards((0.2, 0.0), 1.0), [0.2, 1.0]), **tool_trouble(one)}


def of_a_step() -> Iterator[str]:
    """Return what the sampler, the trainer and the guards log besides averages over rollouts."""
    yield from set(rollout_metrics([of_a_rollout()])) - set(of_a_rollout())
    batch = Batch(["a_0_0", "a_1_0"], 2)
    yield from share_failed(batch)
    yield from count_rollouts(batch, Sorted([0, 1], [], []), 0, 0)
    yield from grown(lambda node: ([-1.0], node.depth == 2), n=4, grow="arpo", probability=1.0).measures()
    rewards, mask = torch.tensor([[0.2, 0, 1.0], [0.7, 0, 0]]), torch.tensor([[1, 0, 1], [1, 0, 1]])
    values = torch.zeros_like(rewards)
    credit = measure_credit(rewards, rewards, mask, ["a", "a"], paid=rewards, values=values, returns=rewards)
    yield from credit
    shared = torch.tensor([[0.2, 0, 1.0], [0.2, 0, 0]])
    yield from forest_metrics(shared, mask, ["a", "a"], ["0/0.1", "0/0.2"])
    yield from dense_metrics(segment_turns(mask), {"implicit": torch.zeros(2, 2)}, probe_s=0.1)
    yield from critic_quality(rewards, mask, values, values + 0.1)
    replay = Replay(TurnCriticSettings(memory=1), mini_batch=1, seed=0)
    yield from replay.measures([1])
    yield MEMORY_ERROR
    yield from discriminator_quality(values, mask, ["expert", "own"])
    guards = Guards(GuardSettings(), turn_rewards=True, masked_advantages=True, keys={})
    for _ in range(5):  # one of them looks back
        fired, _ = guards.look({**credit, **rollout_metrics([of_a_rollout()])})
    yield from fired


def test_of_every_rollout():
    assert documented(of_a_rollout()) == set(ROLLOUT_METRICS)


def test_of_a_training_step():
    assert documented(of_a_step()) == set(STEP_METRICS)


def test_of_the_packaged_rewards():
    server = JudgeServer()
    server.scoring(0.5, outcome=1)
    try:
        judge = Judge(JudgeSettings(base_url=server.url, model="m", retries=0))
        asked = [asyncio.run(judge(transcript("search_r1"), TRUTH))]
    finally:
        server.stop()
    formats = {
        "paper_v1": "mtgrpo_xml",
        "paper_v2": "search_r1",
        "search_r1_em": "search_r1",
        "search_r1_format": "hermes",
        "tool_use": "hermes",
    }
    asked += [load_preset(name)(transcript(format), TRUTH) for name, format in formats.items()]
    played = replace(transcript("hermes"), info={"outcome": 1.0, "coins": 3.0, "place": "a cave"})
    asked.append(load_preset("env")(played, None))
    given = {name for rewards in asked for name in rewards.components} | set(read_score(1.0)[1])
    assert {"env/outcome", "env/coins"} < given, "texts are no metrics"
    given = {re.sub("^env/(outcome|coins)$", "env/<name>", name) for name in given}
    assert given == set(COMPONENT_METRICS)
    assert own_metrics(given) == [], "a reward function may give these"


def test_names_of_ours_are_kept_and_similar_ones_are_not():
    ours = [
        "turn/12/reward",
        "turn/1/sign_conflict",
        "tool/errors/mine",
        "tool/latency_s/p50",
        "guard/x",
        "uid",
        "score",
    ]
    assert own_metrics([*ours, "turn/x/reward", "tool/useful", "outcome/em", "my_uid"]) == ours
