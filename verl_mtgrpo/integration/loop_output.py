"""What our agent loops give to verl: rewards on the tokens that earned them, and the transcript where it is read."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import torch
from pydantic import PrivateAttr
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

from verl_mtgrpo.errors import TranscriptError
from verl_mtgrpo.integration.transcripts import COLUMN, Destination, pack, to_json
from verl_mtgrpo.rewards import DROPPED, TRANSCRIPT, TURN_REWARDS


class TurnAgentLoopOutput(AgentLoopOutput):
    """Agent loop output whose rewards lie on the last generated token of each turn."""

    _destination: Destination = PrivateAttr("info")

    def as_dict(self) -> dict[str, Any]:
        """As verl's, with ``rm_scores`` written per turn when the reward manager gave turn rewards.

        The transcript has been read by then: it goes where :mod:`.transcripts` says.

        Raises:
            TranscriptError: there is not exactly one reward per turn of ``response_mask``.
        """
        info = self.extra_fields.get("reward_extra_info") or {}
        rewards = info.get(TURN_REWARDS)
        if rewards is None or self.reward_score is None:
            return super().as_dict()
        score, fields = self.reward_score, self.extra_fields
        # verl copies extra_fields deeply, which costs more for a transcript than all the rest.
        self.reward_score, self.extra_fields = None, {k: v for k, v in fields.items() if k != TRANSCRIPT}
        try:
            output = super().as_dict()
        finally:
            self.reward_score, self.extra_fields = score, fields
        output.pop("reward_score", None)
        output["rm_scores"] = place_rewards(json.loads(rewards), self.response_mask)
        if info.get(DROPPED):  # no generated token is left: it enters no statistic and no loss
            output["response_mask"] = torch.zeros_like(output["response_mask"])
        if TRANSCRIPT in fields and self._destination == "column":
            output[COLUMN] = pack(fields[TRANSCRIPT])
        elif TRANSCRIPT in fields and self._destination == "info":
            output["extra_fields"]["reward_extra_info"][TRANSCRIPT] = to_json(fields[TRANSCRIPT])
        return output


def turn_spans(response_mask: list[int]) -> list[tuple[int, int]]:
    """Half-open token ranges of the runs of 1 in one rollout's mask."""
    spans, position = [], 0
    for value, run in groupby(response_mask):
        length = sum(1 for _ in run)
        if value:
            spans.append((position, position + length))
        position += length
    return spans


def place_rewards(rewards: list[float], response_mask: list[int]) -> torch.Tensor:
    """``rm_scores`` of one rollout, ``(T,)`` float32: each turn's reward on its last token, 0 elsewhere."""
    spans = turn_spans(response_mask)
    if len(spans) != len(rewards):
        raise TranscriptError(
            f"got {len(rewards)} turn rewards for {len(spans)} turns in response_mask; the reward manager must "
            "give one reward per turn of the transcript"
        )
    scores = torch.zeros(len(response_mask), dtype=torch.float32)
    for (_, end), reward in zip(spans, rewards, strict=True):
        scores[end - 1] = reward
    return scores
