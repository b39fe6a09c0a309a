"""Read a training batch out of verl's TransferQueue, and keep there what left it until the next step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import transfer_queue as tq
from omegaconf import OmegaConf
from torch import Tensor
from transfer_queue import KVBatchMeta

from verl_mtgrpo.integration.trainer.left_out import Sorted

PAID = "rm_scores"
"""verl's name of the rewards that the agent loop wrote, one number per response token, without a KL penalty."""
TOTAL = "token_level_rewards"
"""verl's name of the rewards after everything that is added to them."""


def token_columns(
    batch: KVBatchMeta, tokens: Sequence[str], others: Sequence[str] = ()
) -> tuple[dict[str, Tensor], Any]:
    """Return columns of a batch, rows in the order of ``batch.keys``.

    Args:
        batch: the batch.
        tokens: names of columns with one number per response token. Those that the batch has not are left out.
        others: names of further columns.

    Returns:
        The token columns, each ``(B, T)``, right padded with 0, and everything as verl's TensorDict.
    """
    data = tq.kv_batch_get(keys=batch.keys, partition_id=str(batch.partition_id), select_fields=[*tokens, *others])
    return {name: padded(data[name]) for name in tokens if name in data}, data


def padded(column: Tensor) -> Tensor:
    """Return a column of the queue as one ``(B, T)`` tensor, right padded with 0."""
    return column.to_padded_tensor(0.0) if column.is_nested else column


def rollout_fields(data: Any) -> list[Any]:
    """Return the agent loop's ``extra_fields`` of each row, without verl's wrappers."""
    return [getattr(item, "data", item) for item in data["extra_fields"]]


def rewards_column(config: Any) -> str:
    """Return verl's name of the estimator's rewards: after the KL penalty and dense rewards, if a run has any."""
    added = config.algorithm.use_kl_in_reward or OmegaConf.select(config, "trainer.turn.dense")
    return TOTAL if added else PAID


def without_padding(batch: KVBatchMeta) -> KVBatchMeta:
    """Return the batch without the copies of rollouts that verl adds to make it divisible."""
    return select(batch, [row for row, tag in enumerate(batch.tags) if not tag.get("is_padding", False)])


def select(batch: KVBatchMeta, rows: Sequence[int]) -> KVBatchMeta:
    """Return these rows of a batch."""
    return KVBatchMeta(
        partition_id=batch.partition_id, keys=[batch.keys[row] for row in rows], tags=[batch.tags[row] for row in rows]
    )


@dataclass
class LeftOut:
    """The rows that left the batches of the current step. They stay in the queue until the next step, for the dump.

    Attributes:
        dropped: Rows of dropped rollouts.
        alone: Rows of rollouts without another one of their group.
        step: The training step that they were sampled for.
    """

    dropped: list[KVBatchMeta] = field(default_factory=list)
    alone: list[KVBatchMeta] = field(default_factory=list)
    step: int | None = None

    def begin(self, step: int) -> None:
        """Forget what earlier steps left out, in the queue too. A step may sample several batches."""
        if step == self.step:
            return
        for batch in (*self.dropped, *self.alone):
            tq.kv_clear(keys=batch.keys, partition_id=str(batch.partition_id))
        self.dropped, self.alone, self.step = [], [], step

    def take_out(self, batch: KVBatchMeta, rows: Sorted) -> KVBatchMeta:
        """Return the batch without the rows that leave it."""
        if not rows.dropped and not rows.alone:
            return batch
        self.dropped += [select(batch, rows.dropped)] if rows.dropped else []
        self.alone += [select(batch, rows.alone)] if rows.alone else []
        return select(batch, rows.kept)
