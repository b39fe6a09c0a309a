"""Account for the rollouts of a training step: what they measured, how many were lost and why, when to stop.

Pure functions of verl's names of rows (``{uid}_{session}_{index}``) and the ``reward_extra_info`` of each; the replay
buffers of :mod:`.buffer` call them for every batch that they sample.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.errors import CreditInputError, EmptyBatchError
from verl_mtgrpo.integration.trainer.left_out import Sorted, rollout_of, rollouts_in
from verl_mtgrpo.integration.trees import tells_rows_apart
from verl_mtgrpo.rewards import DROPPED_REASON, NODE_PATH
from verl_mtgrpo.rewards.measures import BY_KIND

logger = logging.getLogger(__name__)

MANY_LOST = 0.05
"""Share of a step's rollouts that may be lost to outages and errors before an ERROR says so."""


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
            if isinstance(value, int | float | np.number) and not isinstance(value, bool):
                number = _as_float(value)
                if math.isfinite(number):
                    values[name].append(number)
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


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an int of four hundred digits is not a measurement
        return math.nan


def tree_metrics(trees: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average what is logged of each tree (``branch/…``) over those in which it is defined."""
    names = dict.fromkeys(name for tree in trees for name in tree)
    found = {name: [tree[name] for tree in trees if name in tree] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


@dataclass(frozen=True)
class Batch:
    """What the books are kept of: the rows of a training batch, and what was asked for.

    Attributes:
        keys: verl's names of the rows, those that leave the batch included.
        asked: Number of rollouts that the batch was to have.
        short: Number of leaves that trees did not grow to.
        leaves: True if every row is a rollout, as in trees and with roles.
    """

    keys: Sequence[str]
    asked: int
    short: int = 0
    leaves: bool = False

    @property
    def failed(self) -> int:
        """Number of rollouts that are missing because they raised an error."""
        return self.asked - self.short - rollouts_in(self.keys, range(len(self.keys)), leaves=self.leaves)


def share_failed(batch: Batch) -> dict[str, float]:
    """Return ``outcome/failed``: the share of the requested rollouts that are missing because they raised an error."""
    return {"outcome/failed": batch.failed / batch.asked}


def count_rollouts(batch: Batch, rows: Sorted, filtered: int, again: int) -> dict[str, float]:
    """Count the fate of every rollout of a step: ``rollouts_total/…``.

    ``asked`` is the sum of ``trained``, ``dropped`` (left out by the reward manager), ``alone`` (the only one left of
    its group, with nothing to compare it with), ``failed`` (raised an error), ``filtered`` (whole groups that verl
    removed) and ``short`` (leaves that a tree did not grow to). ``repeated`` were begun, lost with their worker and
    requested again; ``asked`` counts them once. verl adds up names with ``total`` in them where a step has several
    batches.

    Args:
        batch: The batch.
        rows: Which of its rows leave it.
        filtered: Number of rollouts of the groups that verl took out before.
        again: Number of rollouts requested again.
    """
    fates = {"trained": rows.kept, "dropped": rows.dropped, "alone": rows.alone}
    counts = {
        "asked": batch.asked + filtered,
        **{fate: rollouts_in(batch.keys, found, leaves=batch.leaves) for fate, found in fates.items()},
        "failed": batch.failed,
        "filtered": filtered,
        "short": batch.short,
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
            f"the others had no search. Per rollout: {', '.join(kinds) or 'no tool errors'}"
        )
        logger.error(message)


def refuse_several_outputs(keys: Sequence[str], estimator: str) -> None:
    """Raise ``CreditInputError`` if a rollout came as several rows and the estimator takes each row for a rollout.

    verl lets an agent loop return a list of outputs, and brings them together for its own ``grpo`` only. An estimator
    that names ``node_path`` or ``role`` knows what the rows of a session are to each other.

    Args:
        keys: verl's names of the rows.
        estimator: ``algorithm.adv_estimator``.
    """
    rows = Counter(map(rollout_of, keys))
    several = [session for session, count in rows.items() if count > 1]
    if several and estimator in ESTIMATORS and not tells_rows_apart(estimator):
        raise CreditInputError(
            f"{len(several)} of {len(rows)} rollouts came as several outputs (such as {several[0]}: "
            f"{rows[several[0]]}), each of which {estimator} would take for a separate rollout: its turns would be "
            "counted from 1 again and compared with the wrong ones",
            fix=(
                "let the agent loop return one output with all turns; or use an estimator that takes several "
                f"({', '.join(filter(tells_rows_apart, ESTIMATORS)) or f'one that names {NODE_PATH}'}); or verl's own "
                "algorithm.adv_estimator=grpo, which gives the last output's advantage to all"
            ),
        )


def refuse_empty_batch(infos: Sequence[Mapping[str, Any]], rows: Sorted, global_steps: int) -> None:
    """Raise ``EmptyBatchError`` if every rollout of a batch was lost, with the commonest reasons.

    verl would stop too, but say only that a mask is empty.

    Args:
        infos: ``reward_extra_info`` of each row.
        rows: Which rows are trained on.
        global_steps: The training step.
    """
    if not infos or rows.kept:
        return
    reasons = Counter(str(infos[row].get(DROPPED_REASON) or "no reason given") for row in rows.dropped)
    listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
    lost = f"all {len(infos)} rollouts of the batch were dropped"
    if rows.alone:
        lost = (
            f"of {len(infos)} rollouts of the batch {len(rows.dropped)} were dropped, and each of the others is the "
            "only one left of its group, so there is nothing to compare it with"
        )
    raise EmptyBatchError(
        f"step {global_steps}: {lost}. Nothing is left to train on: {listed or 'rollouts failed (errors above)'}",
        fix="fix that, then start again: verl continues from its last checkpoint",
    )


def refuse_failed_batch(error: RuntimeError, global_steps: int) -> None:
    """Raise ``EmptyBatchError`` if verl's error means that no rollout of a batch finished."""
    if "no materializable trajectories" in str(error):
        raise EmptyBatchError(
            f"step {global_steps}: all rollouts of the batch failed, nothing is left to train on. Their errors "
            "are in this log (`Error in _run_prompt`)",
            fix=(
                "fix that, then start again: verl continues from its last checkpoint. If it was bad luck with a small "
                "batch (failures now and then, data.train_batch_size of a few questions), "
                "trainer.v1.sampler.sync_refill_failed_groups=True makes verl replace the questions "
                "whose rollouts all failed; if every rollout fails, it would never end"
            ),
        ) from error
