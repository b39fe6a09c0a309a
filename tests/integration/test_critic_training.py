"""Train methods with a critic in verl's real trainer and in ours, on the CPU."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch

pytest.importorskip("verl")

from tests import oracles
from tests.integration.runs import QUESTIONS, ROLLOUTS, run
from tests.training import REPOSITORY, TrainingRun

pytestmark = pytest.mark.imports_verl

SHORT = ["trainer.test_freq=-1"]


def assert_critic_learned(result: TrainingRun, steps: int, updates: int = 1, largest_difference: float = 1e-3) -> None:
    """Check what holds in every step with this number of updates.

    ``largest_difference`` is that of a token's probability between rollout and actor.
    """
    rollouts = QUESTIONS * ROLLOUTS / updates
    assert result.returncode == 0, result.tail()
    assert set(result.steps) == set(range(1, steps + 1))
    for step in result.steps.values():
        assert step["critic/vf_loss"] > 0
        assert 0 < step["critic/grad_norm"] < 1000
        assert step["critic/advantages/max"] > 0 > step["critic/advantages/min"]
        assert step["turn/1/rollouts"] == rollouts
        assert 0 < step["turn/2/rollouts"] < rollouts, "both habits occur"
        assert step["training/rollout_probs_diff_max"] < largest_difference


@pytest.mark.verl
@pytest.mark.slow  # tests/cli/test_end_to_end.py trains MT-PPO, too
def test_two_steps_of_mt_ppo(assets: Path, tmp_path: Path):
    result = run(assets, tmp_path, *SHORT, preset="mt_ppo")
    assert_critic_learned(result, steps=2)
    for step in result.steps.values():
        assert step["critic/advantages/mean"] == pytest.approx(0, abs=1e-4), "verl whitens over generated tokens"
        paid = step["turn/1/reward"] + step["turn/2/reward"] * step["turn/2/rollouts"] / step["turn/1/rollouts"]
        assert step["critic/score/mean"] == pytest.approx(paid, abs=1e-4)
        # The KL penalty is subtracted from the rewards that the estimator sees, so the reference policy has run.
        assert step["actor/reward_kl_penalty_coeff"] == pytest.approx(0.001)
        assert step["critic/rewards/mean"] == pytest.approx(step["critic/score/mean"], abs=0.05)
    # In the first step the policy is the reference policy; from then on they differ.
    assert abs(result.steps[1]["actor/reward_kl_penalty"]) < abs(result.steps[2]["actor/reward_kl_penalty"])


PROBE = """
import os
import torch
from verl_mtgrpo.credit import register_estimator, turn_gae

@register_estimator
def probe(token_level_rewards, response_mask, index, values, old_log_probs, entropies, transcript, turn_rewards,
          *, discount=1.0, lam=1.0, whiten=True):
    result = turn_gae(token_level_rewards, response_mask, index, values, discount=discount, lam=lam, whiten=whiten)
    seen = dict(rewards=token_level_rewards, mask=response_mask, values=values, old_log_probs=old_log_probs,
                entropies=entropies, transcript=list(transcript), turn_rewards=list(turn_rewards),
                advantages=result[0], returns=result[1], index=list(index))
    folder = os.environ["PROBE_FOLDER"]
    torch.save(seen, f"{folder}/{len(os.listdir(folder)) + 1}.pt")
    return result
"""


def assert_fields_belong_to_their_rows(seen: dict) -> None:
    mask, generated = seen["mask"], seen["mask"] == 1
    for name in ("values", "old_log_probs", "entropies"):
        assert seen[name].shape == mask.shape
        assert torch.isfinite(seen[name]).all()
        assert (seen[name][generated] != 0).all()
    assert (seen["old_log_probs"][generated] <= 0).all()
    assert (seen["entropies"][generated] > 0).all()
    for row, turns in enumerate(map(oracles.runs_of_ones, mask.tolist())):
        assert len(seen["transcript"][row]["turns"]) == len(turns)
        paid = [seen["rewards"][row, turn].sum().item() for turn in turns]
        assert paid == pytest.approx(json.loads(seen["turn_rewards"][row]), abs=1e-3)


def assert_credit_is_measured(step: dict, seen: dict) -> None:
    """Compare the step's metrics with the estimator's input and output, turn by turn in a loop."""
    paid, advantage, targets, errors = defaultdict(list), defaultdict(list), [], []
    for row, turns in enumerate(map(oracles.runs_of_ones, seen["mask"].tolist())):
        for k, turn in enumerate(turns, start=1):
            paid[k].append(seen["rewards"][row, turn].sum().item())
            advantage[k].append(seen["advantages"][row, turn].mean().item())
            targets.append(seen["returns"][row, turn][0].item())
            errors.append(targets[-1] - seen["values"][row, turn][0].item())
    for k in (1, 2):
        assert step[f"turn/{k}/rollouts"] == len(paid[k])
        assert step[f"turn/{k}/reward_total"] == pytest.approx(statistics.fmean(paid[k]), abs=1e-3)
        assert step[f"turn/{k}/advantage_mean"] == pytest.approx(statistics.fmean(advantage[k]), abs=1e-3)
        assert step[f"turn/{k}/advantage_std"] == pytest.approx(statistics.stdev(advantage[k]), abs=1e-3)
        assert 0 <= step[f"turn/{k}/zero_variance"] <= 1
    explained = 1 - statistics.variance(errors) / statistics.variance(targets)
    assert step["critic/turn_explained_variance"] == pytest.approx(explained, abs=1e-3)
    assert_equal_rewards_are_counted(step, seen)


def assert_equal_rewards_are_counted(step: dict, seen: dict) -> None:
    by_turn, last = defaultdict(lambda: defaultdict(set)), defaultdict(set)
    alive = defaultdict(lambda: defaultdict(int))
    for row, (uid, turns) in enumerate(
        zip(seen["index"], map(oracles.runs_of_ones, seen["mask"].tolist()), strict=True)
    ):
        paid = [seen["rewards"][row, turn].sum().item() for turn in turns]
        last[uid].add(paid[-1])
        for k, reward in enumerate(paid, start=1):
            by_turn[k][uid].add(reward)
            alive[k][uid] += 1
    assert len(last) == QUESTIONS
    for k, groups in by_turn.items():
        equal = [len(rewards) == 1 for uid, rewards in groups.items() if alive[k][uid] > 1]
        assert step[f"turn/{k}/zero_variance"] == pytest.approx(statistics.fmean(equal))
    assert step["outcome/zero_variance"] == pytest.approx(statistics.fmean(len(r) == 1 for r in last.values()))


def assert_metrics_are_those_of_the_transcripts(step: dict, seen: dict) -> None:
    """Compute every number of tools and outcomes again from the transcripts of the rollouts."""
    calls_of = [[call for turn in rollout["turns"] for call in turn["tool_calls"]] for rollout in seen["transcript"]]
    with_calls = [calls for calls in calls_of if calls]
    assert with_calls
    expected = {
        "tool/calls": statistics.fmean(map(len, calls_of)),
        "tool/used": statistics.fmean(any(call["ok"] for call in calls) for calls in calls_of),
        "tool/success": statistics.fmean(sum(call["ok"] for call in calls) / len(calls) for calls in with_calls),
        "tool/hit": statistics.fmean(
            any(call["seen"] and "Oslo" in call["result"] for call in calls) for calls in calls_of
        ),
        "tool/failures": statistics.fmean(sum(not call["ok"] for call in calls) for calls in calls_of),
    }
    kinds = Counter(call["error_kind"] for calls in calls_of for call in calls if not call["ok"])
    expected |= {f"tool/errors/{kind}": count / len(calls_of) for kind, count in kinds.items()}
    assert {name for name in step if name.startswith("tool/errors/")} == {n for n in expected if "/errors/" in n}
    slowest = [max(call["latency_s"] for call in calls) for calls in with_calls]
    percentiles = statistics.quantiles(slowest, n=100, method="inclusive")
    expected |= {"tool/latency_s/p50": percentiles[49], "tool/latency_s/p95": percentiles[94]}
    expected |= {"tool/latency_s/max": max(slowest)}
    for name, value in expected.items():
        assert step[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
    assert_outcomes_are_those_of_the_answers(step, seen)


def assert_outcomes_are_those_of_the_answers(step: dict, seen: dict) -> None:
    exact, contained, overlap, formats, counts = [], [], [], [], []
    for rollout, turn_rewards in zip(seen["transcript"], seen["turn_rewards"], strict=True):
        found = re.findall(r"<answer>(.*?)</answer>", rollout["turns"][-1]["text"], flags=re.DOTALL)
        answer = found[-1].strip().lower() if found else ""
        words = re.findall(r"\w+", answer)
        exact.append(answer == "oslo")
        contained.append("oslo" in answer)
        overlap.append(2 * ("oslo" in words) / (len(words) + 1))
        counts.append(len(rollout["turns"]))
        # The last turn is paid the outcome alone, even if it calls the tool.
        rest = json.loads(turn_rewards)[-1] - 0.5 * contained[-1] - 1.0 * exact[-1]
        formats.append(rest / 0.2)
    assert step["outcome/em"] == pytest.approx(statistics.fmean(exact))
    assert step["outcome/contains"] == pytest.approx(statistics.fmean(contained))
    assert step["outcome/f1"] == pytest.approx(statistics.fmean(overlap), abs=1e-6)
    assert step["outcome/format"] == pytest.approx(statistics.fmean(formats), abs=1e-6)
    assert step["turn/count"] == pytest.approx(statistics.fmean(counts))


@pytest.mark.verl
def test_two_steps_of_turn_gae_in_our_trainer_and_what_an_estimator_is_given(assets: Path, tmp_path: Path):
    (tmp_path / "probe.py").write_text(PROBE)
    (seen_folder := tmp_path / "seen").mkdir()
    env = {
        "VERL_USE_EXTERNAL_MODULES": "probe",
        "PROBE_FOLDER": str(seen_folder),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)]),
    }
    # Two passes over two mini-batches, with importance weights for differences from the rollout server's numbers: the
    # credit is computed once for the whole batch, before the first update.
    settings = [
        "algorithm.adv_estimator=probe",
        "algorithm.turn.lam=0.9",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={QUESTIONS // 2}",
        "actor_rollout_ref.actor.ppo_epochs=2",
        "algorithm.rollout_correction.rollout_is=token",
    ]
    result = run(assets, tmp_path, *SHORT, *settings, preset="turn_gae", env=env)
    assert_critic_learned(result, steps=2)
    for n, step in result.steps.items():
        seen = torch.load(seen_folder / f"{n}.pt", weights_only=False)
        assert_fields_belong_to_their_rows(seen)
        lists = (seen[name].double().tolist() for name in ("rewards", "mask", "values"))
        _, returns = oracles.turn_gae(*lists, lam=0.9)
        generated = seen["mask"] == 1
        # The targets of verl's critic are those computed by the loop.
        assert torch.allclose(seen["returns"], torch.tensor(returns), atol=1e-4)
        assert step["critic/returns/mean"] == pytest.approx(seen["returns"][generated].mean().item(), abs=1e-4)
        assert step["critic/values/mean"] == pytest.approx(seen["values"][generated].mean().item(), abs=1e-4)
        assert step["critic/advantages/max"] == pytest.approx(seen["advantages"][generated].max().item(), abs=1e-4)
        assert_credit_is_measured(step, seen)
        assert_metrics_are_those_of_the_transcripts(step, seen)


@pytest.mark.verl
def test_three_steps_of_bilevel_gae_with_turn_gspo_in_our_colocated_asynchronous_trainer(assets: Path, tmp_path: Path):
    settings = [
        "trainer.v1.trainer_mode=mtgrpo_colocate_async",
        "trainer.total_training_steps=3",
        "trainer.total_epochs=4",
        "actor_rollout_ref.actor.policy_loss.loss_mode=turn_gspo",
    ]
    result = run(assets, tmp_path, *SHORT, *settings, preset="bilevel_gae")
    # Rollouts may come from the policy of the step before. (If weights never arrived, this would be near 1.)
    assert_critic_learned(result, steps=3, largest_difference=0.2)
    for step in result.steps.values():
        assert step["actor/pg_clipfrac_lower"] == 0, "turn_gspo has no such bound"


@pytest.mark.verl
@pytest.mark.slow  # two slots on two cores: the longest of all runs
def test_three_steps_of_turn_gae_in_our_separate_asynchronous_trainer(assets: Path, tmp_path: Path):
    # Two logical slots: one trains, the other generates; weights go over TCP. Two updates between weight transfers.
    settings = [
        "trainer.v1.trainer_mode=mtgrpo_separate_async",
        "trainer.total_training_steps=3",
        "trainer.total_epochs=4",
        "trainer.v1.separate_async.parameter_sync_step=2",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={QUESTIONS // 2}",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=tcp_cpu",
        "ray_kwargs.ray_init.num_gpus=2",
    ]
    result = run(assets, tmp_path, *SHORT, *settings, preset="turn_gae")
    assert_critic_learned(result, steps=3, updates=2, largest_difference=0.2)


@pytest.mark.verl
def test_under_verls_own_trainer_turn_gae_stops_before_the_first_rollout(assets: Path, tmp_path: Path):
    result = run(assets, tmp_path, *SHORT, "trainer.v1.trainer_mode=sync", preset="turn_gae")
    assert result.returncode != 0
    assert "turn_gae needs values, which verl's trainers pass to no registered estimator" in result.log
    assert "trainer.v1.trainer_mode=mtgrpo_sync" in result.log
    assert not result.steps
