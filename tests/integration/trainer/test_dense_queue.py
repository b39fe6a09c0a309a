"""Dense rewards in a real queue: rows of the probe, what verl's estimator is given, and what stays behind.

A small causal model stands where verl's workers stand: it reads the rows by their keys and writes the log-probs of all
tokens, as they do. What the probe says is compared with a loop that asks the model state by state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("verl")

import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from tests.composed import composed
from tests.queues import own_queue
from verl_mtgrpo.demo.policy import build_tokenizer
from verl_mtgrpo.errors import CreditInputError
from verl_mtgrpo.integration.dense import chosen_dense
from verl_mtgrpo.integration.trainer import dense, probe
from verl_mtgrpo.integration.trainer.queue import padded

pytestmark = [pytest.mark.compose, pytest.mark.verl]

WORDS = 12
PROMPTS = [[1, 2, 3], [1, 2, 3], [4, 5]]
RESPONSES = [[6, 7, 8, 9, 1, 2], [3, 3, 4], [5, 6, 7, 8, 9]]
MASKS = [[1, 1, 0, 0, 1, 1], [1, 1, 1], [1, 0, 1, 0, 1]]
GOLD = ["7 8", "7 8", "2"]
BEFORE = [11]


@pytest.fixture(scope="module")
def queue() -> Iterator[None]:
    with own_queue():
        yield


class Model:
    """Log-probs that depend on all tokens before, and on the temperature."""

    world_size = 2

    def __init__(self, seed: int):
        made = torch.Generator().manual_seed(seed)
        self.read, self.write = (torch.randn(WORDS, WORDS, generator=made) for _ in range(2))
        self.asked: list[int] = []

    def of(self, ids: torch.Tensor, temperature: float) -> torch.Tensor:
        """log π of the next token at each place; the last place has none."""
        places = torch.arange(1, len(ids) + 1)[:, None]
        logits = (self.read[ids].cumsum(0) / places) @ self.write / temperature
        following = torch.cat([ids[1:], ids[:1]])
        return logits.log_softmax(-1)[torch.arange(len(ids)), following]

    def compute_log_prob(self, meta: KVBatchMeta) -> None:
        self.asked.append(len(meta.keys))
        rows = tq.kv_batch_get(keys=meta.keys, partition_id=meta.partition_id, select_fields=["input_ids"])
        found = [self.of(row, meta.extra_info["temperature"]) for row in rows["input_ids"].unbind()]
        columns = {"log_probs": torch.nested.as_nested_tensor(found, layout=torch.jagged)}
        fields = TensorDict(columns, batch_size=len(found))
        tq.kv_batch_put(keys=meta.keys, partition_id=meta.partition_id, fields=fields)

    compute_ref_log_prob = compute_log_prob


class Tokenizer:
    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        assert text.startswith("<answer>")
        return [*BEFORE, *(int(word) for word in text.removeprefix("<answer>").split())]


def trainer(*overrides: str) -> Any:
    run = composed(*overrides, "actor_rollout_ref.rollout.temperature=0.7", preset="turn_rloo")
    OmegaConf.resolve(run)
    groups = {"actor_rollout_wg": Model(0), "ref_policy_wg": Model(1)}
    return SimpleNamespace(config=run, tokenizer=Tokenizer(), ref_in_actor=False, **groups)


def batch(name: str, **changes: Any) -> KVBatchMeta:
    rows = []
    for prompt, response, mask, gold in zip(PROMPTS, RESPONSES, MASKS, GOLD, strict=True):
        size = len(response)
        rows.append(
            {
                "prompts": torch.tensor(prompt),
                "responses": torch.tensor(response),
                "response_mask": torch.tensor(mask),
                "position_ids": torch.arange(len(prompt) + size),
                "rm_scores": torch.arange(size).float(),
                "old_log_probs": -torch.arange(size).float() / 10,
                "ref_log_prob": torch.full((size,), -0.5),
                "reward_model": {"ground_truth": {"target": [gold, "9"]}},
                **changes,
            }
        )
    keys, tags = [f"{name}_{row}_0" for row in range(len(rows))], [{"status": "success"} for _ in rows]
    tq.kv_batch_put(keys=keys, partition_id="train", fields=list_of_dict_to_tensordict(rows), tags=tags)
    return KVBatchMeta(partition_id="train", keys=keys, tags=tags)


def column(meta: KVBatchMeta, name: str) -> Any:
    found = tq.kv_batch_get(keys=meta.keys, partition_id="train", select_fields=[name])
    return found.get(name, None)


def likelihood(model: Model, row: int, first: int) -> float:
    """exp of the mean log-prob of the gold answer after the first tokens of a response, asked token by token."""
    gold = [int(word) for word in GOLD[row].split()]
    ids = [*PROMPTS[row], *RESPONSES[row][:first], *BEFORE]
    total = 0.0
    for token in gold:
        total += float(model.of(torch.tensor([*ids, token]), 0.7)[-2])
        ids.append(token)
    return float(torch.tensor(total / len(gold)).exp())


@pytest.mark.parametrize(("by", "seed"), [("policy", 0), ("reference", 1)])
def test_information_gain_is_that_of_a_loop_over_states(by, seed, queue):
    run = trainer("+trainer.turn.dense.information_gain.weight=2", f"trainer.turn.probe.by={by}")
    meta, metrics = batch(f"gain-{by}"), {}
    with dense.added(run, meta, chosen_dense(run.config), metrics):
        seen = padded(column(meta, "rm_scores"))
    model = Model(seed)
    gains = [
        [likelihood(model, 0, 4) - likelihood(model, 0, 0), 0.0],
        [0.0],
        [likelihood(model, 2, 2) - likelihood(model, 2, 0), likelihood(model, 2, 4) - likelihood(model, 2, 2), 0.0],
    ]
    told = [json.loads(getattr(one, "data", one)) for one in column(meta, "turn_dense")]
    for mine, expected in zip(told, gains, strict=True):
        assert mine["information_gain"] == pytest.approx([2 * gain for gain in expected], abs=1e-5)
    paid = padded(column(meta, "rm_scores"))
    difference = (seen - paid).tolist()
    assert difference[0] == pytest.approx([0, 2 * gains[0][0], 0, 0, 0, 0], abs=1e-5)
    assert difference[2] == pytest.approx([2 * gains[2][0], 0, 2 * gains[2][1], 0, 0, 0], abs=1e-5)
    assert metrics["turn/1/dense/information_gain"] == pytest.approx(2 * (gains[0][0] + gains[2][0]) / 3, abs=1e-5)
    assert metrics["timing_s/probe"] > 0
    # Two rollouts begin with the same prompt: five states, filled up for two ranks.
    asked = run.actor_rollout_wg.asked if by == "policy" else run.ref_policy_wg.asked
    assert asked == [6] and not tq.kv_list(probe.PARTITION).get(probe.PARTITION)


def test_what_the_estimator_gets_and_what_stays(queue):
    run = trainer("+trainer.turn.dense.implicit.beta=0.5")
    meta, metrics = batch("implicit"), {}
    before = padded(column(meta, "rm_scores"))
    with dense.added(run, meta, chosen_dense(run.config), metrics):
        seen = padded(column(meta, "rm_scores"))
        assert column(meta, "token_level_rewards") is None
    added = torch.zeros_like(before)
    added[0, 1], added[0, 5] = 0.5 * (0.5 + 0.4), 0.5 * (0.1 + 0.0)
    added[1, 2], added[2, 0] = 0.5 * (0.5 + 0.4 + 0.3), 0.5 * 0.5
    added[2, 2], added[2, 4] = 0.5 * 0.3, 0.5 * 0.1
    assert torch.allclose(seen, before + added, atol=1e-6)
    assert torch.equal(padded(column(meta, "rm_scores")), before), "what was paid is back"
    assert torch.equal(padded(column(meta, "token_level_rewards")), seen)
    assert column(meta, "rm_scores").is_nested
    assert metrics == {
        "turn/1/dense/implicit": pytest.approx((0.45 + 0.6 + 0.25) / 3),
        "turn/2/dense/implicit": pytest.approx((0.05 + 0.15) / 2),
        "turn/3/dense/implicit": pytest.approx(0.05),
    }


def test_with_a_kl_in_the_reward_verl_writes_the_total(queue):
    run = trainer("+trainer.turn.dense.implicit.beta=0.5", "algorithm.use_kl_in_reward=True")
    meta = batch("kl")
    with dense.added(run, meta, chosen_dense(run.config), {}):
        pass
    assert column(meta, "token_level_rewards") is None


def test_a_row_without_a_gold_answer_is_refused(queue):
    run = trainer("+trainer.turn.dense.information_gain.weight=1")
    meta = batch("none", reward_model={"ground_truth": None})
    wanted = pytest.raises(CreditInputError, match="information_gain measures the gold answer")
    with wanted, dense.added(run, meta, chosen_dense(run.config), {}):
        raise AssertionError("not reached")


def test_without_dense_rewards_the_queue_is_not_touched(queue):
    run = trainer()
    with dense.added(run, KVBatchMeta(partition_id="train", keys=["nobody_0_0"], tags=[{}]), (), metrics := {}):
        pass
    assert not metrics


@pytest.mark.parametrize(("before", "answer"), [("<answer> ", [" Dralol"]), ("<answer>", ["Dr", "alol"])])
def test_a_token_across_the_border_is_the_answers(before, answer):
    tokenizer = build_tokenizer(["So Dralol <answer> Dralol</answer>"], ["Dralol"])
    found = probe._asked({"ground_truth": "Dralol"}, before, tokenizer)
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in found] == [["<answer>"], answer]
