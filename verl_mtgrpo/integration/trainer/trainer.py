"""verl's trainers, which also see where the credit goes: ``trainer.v1.trainer_mode=mtgrpo_sync``.

Each class is verl's trainer of one mode (``sync``, ``colocate_async``, ``separate_async``), changed in six places:

- Before verl computes advantages, the fields that the estimator names as parameters are fetched from the TransferQueue
  and put where it finds them. Afterwards the advantages are measured turn by turn, and the guards look at the numbers.
- Meanwhile the dense rewards of ``trainer.turn.dense`` are added to what the turns are paid (:mod:`.dense`).
- The replay buffer is ours (:mod:`.buffer`), built with what verl works out for its own, unless
  ``trainer.v1.sampler.custom_sampler`` names another one. It is given the manager of the rollout workers, which
  replaces those that die.
- The rollouts that verl writes to ``trainer.rollout_data_dir`` come with their transcripts and advantages, and what
  cannot be written stops the run with a message (:mod:`.storage`).
- With an estimator that asks for ``values_after``, the critic learns states and turns (:mod:`.turn_critic`).
- Validation averages the many numbers that rollouts report instead of drawing bootstrap samples (:mod:`.validation`).
- ``self.trainer_mode`` returns verl's name of the mode, so that everything in verl that depends on it works as before.

The batch itself is verl's.

verl's own trainers (``trainer.v1.trainer_mode=sync`` and so on) train with the same agent loop, search tool and reward
manager, and with every estimator that names no further fields. These things are missing there:

- the metrics ``turn/…``, ``tool/…``, ``outcome/…`` and ``rollouts_total/…`` of training steps; validation logs all but
  the last;
- the guards;
- dense rewards, which are refused there;
- transcripts and advantages in the dump of training rollouts; dumps of validations have transcripts;
- the stall timeout and the poll interval of ``trainer.v1.sampler.sampler_kwargs``;
- the replacement of workers that died.

There a dropped rollout stays in the batch with all its tokens masked: our estimators leave it out of their baselines,
verl's own count it as one that earned 0.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.errors import CreditInputError
from verl_mtgrpo.integration.advantage.fields import MODES, TOKEN_FIELDS, Provided, provide, source_of
from verl_mtgrpo.integration.compat import check_compatible
from verl_mtgrpo.integration.dense import check_dense, chosen_dense
from verl_mtgrpo.integration.preflight import check_estimator, check_filtering
from verl_mtgrpo.integration.roles import plays_roles

# Modules, not names: if one is imported first, it imports verl's trainers, and the plugin then imports this one too.
from verl_mtgrpo.integration.rollout import workers
from verl_mtgrpo.integration.rollout.transcripts import fetch_transcripts
from verl_mtgrpo.integration.settings import trainer_turn_settings, turn_reward_settings
from verl_mtgrpo.integration.trainer import buffer, dense
from verl_mtgrpo.integration.trainer.dump import credit_rows, join, pick_groups, with_credit
from verl_mtgrpo.integration.trainer.queue import (
    PAID,
    LeftOut,
    padded,
    rewards_column,
    rollout_fields,
    token_columns,
    without_padding,
)
from verl_mtgrpo.integration.trainer.storage import SafeStorage
from verl_mtgrpo.integration.trainer.turn_critic import TurnCritic
from verl_mtgrpo.integration.trainer.validation import averages, split
from verl_mtgrpo.integration.trees import OF_ROWS
from verl_mtgrpo.rewards import NODE_PATH, TRANSCRIPT
from verl_mtgrpo.roles import ROLE
from verl_mtgrpo.watch.diagnostics import measure_credit
from verl_mtgrpo.watch.forest import forest_metrics
from verl_mtgrpo.watch.guards import Guards
from verl_mtgrpo.watch.roles import PAID_ALIKE, role_metrics

logger = logging.getLogger(__name__)

GUARD_KEYS = {
    "turn_rewards": ["reward.turn.preset"],
    "zero_variance": [
        "actor_rollout_ref.rollout.temperature",
        "actor_rollout_ref.rollout.n",
        "algorithm.filter_groups.enable",
    ],
    "tool_failures": ["actor_rollout_ref.rollout.multi_turn.max_parallel_calls"],
    "tool_use": ["actor_rollout_ref.rollout.multi_turn.format", "reward.turn.preset"],
    "outcome": ["reward.turn.preset"],
}
"""For each guard the config keys that may change what it warns of."""

_Verls = PPOTrainer if TYPE_CHECKING else object


class _TurnTrainer(SafeStorage, TurnCritic, _Verls):
    """Mixin with what our trainers do differently from verl's; it comes before verl's class in the bases."""

    stock_mode: ClassVar[str]

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        check_compatible()  # before any model is loaded
        check_estimator(config)
        check_filtering(config)
        check_dense(config)
        self._dense_rewards = chosen_dense(config)
        self._turn_settings = trainer_turn_settings(config.trainer)
        self._guards = guards_of(config)
        self._dumped: dict[str, dict[str, Any]] = {}
        super().__init__(config, *args, **kwargs)

    @property
    def trainer_mode(self) -> str:
        """verl's name of the mode, by which it chooses settings and its replay buffer."""
        return self.stock_mode

    @trainer_mode.setter
    def trainer_mode(self, _name: str) -> None:
        """Ignore the name: verl's constructor stores ``trainer.v1.trainer_mode`` here, our name of the mode."""

    def _build_replay_buffer(self) -> ReplayBuffer:
        """Build our replay buffer with what verl works out for its own; leave a custom sampler as it is."""
        return buffer.build_buffer(super()._build_replay_buffer(), self.config)

    def fit(self, agent_loop_manager: Any) -> None:
        """Train as verl does; our replay buffer may ask our manager to look after its workers."""
        if isinstance(self.replay_buffer, buffer.TurnBuffer) and isinstance(
            agent_loop_manager, workers.TurnAgentLoopManager
        ):
            self.replay_buffer.manager = agent_loop_manager
        super().fit(agent_loop_manager)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Do what verl does, with more fields for the estimator; then measure the credit and run the guards."""
        estimator = str(self.config.algorithm.adv_estimator)
        names = ESTIMATORS[estimator].fields if estimator in ESTIMATORS else ()
        with provide(fetch(batch, names)) as provided, dense.added(self, batch, self._dense_rewards, metrics):
            batch = super()._compute_advantage(batch, metrics)
        metrics.update(measure(batch, rewards_column(self.config), provided))
        fired, messages = self._guards.look(metrics)
        metrics.update(fired)
        for message in messages:
            logger.warning("step %d: %s", self.global_steps, message)
        return batch

    def _log_rollout_data(self, batch: KVBatchMeta, timing_raw: dict[str, Any], rollout_data_dir: str) -> None:
        """Write what verl writes, of the groups that the settings take, with transcripts, credit and lost rollouts."""
        settings = self._turn_settings.dump
        left_out = getattr(self.replay_buffer, "left_out", None) or LeftOut()
        whole = join(without_padding(batch), [*left_out.dropped, *left_out.alone])
        batch = pick_groups(whole, settings.groups, seed=self.global_steps)
        self._dumped = credit_rows(batch, self.config, documents=settings.documents, left_out=left_out)
        try:
            super()._log_rollout_data(batch, timing_raw, rollout_data_dir)
        finally:
            self._dumped = {}

    def _validate(self) -> dict[str, float]:
        """Do what verl does; if it is dumped, our buffer keeps the transcripts, which verl does not fetch."""
        ours = self.replay_buffer
        if not isinstance(ours, buffer.TurnBuffer) or not self.config.trainer.get("validation_data_dir"):
            return super()._validate()
        ours.validated = {}
        try:
            return super()._validate()
        finally:
            ours.validated = None

    def _val_metrics_update(
        self,
        data_sources: list[Any],
        sample_uids: list[Any],
        reward_extra_infos_dict: dict[str, list[Any]],
        sample_turns: list[Any],
        **others: Any,
    ) -> dict[str, float]:
        """Do what verl does for its core metric; average the other metrics of rollouts (:mod:`.validation`)."""
        verls, ours = split(reward_extra_infos_dict)
        named = super()._val_metrics_update(data_sources, sample_uids, verls, sample_turns, **others)
        return {**averages(data_sources, sample_uids, ours), **named}

    def _dump_generations(
        self,
        inputs: list[Any],
        outputs: list[Any],
        gts: list[Any],
        scores: list[Any],
        reward_extra_infos_dict: dict[str, list[Any]],
        dump_path: str,
    ) -> None:
        """Do what verl does, and add what :meth:`_log_rollout_data` or our buffer found."""
        validated = getattr(getattr(self, "replay_buffer", None), "validated", None) or {}
        rows = self._dumped or {key: {TRANSCRIPT: one} if one else {} for key, one in validated.items()}
        infos = with_credit(reward_extra_infos_dict, rows)
        super()._dump_generations(inputs, outputs, gts, scores, infos, dump_path)


@register_trainer("mtgrpo_sync")
class TurnTrainerSync(_TurnTrainer, PPOTrainerSync):
    """verl's ``sync`` trainer, passing fields on."""

    stock_mode = MODES["mtgrpo_sync"]


@register_trainer("mtgrpo_colocate_async")
class TurnTrainerColocateAsync(_TurnTrainer, PPOTrainerColocateAsync):
    """verl's ``colocate_async`` trainer, passing fields on."""

    stock_mode = MODES["mtgrpo_colocate_async"]


@register_trainer("mtgrpo_separate_async")
class TurnTrainerSeparateAsync(_TurnTrainer, PPOTrainerSeparateAsync):
    """verl's ``separate_async`` trainer, passing fields on."""

    stock_mode = MODES["mtgrpo_separate_async"]


def fetch(batch: KVBatchMeta, names: tuple[str, ...]) -> dict[str, Tensor | np.ndarray]:
    """Return the named fields of a batch, with the rows and columns of the rewards that the estimator gets.

    Returns:
        For each name of :data:`~verl_mtgrpo.integration.advantage.fields.TOKEN_FIELDS` a ``(B, T)`` tensor, right
        padded with 0; for any other an object array ``(B,)``.

    Raises:
        CreditInputError: no rollout of the batch has a field of that name.
    """
    if not names:
        return {}
    columns = sorted({TOKEN_FIELDS.get(name, "extra_fields") for name in names if name != TRANSCRIPT} | {"uid"})
    _, data = token_columns(batch, (), columns)
    missing = [name for name in names if name != TRANSCRIPT and TOKEN_FIELDS.get(name, "extra_fields") not in data]
    if missing:
        raise CreditInputError(
            f"the estimator needs {missing[0]}, which this batch does not have",
            fix=source_of(missing[0]),
        )
    return {
        name: padded(data[TOKEN_FIELDS[name]]) if name in TOKEN_FIELDS else _of_rows(data, batch, name)
        for name in names
    }


def measure(batch: KVBatchMeta, rewards: str, provided: Provided | None = None) -> dict[str, float]:
    """Measure where the credit of a batch went, by turn: metrics of this step (:mod:`verl_mtgrpo.watch.diagnostics`).

    Args:
        batch: a training batch whose advantages verl has computed.
        rewards: verl's name of the rewards that the estimator saw.
        provided: of the call that computed them. What is known from it is not fetched again.
    """
    tokens: dict[str, Any]
    if provided is not None and provided.credit is not None:
        tokens = {**provided.credit, "values": provided.fields.get("values")}
        seen, index = tokens["token_level_rewards"], tokens["index"]
        paid = seen if rewards == PAID else token_columns(batch, [PAID])[0][PAID]
    else:
        names = list({rewards, PAID, "advantages", "values", "response_mask"})
        tokens, data = token_columns(batch, names, ["uid"])
        if "values" in tokens:  # without a critic returns say nothing more than advantages
            tokens |= token_columns(batch, ["returns"])[0]
        seen, paid, index = tokens[rewards], tokens[PAID], [getattr(uid, "data", uid) for uid in data["uid"]]
    critic = {"values": tokens["values"], "returns": tokens["returns"]} if tokens.get("values") is not None else {}
    named = measure_credit(seen, tokens["advantages"], tokens["response_mask"], index, paid=paid, **critic)
    taken = provided.fields if provided is not None and provided.taken else {}
    if (paths := taken.get(NODE_PATH)) is not None:
        named |= forest_metrics(seen, tokens["response_mask"], index, paths)
    if (names := taken.get(ROLE)) is not None:
        named = {name: value for name, value in named.items() if not name.endswith(PAID_ALIKE)}
        named |= role_metrics(tokens["advantages"], tokens["response_mask"], index, names)
    return named


def guards_of(config: Any) -> Guards:
    """Return the guards of a run; which of them make sense depends on what is paid and who computes advantages."""
    managed = config.reward.reward_manager.name == "mtgrpo"
    return Guards(
        trainer_turn_settings(config.trainer).guards,
        # An output of a role is one turn as a rule, and its own.
        turn_rewards=managed and turn_reward_settings(config.reward).pay == "turns" and not plays_roles(config),
        masked_advantages=str(config.algorithm.adv_estimator) in ESTIMATORS,
        keys=GUARD_KEYS,
    )


def _of_rows(data: Any, batch: KVBatchMeta, name: str) -> np.ndarray:
    found = np.full(len(batch.keys), None, dtype=object)
    if name == TRANSCRIPT:
        rows = [{TRANSCRIPT: json.loads(one)} if one else None for one in fetch_transcripts(batch)]
    else:
        rows = rollout_fields(data)
    for row, (fields, tag) in enumerate(zip(rows, batch.tags, strict=True)):
        # Rows that verl adds to fill a batch carry a copy of another rollout's fields.
        if isinstance(fields, dict) and not tag.get("is_padding", False):
            found[row] = fields[name] if name in fields else (fields.get("reward_extra_info") or {}).get(name)
    if name not in OF_ROWS and all(value is None for value in found):  # a row without a path is a chain
        raise CreditInputError(f"the estimator needs {name}, which no rollout has", fix=source_of(name))
    return found
