"""The reward manager ``mtgrpo``: scores a rollout's transcript, one reward per turn and an outcome.

It gives verl the total as ``reward_score`` and everything else as ``reward_extra_info``: scalars become
validation metrics, strings go into validation dumps, and ``turn_rewards`` is what the agent loop places on
tokens. Which rewards: ``reward.turn.preset``; where they are paid: ``reward.turn.pay``.
"""

from __future__ import annotations

import json
from typing import Any

from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from verl_mtgrpo.errors import ConfigError, TranscriptError
from verl_mtgrpo.integration.preflight import check_run
from verl_mtgrpo.integration.settings import turn_reward_settings
from verl_mtgrpo.rewards import TRANSCRIPT, TURN_REWARDS, Transcript, TurnRewards, load_preset, pay


@register("mtgrpo")
class TurnRewardManager(RewardManagerBase):
    """``reward.reward_manager.name=mtgrpo``; needs the agent loop ``mtgrpo_tool_agent``."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any = None, **_: Any):
        """Read and check the settings; runs once per reward worker, before the first rollout."""
        super().__init__(config, tokenizer, compute_score)
        check_run(config)
        self.settings = turn_reward_settings(config.reward)
        self.reward_function = load_preset(self.settings.preset)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score one rollout (the last output of it, if the agent loop made several)."""
        row = data[-1:][0].non_tensor_batch
        fields = row.get("tool_extra_fields")
        if not isinstance(fields, dict) or TRANSCRIPT not in fields:
            raise TranscriptError(
                "this rollout carries no transcript; the reward manager mtgrpo scores rollouts of the agent loop "
                "mtgrpo_tool_agent: set actor_rollout_ref.rollout.agent.default_agent_loop=mtgrpo_tool_agent"
            )
        transcript = Transcript.from_dict(fields[TRANSCRIPT])
        rewards = self.reward_function(transcript, row["reward_model"]["ground_truth"])
        paid = pay(rewards, len(transcript.turns), self.settings.pay)
        return {
            "reward_score": float(sum(paid)),
            "reward_extra_info": {
                **metrics(transcript, rewards, paid),
                "uid": str(row.get("uid", "")),
                TURN_REWARDS: json.dumps(paid),
                TRANSCRIPT: json.dumps(transcript.to_dict(), default=str),
            },
        }

    @classmethod
    def assemble_rm_scores(cls, data: DataProto, scores: list[float]) -> Any:
        """verl's path for colocated reward models, which has room for one number per rollout only."""
        raise ConfigError(
            "the reward manager mtgrpo cannot pay turn rewards when verl scores after sampling (a colocated reward "
            "model); set reward.reward_model.enable_resource_pool=True or reward.reward_model.enable=False"
        )


def metrics(transcript: Transcript, rewards: TurnRewards, paid: list[float]) -> dict[str, float | None]:
    """Named numbers of one rollout: the preset's components, and per turn what was paid."""
    return {
        "turn/count": float(len(transcript.turns)),
        **{f"turn/{k}/reward": reward for k, reward in enumerate(paid, start=1)},
        "outcome/reward": rewards.outcome,
        "outcome/truncated": float(transcript.end_reason == "response_length"),
        **rewards.components,
    }
