"""verl's replay buffers with metrics of every training batch, a stall timeout and a poll interval that can be set.

verl logs what the reward manager measured in validation only, waits for rollouts even if the workers that make them
are dead, and polls every two seconds. The replay buffer samples every batch and does the waiting, so these
subclasses do the rest there. Our trainers build them (:mod:`.trainer`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from verl_mtgrpo.errors import ConfigError, WorkerDiedError
from verl_mtgrpo.integration.advantage.comparing import compares
from verl_mtgrpo.integration.roles import OUTPUTS, knows_roles, outputs_per_prompt
from verl_mtgrpo.integration.rollout.transcripts import fetch_transcripts
from verl_mtgrpo.integration.trainer.accounting import (
    Batch,
    count_rollouts,
    refuse_empty_batch,
    refuse_failed_batch,
    refuse_several_outputs,
    rollout_metrics,
    share_failed,
    tree_metrics,
    warn_of_outages,
)
from verl_mtgrpo.integration.trainer.left_out import sort_rows
from verl_mtgrpo.integration.trainer.queue import LeftOut, rollout_fields, token_columns
from verl_mtgrpo.integration.trainer.waiting import StallGuard
from verl_mtgrpo.integration.trees import BRANCH, takes_leaves
from verl_mtgrpo.rewards.pattern import TURN_PATTERN

if TYPE_CHECKING:
    from verl_mtgrpo.integration.rollout.workers import TurnAgentLoopManager

LOOK_EVERY = 1e-4
"""Seconds between polls of the queue, per key in it. A poll costs TransferQueue's one controller process some 7
microseconds per key, in which no rollout gets in or out: at this pace less than a tenth of its time."""

_Verls = ReplayBuffer if TYPE_CHECKING else object


class TurnBuffer(_Verls):
    """Mixin with what both of our replay buffers add to verl's; it comes before verl's class in the bases.

    Args:
        estimator: ``algorithm.adv_estimator``, which may need other rollouts of the prompt. verl, which builds a
            custom sampler, gives neither this nor the next one.
        rollouts_per_prompt: ``actor_rollout_ref.rollout.n``; with roles, the outputs of a prompt that forks at its
            first role.
        stall_timeout_s: seconds without any rollout ending after which the run stops; None to wait indefinitely.
        verls: arguments of verl's own buffer. ``poll_interval`` is the least time between two polls.

    Attributes:
        manager: the run's manager of rollout workers, which replaces dead ones; None if it cannot.
        left_out: the rows that left the batches of the current step.
        validated: transcripts of the running validation, by row; None if nothing reads them.
    """

    def __init__(
        self,
        *,
        estimator: str | None = None,
        rollouts_per_prompt: int | None = None,
        stall_timeout_s: float | None = None,
        **verls: Any,
    ):
        if estimator is None or rollouts_per_prompt is None:
            raise ConfigError(
                f"trainer.v1.sampler.custom_sampler names {type(self).__name__}, a subclass of this package's replay "
                "buffer: verl builds a custom sampler without the estimator and the group size that this buffer needs",
                fix=(
                    "remove custom_sampler, so that our trainers build their buffer; or derive your class from "
                    "verl's ReplayBuffer or ReplayBufferAsync, with which a training step logs the credit of turns and "
                    "no other metrics of this package"
                ),
            )
        super().__init__(**verls)
        self.estimator, self.rollouts_per_prompt = estimator, rollouts_per_prompt
        self.manager: TurnAgentLoopManager | None = None
        self.left_out = LeftOut()
        self.validated: dict[str, Any] | None = None
        self._guard = StallGuard(stall_timeout_s)
        self._taken_out = 0
        self._least_interval = self.poll_interval

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict[str, Any]]:
        """Sample as verl does, without the rollouts that were lost and with what was measured among the metrics.

        See :mod:`.left_out` for what leaves a training batch, and why here.
        """
        self._guard.start(global_steps)
        asked = batch_size * self.rollouts_per_prompt
        try:
            batch, metrics = self._sample(global_steps, partition_id, batch_size)
        except WorkerDiedError as error:
            lost = f"{asked} rollouts of step {global_steps}" if partition_id == "train" else "validation"
            raise WorkerDiedError(f"the {lost} ended here and will be generated again: {error}") from error
        if partition_id == "val":
            if self.validated is not None:
                self.validated |= dict(zip(batch.keys, fetch_transcripts(batch), strict=True))
            return batch, metrics
        return self._without_lost(batch, metrics, global_steps, asked)

    def _without_lost(
        self, batch: KVBatchMeta, metrics: dict[str, Any], global_steps: int, asked: int
    ) -> tuple[KVBatchMeta, dict[str, Any]]:
        """Take lost rollouts out of a training batch, and add what was measured of all rollouts to the metrics."""
        refuse_several_outputs(batch.keys, self.estimator)
        infos, trees, outputs = _said_of_rows(batch)
        leaves, each = takes_leaves(self.estimator) or knows_roles(self.estimator), self.rollouts_per_prompt
        if outputs:  # how many it takes depends on where a prompt forks; of prompts that failed nobody knows
            asked += sum(outputs) - each * len(outputs)
        # With one rollout per prompt by intention there is no group to lose.
        need_company = each > 1 and compares(self.estimator)
        rows = sort_rows(batch.keys, infos, need_company=need_company, leaves=leaves)
        refuse_empty_batch(infos, rows, global_steps)
        again = self.manager.take_asked_again() if self.manager is not None else 0
        taken_out, self._taken_out = self._taken_out, 0
        short = round(sum(tree["branch/shortfall"] for tree in trees))
        books = Batch(batch.keys, asked, short, leaves)
        measured = {
            **rollout_metrics([info for info in infos if info]),
            **tree_metrics(trees),
            **share_failed(books),
            **count_rollouts(books, rows, taken_out * each, again * each),
        }
        warn_of_outages(measured, global_steps)
        self.left_out.begin(global_steps)
        return self.left_out.take_out(batch, rows), {**metrics, **measured}

    def _sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict[str, Any]]:
        """Sample as verl does; if there are no rollouts because their server died, say that."""
        try:
            sampled = super().sample(global_steps, partition_id, batch_size)
        except RuntimeError as error:
            if self.manager is not None:
                self.manager.check_servers()
            refuse_failed_batch(error, global_steps)
            raise
        if self.manager is not None:
            self.manager.check_servers()
        return sampled

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        """Wait as verl does, but longer if there are many rollouts, and look first whether any can still come."""
        waited = {name: pending | self.running_keys[name] for name, pending in self.pending_keys.items()}
        waited |= {name: keys for name, keys in self.running_keys.items() if name not in waited}
        if self.manager is not None:
            self.manager.look(waited)
        ended = len(self.partitions[partition_id])
        self._guard.look(ended, waited.get(partition_id, set()))
        tables = (*self.partitions.values(), *self.prompt_global_steps.values())
        self.poll_interval = poll_interval(sum(map(len, tables)), self._least_interval)
        return super()._wait_for_next_poll(partition_id, last_debug_time)

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter[Any]]:
        """Find the groups that verl filters. It logs a table of the numbers they share: none where those are hashes."""
        uids, shared = super()._dapo_filtered_keys(partition_id)
        return uids, Counter() if self.filter_groups_metric == TURN_PATTERN else shared

    def _clear_groups(self, partition_id: str, uids: set[str]) -> None:
        """Count the questions that verl takes out: rewards all equal, too old, or failed and replaced."""
        if partition_id != "val":
            self._taken_out += len(uids)
        super()._clear_groups(partition_id, uids)


class TurnReplayBuffer(TurnBuffer, ReplayBuffer):
    """For verl's ``sync`` mode."""


class TurnReplayBufferAsync(TurnBuffer, ReplayBufferAsync):
    """For verl's asynchronous modes."""


_OURS = {ReplayBuffer: TurnReplayBuffer, ReplayBufferAsync: TurnReplayBufferAsync}


def build_buffer(verls: ReplayBuffer, config: Any) -> ReplayBuffer:
    """Build our replay buffer with everything that verl's trainer gave to its own; leave a custom sampler as it is.

    Args:
        verls: what verl's trainer built. It keeps its arguments as attributes of the same names.
        config: verl's whole config.
    """
    ours = _OURS.get(type(verls))
    if ours is None:
        return verls
    settings = {name: getattr(verls, name) for name in signature(type(verls)).parameters}
    waiting = config.trainer.v1.sampler.sampler_kwargs or {}
    if waiting.get("poll_interval") is not None:
        settings["poll_interval"] = float(waiting["poll_interval"])
    return ours(
        estimator=str(config.algorithm.adv_estimator),
        rollouts_per_prompt=outputs_per_prompt(config),
        stall_timeout_s=waiting.get("stall_timeout_s"),
        **settings,
    )


def poll_interval(keys: int, least: float) -> float:
    """Return the seconds until the next look at a queue with so many keys: ``least`` or, with many, up to verl's 2."""
    return max(least, min(2.0, LOOK_EVERY * keys))


def _said_of_rows(
    batch: KVBatchMeta,
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, float]], list[int]]:
    """Return ``reward_extra_info`` of every row of a batch, empty where there is none, and what was said of prompts.

    The second list is about trees, the third has the number of outputs that each prompt with roles was to have.
    """
    if not batch.keys:
        return [], [], []
    _, data = token_columns(batch, (), ["extra_fields"])
    fields = [item if isinstance(item, dict) else {} for item in rollout_fields(data)]
    trees = [one[BRANCH] for one in fields if one.get(BRANCH)]
    outputs = [int(one[OUTPUTS]) for one in fields if one.get(OUTPUTS)]
    return [one.get("reward_extra_info") or {} for one in fields], trees, outputs
