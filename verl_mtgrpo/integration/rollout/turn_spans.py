"""Find the turns of a rollout as runs of 1 in its mask, and place rewards on their last tokens; without verl."""

from __future__ import annotations

from itertools import groupby

import torch

from verl_mtgrpo.errors import TranscriptError


def turn_spans(response_mask: list[int]) -> list[tuple[int, int]]:
    """Return the half-open token ranges of the runs of 1 in one rollout's mask."""
    spans, position = [], 0
    for value, run in groupby(response_mask):
        length = sum(1 for _ in run)
        if value:
            spans.append((position, position + length))
        position += length
    return spans


def place_rewards(rewards: list[float], response_mask: list[int]) -> torch.Tensor:
    """Return ``rm_scores`` of one rollout, ``(T,)`` float32: each turn's reward on its last token, 0 elsewhere."""
    spans = turn_spans(response_mask)
    if len(spans) != len(rewards):
        raise TranscriptError(
            f"got {len(rewards)} turn rewards for {len(spans)} turns in response_mask",
            fix="the reward manager must give one reward per turn of the transcript",
        )
    scores = torch.zeros(len(response_mask), dtype=torch.float32)
    for (_, end), reward in zip(spans, rewards, strict=True):
        scores[end - 1] = reward
    return scores
