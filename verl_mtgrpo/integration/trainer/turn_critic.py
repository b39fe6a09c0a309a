"""Train a critic at the places where turns begin and end, for estimators that ask for ``values_after``.

Three of verl's steps change, and only in such a run:

- The critic's loss is :func:`~verl_mtgrpo.integration.critic_loss.turn_value_loss`, set by verl's own ``set_loss_fn``.
- After the critic has read a batch, its values are kept after each token too (``values_after``): verl keeps the value
  before each token, and drops the one after a row's last.
- Before the critic's update, targets and weights are written into the batch.

With the dense reward ``discriminator`` the same three steps make the critic a classifier of turns: it learns which are
an expert's (:mod:`verl_mtgrpo.credit.discriminator`).

How often the targets of a turn critic are computed per step, and whether rows of earlier steps are learned again, is
``trainer.turn.critic`` (:mod:`.replay`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.workers.utils.padding import response_from_nested

from verl_mtgrpo.checkpoints import checkpoint_folder
from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.credit.discriminator import discriminator_quality, discriminator_targets
from verl_mtgrpo.credit.turn_td import critic_quality, value_targets
from verl_mtgrpo.integration.critic_loss import TARGETS, WEIGHTS, discriminator_loss, turn_value_loss
from verl_mtgrpo.integration.pairs import PAIR_SIDE
from verl_mtgrpo.integration.settings import estimator_settings, trainer_turn_settings
from verl_mtgrpo.integration.trainer.queue import rewards_column, rollout_fields, token_columns

if TYPE_CHECKING:
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    from verl_mtgrpo.integration.trainer.replay import Replay

_Verls = PPOTrainer if TYPE_CHECKING else object

MEMORY_ERROR = "critic/memory_td_error"
"""Metric of how far Q of earlier rollouts is from its targets."""
AFTER = "values_after"
"""Name of the field, in the queue and as a parameter of estimators."""


def learns_turns(config: Any) -> bool:
    """Return True if the run's estimator asks for the values after turns, which only a turn critic learns."""
    estimator = str(config.algorithm.adv_estimator)
    return estimator in ESTIMATORS and AFTER in ESTIMATORS[estimator].fields


def tells_apart(config: Any) -> bool:
    """Return True if the run's critic is a discriminator of an expert's turns and the policy's own."""
    return "discriminator" in (OmegaConf.select(config, "trainer.turn.dense") or {})


class TurnCritic(_Verls):
    """Mixin with what a turn critic changes in verl's trainers; it comes before verl's class in the bases."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        self._replay = replay_of(config)
        super().__init__(config, *args, **kwargs)

    def on_init_end(self) -> None:
        """Do what verl does; give the critic's workers the loss of turns."""
        super().on_init_end()
        if learns_turns(self.config):
            self.critic_wg.set_loss_fn(turn_value_loss)
        elif tells_apart(self.config):
            self.critic_wg.set_loss_fn(discriminator_loss)

    def _compute_values(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Do what verl does; with a turn critic, keep the values after each token too."""
        if not learns_turns(self.config) and not tells_apart(self.config):
            return super()._compute_values(batch, metrics)
        read_values(self.critic_wg, batch, temperature=self.config.actor_rollout_ref.rollout.temperature)
        return batch

    def _update_critic(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Do what verl does; with a turn critic, towards the targets of states and turns."""
        if tells_apart(self.config):
            super()._update_critic(with_sides(batch, metrics), metrics)
            return batch
        if not learns_turns(self.config):
            return super()._update_critic(batch, metrics)
        rewards, discount = rewards_column(self.config), turn_discount(self.config)
        columns = critic_columns(batch, rewards)
        metrics.update(critic_quality(*columns, discount=discount))
        if self._replay is None:
            super()._update_critic(with_targets(batch, *columns, discount=discount), metrics)
        else:
            metrics.update(self._replay.rounds(batch, rewards, self.global_steps, self._learn))
        return batch  # without the columns of targets, which the policy's workers do not need

    def _learn(self, rows: KVBatchMeta, fresh_B: Tensor) -> dict[str, float]:
        """Let the critic read rows of the queue and learn from them; return verl's metrics of the critic."""
        from verl_mtgrpo.integration.trainer.replay import REWARDS

        read_values(self.critic_wg, rows, temperature=self.config.actor_rollout_ref.rollout.temperature)
        columns = critic_columns(rows, REWARDS)
        discount = turn_discount(self.config)
        metrics: dict[str, Any] = {}
        super()._update_critic(with_targets(rows, *columns, discount=discount, fresh_B=fresh_B), metrics)
        earlier = critic_quality(*(column[~fresh_B] for column in columns), discount=discount)
        if (error := earlier.get("critic/td_error")) is not None:
            metrics[MEMORY_ERROR] = error
        return metrics

    def _save_checkpoint(self) -> None:
        """Do what verl does; before that, write the critic's memory, so that a checkpoint verl names has it."""
        if self._replay is not None:
            self._replay.save(checkpoint_folder(Path(self.config.trainer.default_local_dir), self.global_steps))
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        """Do what verl does; read the critic's memory too."""
        super()._load_checkpoint()
        if self._replay is not None and self.global_steps:
            self._replay.load(resumed_folder(self.config.trainer, self.global_steps), self.global_steps)


def replay_of(config: Any) -> Replay | None:
    """Return the memory of a run whose critic learns several times per step or from earlier steps; None for others."""
    settings = trainer_turn_settings(config.trainer).critic
    if not learns_turns(config) or (settings.memory == 0 and settings.rounds == 1):
        return None
    from verl_mtgrpo.integration.trainer.replay import Replay

    rows = config.critic.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
    return Replay(settings, mini_batch=rows, seed=config.critic.data_loader_seed)


def resumed_folder(trainer: Any, step: int) -> Path:
    """Return the checkpoint's folder that a run continues from.

    Args:
        trainer: the node ``trainer`` of verl's config.
        step: the checkpoint's step.
    """
    if trainer.resume_mode == "resume_path":
        return Path(trainer.resume_from_path)
    return checkpoint_folder(Path(trainer.default_local_dir), step)


def turn_discount(config: Any) -> float:
    """Return γ of the estimator; 1 if it has no such knob."""
    return float(estimator_settings(str(config.algorithm.adv_estimator), config.algorithm).get("discount", 1.0))


def read_values(critic_wg: Any, batch: KVBatchMeta, *, temperature: float) -> None:
    """Let the critic read a batch; put the values before and after each response token into the queue."""
    batch.extra_info = {**(batch.extra_info or {}), "compute_loss": False, "temperature": temperature}
    ray.get(critic_wg.infer_batch(batch).futures)
    data = tq.kv_batch_get(
        keys=batch.keys, partition_id=str(batch.partition_id), select_fields=["values", "response_mask"]
    )
    read, mask = data["values"], data["response_mask"]
    fields = {"values": response_from_nested(read, mask), AFTER: after_each_token(read, mask)}
    tq.kv_batch_put(
        keys=batch.keys, partition_id=str(batch.partition_id), fields=TensorDict(fields, batch_size=len(batch))
    )


def after_each_token(read: Tensor, response_mask: Any) -> Tensor:
    """Return what was read at each response token itself, nested: the value of the history that ends with it."""
    lengths = response_mask.offsets().diff().tolist()
    rows = [row[len(row) - length :] for row, length in zip(read.unbind(), lengths, strict=True)]
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def critic_columns(batch: KVBatchMeta, rewards: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rewards, mask, values before and values after each token, ``(B, T)`` each."""
    columns, _ = token_columns(batch, [rewards, "response_mask", "values", AFTER])
    return columns[rewards], columns["response_mask"], columns["values"], columns[AFTER]


def with_targets(
    batch: KVBatchMeta,
    rewards: Tensor,
    response_mask: Tensor,
    values: Tensor,
    values_after: Tensor,
    *,
    discount: float,
    fresh_B: Tensor | None = None,
) -> KVBatchMeta:
    """Put targets and weights of a batch into the queue, and return the batch with these columns.

    Each place counts the same, and the mean weight of a row is 1, so that the loss is a mean over places.
    """
    targets, learned = value_targets(rewards, response_mask, values, values_after, discount=discount, fresh_B=fresh_B)
    return put_targets(batch, targets, learned.float())


def with_sides(batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
    """Put what a discriminator is to learn of a batch into the queue, and return the batch with these columns.

    Args:
        batch: A training batch that the discriminator has read.
        metrics: Gets how well it told the turns apart.
    """
    columns, data = token_columns(batch, ["response_mask", AFTER], ["extra_fields"])
    sides = [fields.get(PAIR_SIDE) if isinstance(fields, dict) else None for fields in rollout_fields(data)]
    metrics.update(discriminator_quality(columns[AFTER], columns["response_mask"], sides))
    return put_targets(batch, *discriminator_targets(columns["response_mask"], sides))


def put_targets(batch: KVBatchMeta, targets: Tensor, learned: Tensor) -> KVBatchMeta:
    """Put targets and weights into the queue; the mean weight of a row becomes 1.

    Args:
        batch: The batch.
        targets: ``(B, T + 1)``, what is learned at each place.
        learned: ``(B, T + 1)`` float, how much each place counts.
    """
    weights = learned * (len(learned) / learned.sum().clamp(min=1))
    data = tq.kv_batch_get(keys=batch.keys, partition_id=str(batch.partition_id), select_fields=["response_mask"])
    mask: Any = data["response_mask"]
    places = [length + 1 for length in mask.offsets().diff().tolist()]
    fields = TensorDict({TARGETS: _cut(targets, places), WEIGHTS: _cut(weights, places)}, batch_size=len(batch))
    taught = tq.kv_batch_put(keys=batch.keys, partition_id=str(batch.partition_id), fields=fields)
    taught.tags, taught.extra_info = batch.tags, {**(batch.extra_info or {})}
    return taught


def _cut(table: Tensor, lengths: list[int]) -> Tensor:
    """Return a padded table as a nested tensor of rows of these lengths."""
    rows = [row[:length].clone() for row, length in zip(table, lengths, strict=True)]
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)
