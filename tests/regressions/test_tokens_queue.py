"""Issue 21, A4: a rollout without tokens in a real TransferQueue, next to one that searched and answered.

Right values: every column of the batch that the other row has (review-gpu.md 3: ``kv_batch_get`` left out
``rollout_log_probs`` and verl's ``calculate_debug_metrics`` ended the run with a KeyError).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("verl")

import transfer_queue as tq
from verl import DataProto
from verl.utils.debug.metrics import calculate_debug_metrics
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from tests.agent_loops import scored
from tests.regressions.tokens import CHAT, roll
from verl_mtgrpo.demo.policy import build_tokenizer
from verl_mtgrpo.integration.trainer.queue import padded

pytestmark = pytest.mark.compose

COLUMNS = ["prompts", "responses", "response_mask", "rollout_log_probs", "rm_scores"]


@pytest.mark.verl
def test_the_batch_keeps_its_columns(config: Any, queue: None) -> None:
    tokenizer = build_tokenizer(["Oslo is a town"], [])
    good = scored(roll(CHAT, config, tokenizer, [], ["Oslo is a town"], "hermes"), [1.0])
    lost = scored(roll(CHAT, config, tokenizer, [], [[]], "hermes"), [])
    lost.extra_fields["reward_extra_info"]["outcome/dropped"] = 1.0
    rows = [good.as_dict(), lost.as_dict()]
    keys = ["q_0_0", "q_1_0"]
    for key, row in zip(keys, rows, strict=True):  # verl puts each rollout there alone
        fields = list_of_dict_to_tensordict([{name: row[name] for name in COLUMNS}])
        tq.kv_batch_put(keys=[key], partition_id="train", fields=fields, tags=[{"status": "success"}])
    data = tq.kv_batch_get(keys=keys, partition_id="train")
    tq.kv_clear(keys=keys, partition_id="train")
    assert set(COLUMNS) <= set(data.keys())
    columns = {name: padded(data[name]) for name in COLUMNS[1:]}
    assert columns["response_mask"].sum(dim=-1).tolist() == [len(good.response_mask), 0]
    columns["old_log_probs"] = columns["rollout_log_probs"]
    metrics = calculate_debug_metrics(DataProto.from_dict(columns))
    assert metrics["training/rollout_probs_diff_valid"] == 1
    assert torch.isfinite(torch.tensor(metrics["training/rollout_probs_diff_mean"]))
