"""What verl stores of a rollout: its own fields, with the reward of each turn on that turn's last generated token."""

from __future__ import annotations

import json
from typing import Any

import torch
from pydantic import PrivateAttr
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

from verl_mtgrpo.integration.rollout.transcripts import COLUMN, Destination, pack, to_json
from verl_mtgrpo.integration.rollout.turn_spans import place_rewards
from verl_mtgrpo.rewards import DROPPED, TRANSCRIPT, TURN_REWARDS


class TurnAgentLoopOutput(AgentLoopOutput):
    """Agent loop output whose rewards lie on the last generated token of each turn.

    ``extra_fields["transcript"]`` is the rollout's :class:`~verl_mtgrpo.rewards.Transcript`, for the reward manager.
    """

    _destination: Destination = PrivateAttr("info")

    def as_dict(self) -> dict[str, Any]:
        """Return verl's dict, with ``rm_scores`` written per turn when the reward manager gave turn rewards.

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
            output["extra_fields"]["reward_extra_info"][TRANSCRIPT] = to_json(fields[TRANSCRIPT].to_dict())
        return output
