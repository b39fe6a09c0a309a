"""verl's replay buffer, plus turn-level training metrics, an end to waiting and a poll interval that can be set.

verl logs what the reward manager measured in validation only. Its sampler is the one extension point
that sees every training batch and returns metrics, so these subclasses add ours there::

    trainer.v1.sampler.custom_sampler.path=pkg://verl_mtgrpo.integration.trainer.sampler
    trainer.v1.sampler.custom_sampler.name=TurnReplayBuffer        (async trainers: TurnReplayBufferAsync)
    +trainer.v1.sampler.sampler_kwargs.poll_interval=0.05          (seconds at least; verl's default is 2)

verl hands its settings for group filtering to its own samplers only. Ours read them from ``sampler_kwargs``,
where the config groups of this package put references to them, so ``algorithm.filter_groups`` works as ever.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.errors import ConfigError, CreditInputError, EmptyBatchError, WorkerDiedError
from verl_mtgrpo.integration.advantage.comparing import compares
from verl_mtgrpo.integration.rollout.transcripts import fetch_transcripts
from verl_mtgrpo.integration.rollout.workers import current_manager
from verl_mtgrpo.integration.trainer.left_out import LeftOut, Sorted, rollout_of, rollouts_in, sort_rows
from verl_mtgrpo.integration.trainer.queue import rollout_fields
from verl_mtgrpo.integration.trainer.waiting import StallGuard
from verl_mtgrpo.rewards import DROPPED_REASON
from verl_mtgrpo.rewards.measures import BY_KIND
from verl_mtgrpo.rewards.pattern import TURN_PATTERN

logger = logging.getLogger(__name__)

MANY_LOST = 0.05
"""Share of a step's rollouts that may be lost to outages and errors before an ERROR says so."""


LOOK_EVERY = 1e-4
"""Seconds between looks at the queue for each key in it. A look costs TransferQueue's one controller process some 7
microseconds a key, in which no rollout gets in or out: at this pace less than a tenth of its time."""


class _TurnMetrics:
    """What both samplers add to verl's; comes before it among the base classes."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **_with_settings(kwargs))
        self._guard = StallGuard((kwargs.get("sampler_kwargs") or {}).get("stall_timeout_s"))
        self._taken_out = 0
        self._least_interval = self.poll_interval
        self.left_out = LeftOut()
        self.validated: dict[str, Any] | None = None
        """Transcripts of the validation that is going on, by row; None: nobody wants them."""

    @property
    def _rollouts_per_prompt(self) -> int:
        return int(self.sampler_kwargs.get("rollouts_per_prompt") or 0)  # type: ignore[attr-defined]

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict]:
        """Sample as verl does, without the rollouts that were lost, with :func:`rollout_metrics` among the metrics.

        See :mod:`.left_out` for what leaves a training batch, and why here.
        """
        self._guard.start(global_steps)
        manager, each = current_manager(), self._rollouts_per_prompt
        try:
            batch, metrics = self._sample(global_steps, partition_id, batch_size)
        except WorkerDiedError as error:
            lost = f"{batch_size * each} rollouts of step {global_steps}" if partition_id == "train" else "validation"
            raise WorkerDiedError(f"the {lost} ended here and will be asked for again: {error}") from error
        if partition_id == "val":
            if self.validated is not None:
                self.validated |= dict(zip(batch.keys, fetch_transcripts(batch), strict=True))
            return batch, metrics
        again = manager.take_asked_again() if manager is not None else 0
        return self._without_lost(batch, metrics, global_steps, batch_size * each, again * each)

    def _without_lost(
        self, batch: KVBatchMeta, metrics: dict, global_steps: int, asked: int, again: int
    ) -> tuple[KVBatchMeta, dict]:
        """Take lost rollouts out of a training batch, and add what was measured of all rollouts to the metrics."""
        estimator = str(self.sampler_kwargs.get("estimator"))  # type: ignore[attr-defined]
        refuse_several_outputs(batch.keys, estimator)
        infos = _reward_infos(batch)
        # With one rollout a prompt by intention there is no company to lose.
        rows = sort_rows(batch.keys, infos, need_company=self._rollouts_per_prompt > 1 and compares(estimator))
        refuse_empty_batch(infos, rows, global_steps)
        taken_out, self._taken_out = self._taken_out, 0
        filtered = taken_out * self._rollouts_per_prompt
        measured = {
            **rollout_metrics([info for info in infos if info]),
            **share_failed(batch.keys, asked),
            **count_rollouts(batch.keys, rows, asked, filtered, again),
        }
        warn_of_outages(measured, global_steps)
        self.left_out.begin(global_steps)
        return self.left_out.take_out(batch, rows), {**metrics, **measured}

    def _sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict]:
        """verl's; if there are no rollouts because their server died, that is what is said."""
        manager = current_manager()
        try:
            sampled = super().sample(global_steps, partition_id, batch_size)  # type: ignore[misc]
        except RuntimeError as error:
            if manager is not None:
                manager.check_servers()
            refuse_failed_batch(error, global_steps)
            raise
        if manager is not None:
            manager.check_servers()
        return sampled

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        """verl's, in whose waiting for rollouts it is seen whether anything is still to come, less often of many."""
        waited = {name: pending | self.running_keys[name] for name, pending in self.pending_keys.items()}  # type: ignore[attr-defined]
        waited |= {name: keys for name, keys in self.running_keys.items() if name not in waited}  # type: ignore[attr-defined]
        if (manager := current_manager()) is not None:
            manager.look(waited)
        ended = len(self.partitions[partition_id])  # type: ignore[attr-defined]
        self._guard.look(ended, waited.get(partition_id, set()))
        tables = (*self.partitions.values(), *self.prompt_global_steps.values())  # type: ignore[attr-defined]
        self.poll_interval = poll_interval(sum(map(len, tables)), self._least_interval)
        return super()._wait_for_next_poll(partition_id, last_debug_time)  # type: ignore[misc]

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter]:
        """verl's; how many groups shared which number is left out where that is a hash: verl makes a table of it."""
        uids, shared = super()._dapo_filtered_keys(partition_id)  # type: ignore[misc]
        return uids, Counter() if self.filter_groups_metric == TURN_PATTERN else shared  # type: ignore[attr-defined]

    def _clear_groups(self, partition_id: str, uids: set[str]) -> None:
        """verl's way to take questions out of the update: rewards all equal, too old, or failed and replaced."""
        if partition_id != "val":
            self._taken_out += len(uids)
        super()._clear_groups(partition_id, uids)  # type: ignore[misc]


class TurnReplayBuffer(_TurnMetrics, ReplayBuffer):
    """For ``trainer.v1.trainer_mode=sync``."""


class TurnReplayBufferAsync(_TurnMetrics, ReplayBufferAsync):
    """For the asynchronous trainer modes."""


def poll_interval(keys: int, least: float) -> float:
    """Return the seconds until the next look at a queue with so many keys: ``least`` or, with many, up to verl's 2."""
    return max(least, min(2.0, LOOK_EVERY * keys))


def rollout_metrics(infos: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Average the named numbers of a batch's rollouts (``reward_extra_info`` of each).

    A name that is None or absent in a rollout (a turn it did not have) is averaged over the others, but counts of
    failures by kind are absent where they are 0. ``turn/k/rollouts`` says how many rollouts reached turn k;
    ``tool/latency_s/p50``, ``/p95`` and ``/max`` are over the longest calls of the rollouts that made one.
    """
    values: dict[str, list[float]] = defaultdict(list)
    infos = list(infos)
    for info in infos:
        for name, value in info.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                values[name].append(float(value))
    means = {
        name: sum(found) / (len(infos) if name.startswith(BY_KIND) else len(found)) for name, found in values.items()
    }
    counts = {
        name.removesuffix("/reward") + "/rollouts": float(len(found))
        for name, found in values.items()
        if name.startswith("turn/") and name.endswith("/reward")
    }
    slowest = values.get("tool/latency_s")
    latency = dict(zip(("p50", "p95", "max"), np.percentile(slowest, (50, 95, 100)), strict=True)) if slowest else {}
    return {**means, **counts, **{f"tool/latency_s/{name}": float(value) for name, value in latency.items()}}


def share_failed(keys: Sequence[str], asked: int) -> dict[str, float]:
    """``outcome/failed``: share of the rollouts asked for that are missing, because they raised an error.

    Args:
        keys: verl's names of the trajectories, ``{uid}_{session}_{index}``.
        asked: Number of rollouts of the batch; 0 if it is not known, then there is no such metric.
    """
    return {"outcome/failed": 1.0 - len(_rows_by_rollout(keys)) / asked} if asked else {}


def count_rollouts(keys: Sequence[str], rows: Sorted, asked: int, filtered: int, again: int) -> dict[str, float]:
    """``rollouts_total/…``: what became of every rollout of a step; empty if it is not known how many were asked for.

    ``asked`` is the sum of ``trained``, ``dropped`` (left out by the reward manager), ``alone`` (the only one left of
    its group, with nobody to be compared with), ``failed`` (raised an error) and ``filtered`` (whole groups that verl
    takes out). ``repeated`` were begun, lost with their worker and asked for again; they are among the asked once.
    verl adds up names with ``total`` in them where a step has several batches.

    Args:
        keys: verl's names of the trajectories of the batch, those that leave it included.
        rows: which of them leave it.
        asked: rollouts of the batch.
        filtered: rollouts of the groups that verl took out before.
        again: rollouts asked for a second time.
    """
    if not asked:
        return {}
    counts = {
        "asked": asked + filtered,
        "trained": rollouts_in(keys, rows.kept),
        "dropped": rollouts_in(keys, rows.dropped),
        "alone": rollouts_in(keys, rows.alone),
        "failed": asked - len(_rows_by_rollout(keys)),
        "filtered": filtered,
        "repeated": again,
    }
    return {f"rollouts_total/{name}": float(count) for name, count in counts.items()}


def warn_of_outages(measured: Mapping[str, float], global_steps: int) -> None:
    """Log an ERROR if more rollouts than :data:`MANY_LOST` of a step are lost to outages or errors."""
    failed = measured.get("outcome/failed", 0.0)
    lost = failed + (1.0 - failed) * measured.get("tool/outage", 0.0)
    if lost > MANY_LOST:
        kinds = [f"{name} {value:.3g}" for name, value in measured.items() if name.startswith("tool/errors/") and value]
        message = (
            f"step {global_steps}: {lost:.0%} of the rollouts are lost: {failed:.0%} failed (errors above), the "
            f"others had no search. Per rollout: {', '.join(kinds) or 'no tool errors'}"
        )
        logger.error(message)


def refuse_several_outputs(keys: Sequence[str], estimator: str) -> None:
    """Raise ``CreditInputError`` if a rollout came as several rows and the estimator takes each row for a rollout.

    verl lets an agent loop return a list of outputs, and brings them together for its own ``grpo`` only.

    Args:
        keys: verl's names of the rows, ``{uid}_{session}_{index}``.
        estimator: ``algorithm.adv_estimator``.
    """
    rows = _rows_by_rollout(keys)
    several = [session for session, count in rows.items() if count > 1]
    if several and estimator in ESTIMATORS:
        raise CreditInputError(
            f"{len(several)} of {len(rows)} rollouts came as several outputs (such as {several[0]}: "
            f"{rows[several[0]]}), each of which {estimator} would take for a rollout of its own: its turns would be "
            "counted from 1 again and compared with the wrong ones. Let the agent loop return one output with all "
            "turns, or use verl's own algorithm.adv_estimator=grpo, which shares the last output's advantage out"
        )


def refuse_empty_batch(infos: Sequence[Mapping[str, Any]], rows: Sorted, global_steps: int) -> None:
    """Raise ``EmptyBatchError`` if every rollout of a batch was lost, with the commonest reasons.

    verl would stop too, but say only that a mask is empty.

    Args:
        infos: ``reward_extra_info`` of each row.
        rows: which rows are trained on.
        global_steps: the training step.
    """
    if not infos or rows.kept:
        return
    reasons = Counter(str(infos[row].get(DROPPED_REASON) or "no reason given") for row in rows.dropped)
    listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
    lost = f"all {len(infos)} rollouts of the batch were dropped"
    if rows.alone:
        lost = (
            f"of {len(infos)} rollouts of the batch {len(rows.dropped)} were dropped, and each of the others is the "
            "only one left of its group, with nothing to be compared with"
        )
    raise EmptyBatchError(
        f"step {global_steps}: {lost}. Nothing is left to train on: "
        f"{listed or 'rollouts failed (errors above)'}. Repair that, then start again: verl goes on from its last "
        "checkpoint"
    )


def refuse_failed_batch(error: RuntimeError, global_steps: int) -> None:
    """Raise ``EmptyBatchError`` if what verl says of a batch is that none of its rollouts came to an end."""
    if "no materializable trajectories" in str(error):
        raise EmptyBatchError(
            f"step {global_steps}: all rollouts of the batch failed, nothing is left to train on. What they failed of "
            "is in this log (`Error in _run_prompt`). Repair that, then start again: verl goes on from its last "
            "checkpoint. If it was bad luck with a small batch (failures now and then, data.train_batch_size of a few "
            "questions), trainer.v1.sampler.sync_refill_failed_groups=True has verl ask other questions in place of "
            "those whose rollouts all failed; where every rollout fails it would only go on asking"
        ) from error


def _rows_by_rollout(keys: Sequence[str]) -> Counter[str]:
    """How many rows of a batch each rollout has."""
    return Counter(map(rollout_of, keys))


def _reward_infos(batch: KVBatchMeta) -> list[Mapping[str, Any]]:
    """``reward_extra_info`` of every row of a batch, empty where there is none."""
    if not batch.keys:
        return []
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
    return [(item.get("reward_extra_info") if isinstance(item, dict) else None) or {} for item in rollout_fields(data)]


def _with_settings(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The constructor arguments that verl gives to its own samplers but not to custom ones, as it works them out."""
    own = kwargs.get("sampler_kwargs") or {}
    more: dict[str, Any] = {}
    if own.get("poll_interval") is not None:
        more["poll_interval"] = float(own["poll_interval"])
    filtering = own.get("filter_groups") or {}
    refill = bool(own.get("sync_refill_failed_groups"))
    if filtering.get("enable") or refill:
        more["sync_refill_failed_groups"] = refill
        more["train_batch_size"] = own["train_batch_size"]
        more["gen_batch_size"] = 1
    if filtering.get("enable"):
        if not filtering.get("metric"):
            raise ConfigError(
                "algorithm.filter_groups.enable=True needs algorithm.filter_groups.metric: turn_pattern (what each "
                "turn was paid), reward (the total), or a name that the reward gives for every rollout, as outcome/em"
            )
        more["filter_groups_metric"] = str(filtering["metric"])
        more["max_inflight_gen_batches"] = filtering.get("max_inflight_gen_batches") or 1
    return {**kwargs, **more}
