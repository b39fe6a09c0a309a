"""Waiting for rollouts: what is said, and when it ends; on a clock of the test's own."""

from __future__ import annotations

import inspect
import logging
import time

import pytest

pytest.importorskip("verl")

from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopManager, AgentLoopWorker
from verl.experimental.reward_loop import RewardLoopManager
from verl.trainer.ppo.v1 import agent_loop_tq, replay_buffer

from tests.composed import composed
from tests.verl_source import only_tested_version, source_hash
from verl_mtgrpo.errors import ConfigError, EmptyBatchError, StalledError
from verl_mtgrpo.integration.trainer.accounting import Batch, count_rollouts, refuse_failed_batch
from verl_mtgrpo.integration.trainer.buffer import TurnReplayBuffer, poll_interval
from verl_mtgrpo.integration.trainer.left_out import Sorted, sort_rows
from verl_mtgrpo.integration.trainer.waiting import StallGuard
from verl_mtgrpo.rewards import DROPPED

pytestmark = pytest.mark.compose


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_it_stops_when_no_rollout_ended_for_too_long(clock: Clock):
    guard = StallGuard(100.0, clock)
    guard.start(7)
    guard.look(3, {"a", "b"})
    clock.now = 99.0
    guard.look(3, {"a", "b"})
    clock.now = 101.0
    with pytest.raises(
        StalledError, match=r"step 7: no rollout finished for 101 s; 2 questions are not finished, 3 roll"
    ):
        guard.look(3, {"a", "b"})


@pytest.mark.parametrize("progress", [(4, {"a", "b"}), (3, {"b"})], ids=["a rollout ended", "a question was finished"])
def test_any_progress_begins_the_time_anew(clock: Clock, progress: tuple[int, set[str]]):
    guard = StallGuard(100.0, clock)
    guard.look(3, {"a", "b"})
    clock.now = 90.0
    guard.look(*progress)
    clock.now = 180.0
    guard.look(*progress)
    clock.now = 190.0
    with pytest.raises(StalledError, match="for 100 s"):
        guard.look(*progress)


def test_a_new_step_begins_the_time_anew(clock: Clock):
    guard = StallGuard(100.0, clock)
    guard.look(0, {"a"})
    clock.now = 500.0
    guard.start(8)
    guard.look(0, {"a"})
    guard.look(0, {"a"})


def test_it_says_once_a_minute_what_it_waits_for(clock: Clock, caplog: pytest.LogCaptureFixture):
    guard = StallGuard(None, clock)
    with caplog.at_level(logging.WARNING):
        for clock.now in range(0, 200):
            guard.look(5, {"a"})
    assert [record.message.partition(":")[2] for record in caplog.records] == [
        f" no rollout finished for {seconds} s; 1 questions are not finished, 5 rollouts are done"
        for seconds in (60, 120, 180)
    ]


@pytest.mark.parametrize("wrong", [0, -1])
def test_a_time_that_is_none_is_refused(wrong: float):
    with pytest.raises(ConfigError, match=f"stall_timeout_s={wrong}, expected a number of seconds above 0, or null"):
        StallGuard(wrong)


def test_every_rollout_is_counted_once():
    # Three questions of four rollouts each. Of the first three came back, one of them left out by its reward; of the
    # second two; of the third one, which has nobody to be compared with. verl took another question out before.
    keys = ["a_0_0", "a_1_0", "a_3_0", "b_1_0", "b_2_0", "c_2_0"]
    rows = sort_rows(keys, [{DROPPED: float(key == "a_1_0")} for key in keys], need_company=True)
    assert rows == Sorted(kept=[0, 2, 3, 4], dropped=[1], alone=[5])
    assert count_rollouts(Batch(keys, asked=12), rows, filtered=4, again=4) == {
        "rollouts_total/asked": 16.0,
        "rollouts_total/trained": 4.0,
        "rollouts_total/dropped": 1.0,
        "rollouts_total/alone": 1.0,
        "rollouts_total/failed": 6.0,
        "rollouts_total/filtered": 4.0,
        "rollouts_total/short": 0.0,
        "rollouts_total/repeated": 4.0,
    }


def test_every_leaf_of_a_tree_is_counted_once():
    # Three questions of four leaves each. One tree is whole and lost a leaf to its reward, one grew to three leaves,
    # the third failed.
    keys = ["a_0_0", "a_0_1", "a_0_2", "a_0_3", "b_0_0", "b_0_1", "b_0_2"]
    infos = [{DROPPED: float(key == "a_0_1")} for key in keys]
    rows = sort_rows(keys, infos, need_company=True, leaves=True)
    assert rows == Sorted(kept=[0, 2, 3, 4, 5, 6], dropped=[1], alone=[])
    batch = Batch(keys, asked=12, short=1, leaves=True)
    counts = count_rollouts(batch, rows, filtered=4, again=0)
    assert {name.partition("/")[2]: count for name, count in counts.items()} == {
        **{"asked": 16.0, "trained": 6.0, "dropped": 1.0, "alone": 0.0, "failed": 4.0, "filtered": 4.0},
        **{"short": 1.0, "repeated": 0.0},
    }
    # A tree of which one leaf is left has nothing to compare it with.
    infos = [{DROPPED: float(not key.endswith("3"))} for key in keys[:4]]
    assert sort_rows(keys[:4], infos, need_company=True, leaves=True) == Sorted([], [0, 1, 2], [3])
    # Without trees the same rows are two rollouts, and one dropped row takes its rollout with it.
    assert sort_rows(keys, [{DROPPED: float(key == "a_0_1")} for key in keys], need_company=False).dropped == [
        0,
        1,
        2,
        3,
    ]


def test_the_sums_of_several_batches_of_a_step_are_what_verl_logs():
    from verl.trainer.ppo.v1.utils import MetricsAggregator

    aggregator = MetricsAggregator()
    for failed in (0, 1):
        keys = [f"a_{n}_0" for n in range(4 - failed)]
        kept = sort_rows(keys, [{} for _ in keys], need_company=True)
        counts = count_rollouts(Batch(keys, asked=4), kept, filtered=0, again=0)
        aggregator.add_step_metrics(counts, sample_count=len(keys))
    logged = aggregator.get_aggregated_metrics()
    assert (logged["rollouts_total/asked"], logged["rollouts_total/trained"]) == (8.0, 7.0)
    assert logged["rollouts_total/failed"] == 1.0


def test_a_batch_of_which_nothing_came_back_is_named():
    said = "Sync replay buffer selected terminal groups with no materializable trajectories. Enable trainer.v1..."
    assert "no materializable trajectories" in inspect.getsource(replay_buffer.ReplayBuffer.sample), (
        "verl still says so"
    )
    with pytest.raises(EmptyBatchError, match="step 3: all rollouts of the batch failed"):
        refuse_failed_batch(RuntimeError(said), 3)
    refuse_failed_batch(RuntimeError("something else"), 3)


@pytest.mark.parametrize(
    ("keys", "least", "expected"),
    [
        (136, 0.2, 0.2),  # the demo
        (2000, 0.2, 0.2),
        (8704, 0.2, 0.8704),  # 512 questions of 16 rollouts: a look takes 57 ms (review-gpu.md 22), 7 % of the time
        (60_000, 0.2, 2.0),  # verl's own interval is enough for anyone
        (60_000, 5.0, 5.0),  # who asks for more gets it
        (0, 0.01, 0.01),
    ],
)
def test_a_large_batch_is_looked_at_less_often(keys: int, least: float, expected: float):
    assert poll_interval(keys, least) == pytest.approx(expected)


def test_the_buffer_counts_the_keys_at_each_look():
    buffer = TurnReplayBuffer(
        trainer_mode="sync",
        trainer_config=OmegaConf.create({}),
        max_off_policy_threshold=1,
        max_off_policy_strategy="drop",
        sampler_kwargs=OmegaConf.create({}),
        poll_interval=0.01,
        estimator="mt_grpo",
        rollouts_per_prompt=8,
    )
    intervals = []
    for rollouts in (0, 1000, 0):
        buffer.partitions["train"] = {f"q{n // 8}_{n % 8}_0": {} for n in range(rollouts)}
        buffer.prompt_global_steps["train"] = {f"q{n}": 1 for n in range(rollouts // 8)}
        buffer._wait_for_next_poll("train", time.time())
        intervals.append(buffer.poll_interval)
    assert intervals == pytest.approx([0.01, 0.1125, 0.01]), "1,000 rollouts of 125 questions are 1,125 keys"


RELIED_ON = {
    # names of the workers, and what a worker is made with
    "AgentLoopManager._init_agent_loop_workers": (AgentLoopManager._init_agent_loop_workers, "7c577f83ba5d9f44"),
    # one reward worker of a list, taken at random, of which compute_score.remote is awaited
    "AgentLoopWorker._compute_score": (AgentLoopWorker._compute_score, "cf4b57719ad3c1b2"),
    # names of the reward workers, and what one is made with
    "RewardLoopManager._init_reward_loop_workers": (RewardLoopManager._init_reward_loop_workers, "d502171166a15f3d"),
    # rewritten: chunks to workers, which do not wait for the rollouts
    "AgentLoopManagerTQ.generate_sequences": (agent_loop_tq.AgentLoopManagerTQ.generate_sequences, "de5ab7fe338523ca"),
    # every round of waiting comes by here
    "ReplayBuffer._wait_for_next_poll": (replay_buffer.ReplayBuffer._wait_for_next_poll, "10088bf03da69383"),
    # every question that is taken out of the update comes by here
    "ReplayBuffer._clear_groups": (replay_buffer.ReplayBuffer._clear_groups, "46adae90d465f15a"),
}


@only_tested_version
@pytest.mark.parametrize("name", RELIED_ON)
def test_what_the_manager_and_the_buffer_rely_on_is_as_it_was_when_they_were_written(name):
    function, expected = RELIED_ON[name]
    assert source_hash(function) == expected, f"verl's {name} has changed: read it, then update rollout/workers.py"


@pytest.mark.parametrize("preset", ["mt_grpo", "mt_ppo", "grpo_or"])
def test_the_presets_name_the_manager_and_when_to_stop(preset):
    run = composed(preset=preset)
    manager = run.actor_rollout_ref.rollout.agent.agent_loop_manager_class
    assert manager == "verl_mtgrpo.integration.rollout.workers.TurnAgentLoopManager"
    assert run.trainer.v1.sampler.sampler_kwargs.stall_timeout_s == 1800
