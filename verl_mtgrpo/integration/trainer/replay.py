"""Let a turn critic learn several times per step, and from rollouts of earlier steps too.

The rows of the step and those drawn from the :class:`~.memory.Memory` are put into a partition of verl's queue of their
own, so that what the rest of the step reads of the batch stays as it was. There the critic reads them, their targets
are computed, and it learns. That is one round; the next one begins with the critic that the last one left.

Of the step's own rows states and turns are learned, of earlier ones turns only (:mod:`verl_mtgrpo.credit.turn_td`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta

from verl_mtgrpo.atomic import atomic_write
from verl_mtgrpo.checkpoints import PREFIX
from verl_mtgrpo.errors import ConfigError, MTGRPOError
from verl_mtgrpo.integration.settings import TurnCriticSettings
from verl_mtgrpo.integration.trainer.memory import Kept, Memory

logger = logging.getLogger(__name__)

PARTITION = "mtgrpo_critic"
"""The partition in which the critic learns; it is empty outside of the critic's update."""
REWARDS = "critic_rewards"
"""Name of the rewards there."""
FILE = "turn_memory.pt"
"""The memory's file in a checkpoint's folder."""


class Replay:
    """The memory of a run, and the rounds of one step.

    Args:
        settings: ``trainer.turn.critic``.
        mini_batch: Rows of a mini-batch of the critic; earlier rows are taken in multiples of it.
        seed: With step and round it decides which rows are drawn.
    """

    def __init__(self, settings: TurnCriticSettings, mini_batch: int, seed: int):
        self.settings, self.mini_batch, self.seed = settings, mini_batch, seed
        self.memory = Memory(settings.memory, settings.max_age)

    def rounds(
        self,
        batch: KVBatchMeta,
        rewards: str,
        step: int,
        learn: Callable[[KVBatchMeta, Tensor], dict[str, float]],
    ) -> dict[str, float]:
        """Call ``learn`` once per round with rows in the queue and which of them are the step's own.

        Returns:
            The mean over the rounds of what ``learn`` returned, and ``critic/memory_…``.
        """
        own = rows_of(batch, rewards, step)
        self.memory.forget(step)
        measured: list[dict[str, float]] = []
        ages: list[int] = []
        for number in range(self.settings.rounds):
            wanted = self.settings.replayed(len(own), len(self.memory), self.mini_batch)
            earlier = self.memory.draw(wanted, f"{self.seed}/{step}/{number}")
            ages += [step - row.step for row in earlier]
            fresh_B = torch.arange(len(own) + len(earlier)) < len(own)
            there = put([*own, *earlier])
            try:
                measured.append(learn(there, fresh_B))
            finally:
                tq.kv_clear(keys=there.keys, partition_id=PARTITION)
        padding = [bool(tag.get("is_padding", False)) for tag in batch.tags]
        kept = [row for row, filled in zip(own, padding, strict=True) if not filled]
        self.memory.add(sorted(kept, key=_content))
        return {**means(measured), **self.measures(ages)}

    def measures(self, ages: Sequence[int]) -> dict[str, float]:
        """Return what is logged of the memory, given how many steps old each of the rows was that were drawn."""
        if not self.memory.capacity:
            return {}
        named = {
            "critic/memory_rollouts": float(len(self.memory)),
            "critic/memory_replayed": len(ages) / self.settings.rounds,
        }
        return named | ({"critic/memory_age": sum(ages) / len(ages)} if ages else {})

    def save(self, folder: Path) -> None:
        """Write the memory into a checkpoint's folder, and remove it from those whose critic verl has removed."""
        if not self.memory.capacity:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / FILE) as part:
            torch.save(self.memory.state(), part)
        for old in folder.parent.glob(f"{PREFIX}*/{FILE}"):
            if old.parent != folder and not (old.parent / "critic").is_dir():
                with suppress(OSError):
                    old.unlink()

    def load(self, folder: Path, step: int) -> None:
        """Read the memory of the checkpoint that the run continues from; without a file it begins empty.

        Args:
            folder: The checkpoint's folder.
            step: The checkpoint's step.

        Raises:
            ConfigError: The file cannot be read, or has rollouts of later steps.
        """
        if not self.memory.capacity:
            return
        file = folder / FILE
        if not file.exists():
            logger.warning("%s does not exist: the critic's memory begins empty", file)
            return
        fix = f"copy it from where it was written once more, or remove {file} to begin with an empty memory"
        try:
            self.memory.load(torch.load(file, weights_only=True))
        except Exception as error:  # what a damaged file raises depends on where it is damaged
            # torch's own text recommends to run what the file contains
            said = error.found if isinstance(error, MTGRPOError) else f"reading it raises {type(error).__name__}"
            raise ConfigError(f"{file} is not the memory of a critic: {said}", fix=fix) from error
        if (last := max((row.step for row in self.memory.rows), default=0)) > step:
            message = (
                f"{file} has rollouts of step {last}, but the run continues from step {step}: it is of another run"
            )
            raise ConfigError(message, fix=fix)
        logger.info("the critic remembers %d rollouts of %s", len(self.memory), file)


def rows_of(batch: KVBatchMeta, rewards: str, step: int) -> list[Kept]:
    """Return the rows of a batch, out of the queue.

    Raises:
        ConfigError: they have images, which are not kept.
    """
    names = ["prompts", "responses", "response_mask", "position_ids", "multi_modal_inputs", rewards]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=str(batch.partition_id), select_fields=names)
    if any(getattr(one, "data", one) for one in data.get("multi_modal_inputs", [])):
        raise ConfigError(
            "trainer.turn.critic keeps text only, and these rollouts have images",
            fix="set trainer.turn.critic.memory=0 and trainer.turn.critic.rounds=1",
        )
    columns = {name: _rows(data[name]) for name in names if name != "multi_modal_inputs"}
    return [
        Kept(
            step,
            prompt=columns["prompts"][row].int(),
            response=columns["responses"][row].int(),
            mask=columns["response_mask"][row].bool(),
            rewards=columns[rewards][row].float(),
            positions=columns["position_ids"][row].int(),
        )
        for row in range(len(batch))
    ]


def put(rows: Sequence[Kept]) -> KVBatchMeta:
    """Put rows into the critic's partition, as the critic's workers read them."""
    fields = {
        "prompts": [row.prompt.long() for row in rows],
        "responses": [row.response.long() for row in rows],
        "input_ids": [torch.cat([row.prompt, row.response]).long() for row in rows],
        "response_mask": [row.mask.long() for row in rows],
        "loss_mask": [row.mask.long() for row in rows],
        "position_ids": [row.positions.long() for row in rows],
        REWARDS: [row.rewards for row in rows],
    }
    tags = [{"seq_len": len(row.prompt) + len(row.response)} for row in rows]
    nested = {name: torch.nested.as_nested_tensor(column, layout=torch.jagged) for name, column in fields.items()}
    return tq.kv_batch_put(
        keys=[f"critic_{number}" for number in range(len(rows))],
        partition_id=PARTITION,
        fields=TensorDict(nested, batch_size=len(rows)),
        tags=tags,
    )


def means(measured: Iterable[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each number over those that have it."""
    found: dict[str, list[float]] = {}
    for one in measured:
        for name, value in one.items():
            found.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in found.items()}


def _content(row: Kept) -> tuple[list[int], list[int]]:
    """Return what rows are sorted by: verl's order depends on names that are drawn anew in each run."""
    return row.prompt.tolist(), row.response.tolist()


def _rows(column: Tensor) -> list[Tensor]:
    return [row.clone() for row in column.unbind()]
