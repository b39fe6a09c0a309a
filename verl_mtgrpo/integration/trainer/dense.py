"""Add dense rewards to what a batch's turns are paid, for the time in which verl computes advantages.

verl reads rewards from the queue (``rm_scores``), so that is where the sum is put, and every estimator sees it, verl's
own too. Afterwards ``rm_scores`` is what the reward function paid again, and ``token_level_rewards``, verl's name of
the rewards after everything that is added to them, keeps the sum: verl's metrics, ours and the dump tell the two apart.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.utils.tensordict_utils import get_tensordict
from verl.workers.utils.padding import response_to_nested

from verl_mtgrpo.credit.dense import ANSWER, pay_last
from verl_mtgrpo.credit.turns import Turns, segment_turns
from verl_mtgrpo.errors import CreditInputError
from verl_mtgrpo.integration.advantage.fields import TOKEN_FIELDS, source_of
from verl_mtgrpo.integration.dense import Chosen
from verl_mtgrpo.integration.settings import trainer_turn_settings
from verl_mtgrpo.integration.trainer.probe import answer_log_probs
from verl_mtgrpo.integration.trainer.queue import PAID, TOTAL, padded, token_columns
from verl_mtgrpo.rewards import TURN_DENSE
from verl_mtgrpo.watch.dense import dense_metrics

if TYPE_CHECKING:
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer


@contextmanager
def added(ppo: PPOTrainer, batch: KVBatchMeta, chosen: Sequence[Chosen], metrics: dict[str, Any]) -> Generator[None]:
    """Add the dense rewards of a batch inside the context, and put their means per turn into the metrics.

    Args:
        ppo: verl's trainer, which computes what the dense rewards need.
        batch: A training batch, with the log-probs that verl computes for it.
        chosen: The dense rewards of the run; without any, nothing happens.
        metrics: Gets ``turn/<k>/dense/<name>``, and ``timing_s/probe`` if the gold answer is measured.
    """
    if not chosen:
        yield
        return
    names = {field for one in chosen for field in one.record.fields}
    columns = [TOKEN_FIELDS[name] for name in names if name in TOKEN_FIELDS]
    _, data = token_columns(batch, (), [PAID, "response_mask", *columns])
    fields: dict[str, Any] = {}
    for name in names & set(TOKEN_FIELDS):
        if TOKEN_FIELDS[name] not in data:
            raise CreditInputError(f"a dense reward needs {name}, which this batch lacks", fix=source_of(name))
        fields[name] = padded(data[TOKEN_FIELDS[name]])
    mask = padded(data["response_mask"])
    turns = segment_turns(mask)
    probe_s = None
    if ANSWER in names:
        started = time.perf_counter()
        fields[ANSWER] = answer_log_probs(ppo, batch, turns, trainer_turn_settings(ppo.config.trainer).probe)
        probe_s = time.perf_counter() - started
    parts = {one.record.name: one.compute(mask, fields) for one in chosen}
    metrics.update(dense_metrics(turns, parts, probe_s))
    paid, sum_BT = padded(data[PAID]), pay_last(turns, torch.stack([*parts.values()]).sum(dim=0))
    sizes = data["response_mask"]
    total = _like(paid + sum_BT, sizes)
    _put(batch, {PAID: total}, {TURN_DENSE: texts(turns, parts)})
    try:
        yield
    finally:
        back = {PAID: _like(paid, sizes)}
        if not ppo.config.algorithm.use_kl_in_reward:  # with it verl writes the total, the penalty included
            back[TOTAL] = total
        _put(batch, back)


def texts(turns: Turns, parts: Mapping[str, Tensor]) -> list[str]:
    """Return, for each rollout, what each dense reward added to each of its turns, as JSON."""
    rows = {name: reward_BK.tolist() for name, reward_BK in parts.items()}
    counts = turns.count_B.tolist()
    return [
        json.dumps({name: rows[name][row][:count] for name in rows}, allow_nan=False)
        for row, count in enumerate(counts)
    ]


def _like(tokens_BT: Tensor, sizes: Tensor) -> Tensor:
    """Return a column in the layout in which the queue has another one."""
    return response_to_nested(tokens_BT, sizes) if sizes.is_nested else tokens_BT


def _put(batch: KVBatchMeta, columns: Mapping[str, Tensor], others: Mapping[str, list[str]] | None = None) -> None:
    fields = TensorDict(dict(columns), batch_size=len(batch))
    if others:
        fields.update(get_tensordict(dict(others)))
    tq.kv_batch_put(keys=batch.keys, partition_id=str(batch.partition_id), fields=fields)
