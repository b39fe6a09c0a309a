"""Measure what dense rewards added to turns."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from verl_mtgrpo.credit.turns import Turns


def dense_metrics(turns: Turns, parts: Mapping[str, Tensor], probe_s: float | None = None) -> dict[str, float]:
    """Return ``turn/<k>/dense/<name>``: what a dense reward added to turn k, on average over the rollouts that have it.

    Args:
        turns: The turns of a batch.
        parts: For each dense reward what it added to each turn, ``(B, K)``, 0 where there is no turn.
        probe_s: How many seconds it took to measure the gold answer (``timing_s/probe``); None if nothing asked for it.
    """
    count_K = turns.alive_BK.sum(0)
    means = {name: (reward_BK.sum(0) / count_K).tolist() for name, reward_BK in parts.items()}
    named = {f"turn/{k}/dense/{name}": value for name, row in means.items() for k, value in enumerate(row, start=1)}
    return named if probe_s is None else {**named, "timing_s/probe": probe_s}
