"""The reward manager ``mtgrpo``: scores a rollout's transcript, one reward per turn and an outcome.

It gives verl the total as ``reward_score`` and everything else as ``reward_extra_info``: scalars become
validation metrics, strings go into validation dumps, and ``turn_rewards`` is what the agent loop places on
tokens. Which rewards: ``reward.turn.preset``; where they are paid: ``reward.turn.pay``.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.utils.reward_score import default_compute_score

from verl_mtgrpo.errors import ConfigError, DropRollout, TranscriptError
from verl_mtgrpo.integration.data_sources import as_verl_knows_it
from verl_mtgrpo.integration.preflight import check_run, check_tokenizer
from verl_mtgrpo.integration.settings import TurnRewardSettings, turn_reward_settings
from verl_mtgrpo.rewards import (
    DROPPED,
    DROPPED_REASON,
    JUDGES,
    OUTAGE,
    TRANSCRIPT,
    TURN_REWARDS,
    Transcript,
    TurnRewards,
    load_preset,
    pay,
)
from verl_mtgrpo.rewards.judge import Judge
from verl_mtgrpo.rewards.judge_paper import PaperJudge
from verl_mtgrpo.rewards.measures import charge_repeats, tool_trouble, tool_use
from verl_mtgrpo.rewards.presets import RewardFunction

logger = logging.getLogger(__name__)


@register("mtgrpo")
class TurnRewardManager(RewardManagerBase):
    """``reward.reward_manager.name=mtgrpo``; needs the agent loop ``mtgrpo_tool_agent``."""

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any = None,
        reward_router_address: str | None = None,
        **_: Any,
    ):
        """Read and check the settings; runs once per reward worker, before the first rollout."""
        super().__init__(config, tokenizer, compute_score)
        check_run(config)
        check_tokenizer(tokenizer)
        self.settings = turn_reward_settings(config.reward)
        self.own_function = bool(OmegaConf.select(config, "reward.custom_reward_function.path"))
        self.reward_function = _reward_function(self.settings, reward_router_address, config.reward)
        filtering = config.algorithm.get("filter_groups") or {}
        self.filter_metric = filtering.get("metric") if filtering.get("enable") else None

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score one rollout (the last output of it, if the agent loop made several)."""
        row = data[-1:][0].non_tensor_batch
        fields = row.get("tool_extra_fields")
        if not isinstance(fields, dict) or TRANSCRIPT not in fields:
            raise TranscriptError(
                "this rollout carries no transcript; the reward manager mtgrpo scores rollouts of the agent loop "
                "mtgrpo_tool_agent: set actor_rollout_ref.rollout.agent.default_agent_loop=mtgrpo_tool_agent"
            )
        transcript, reason = Transcript.from_dict(fields[TRANSCRIPT]), ""
        try:
            refuse_outage(transcript)
            rewards = charge_repeats(transcript, await self._rewards(transcript, row), self.settings.repeat_penalty)
            paid = pay(rewards, len(transcript.turns), self.settings.pay)
            measured = metrics(transcript, rewards, paid)
        except DropRollout as error:
            reason = str(error)
            logger.warning("a rollout is left out of the update: %s", reason)
            paid, measured = [0.0] * len(transcript.turns), self._measures_of_a_dropped_rollout()
        return {
            "reward_score": float(sum(paid)),
            "reward_extra_info": {
                **measured,
                **tool_trouble(transcript),
                "uid": str(row.get("uid", "")),
                # verl's validation dump has neither; `mtgrpo eval` sorts and pairs by them. Strings become no metric.
                "data_source": str(row.get("data_source") or ""),
                "question_id": _question_id(row.get("extra_info")),
                DROPPED_REASON: reason,
                TURN_REWARDS: json.dumps(paid),
                TRANSCRIPT: json.dumps(transcript.to_dict(), default=str),
            },
        }

    def _measures_of_a_dropped_rollout(self) -> dict[str, float | None]:
        # verl's group filtering wants its metric of every rollout; NaN is equal to nothing, so a group with a dropped
        # rollout is never filtered as one whose rollouts all earned the same.
        unknown = {self.filter_metric: math.nan} if self.filter_metric not in (None, "reward") else {}
        return {**unknown, DROPPED: 1.0}

    async def _rewards(self, transcript: Transcript, row: Mapping[str, Any]) -> TurnRewards:
        ground_truth = row["reward_model"]["ground_truth"]
        rewards = self.reward_function(transcript, ground_truth)
        if inspect.isawaitable(rewards):
            rewards = await rewards
        if not isinstance(rewards, TurnRewards):
            raise TranscriptError(
                f"the reward function {self.settings.preset} returned {type(rewards).__name__}, expected "
                "verl_mtgrpo.rewards.TurnRewards (a reward for each turn, the outcome, named components)"
            )
        if self.settings.outcome == "compute_score":
            return await self._with_verls_score(rewards, transcript, row)
        return rewards

    async def _with_verls_score(
        self, rewards: TurnRewards, transcript: Transcript, row: Mapping[str, Any]
    ) -> TurnRewards:
        """The outcome from verl's ``compute_score``, called as verl's own manager calls it, in a thread if it is sync.

        ``solution_str`` is what the model wrote, its turns joined by newlines: tool results are left out, so
        that an answer in a result is not taken for the model's. A function of the user's own is given the row's own
        ``data_source`` and ground truth, verl's those that it knows (:func:`~.data_sources.as_verl_knows_it`).
        """
        # "unknown" is verl's word in its metrics for rows without one
        data_source, ground_truth = row.get("data_source") or "unknown", row["reward_model"]["ground_truth"]
        if not self.own_function:
            data_source, ground_truth = as_verl_knows_it(data_source, ground_truth)
        arguments = {
            "data_source": data_source,
            "solution_str": "\n".join(turn.text for turn in transcript.turns),
            "ground_truth": ground_truth,
            "extra_info": {**(row.get("extra_info") or {}), "num_turns": row.get("__num_turns__")},
        }
        function = self.compute_score or default_compute_score
        if inspect.iscoroutinefunction(function):
            result = await function(**arguments)
        else:
            result = await asyncio.to_thread(function, **arguments)
        score, parts = (result["score"], result) if isinstance(result, Mapping) else (result, {"score": result})
        named = {f"outcome/{name}": value for name, value in parts.items()}
        return replace(rewards, outcome=float(score), components={**rewards.components, **named})

    @classmethod
    def assemble_rm_scores(cls, data: DataProto, scores: list[float]) -> Any:
        """verl's path for colocated reward models, which has room for one number per rollout only."""
        raise ConfigError(
            "the reward manager mtgrpo cannot pay turn rewards when verl scores after sampling (a colocated reward "
            "model); set reward.reward_model.enable_resource_pool=True or reward.reward_model.enable=False"
        )


def _reward_function(settings: TurnRewardSettings, router: str | None, reward: Any) -> RewardFunction:
    """The preset; the judge is asked at its own endpoint or, without one, at verl's reward-model router.

    verl's servers know the reward model by its path.
    """
    if settings.preset not in JUDGES:
        return load_preset(settings.preset)
    judge = settings.judge
    if router and not judge.base_url:
        model = judge.model or str(reward.reward_model.model_path)
        judge = replace(judge, base_url=f"http://{router}/v1", model=model)
    return Judge(judge) if settings.preset == Judge.preset else PaperJudge(judge, settings.pay)


def _question_id(extra_info: Any) -> str:
    """The question's id in its set: the same in every run, other than verl's ``uid``; empty without one."""
    known = extra_info if isinstance(extra_info, Mapping) else {}
    return str(known.get("id", known.get("index", "")))


def refuse_outage(transcript: Transcript) -> None:
    """Raise ``DropRollout`` for a rollout that ended because its search was down: the policy is not to blame."""
    if transcript.end_reason == OUTAGE:
        calls = [call for turn in transcript.turns for call in turn.tool_calls if call.error]
        raise DropRollout(calls[-1].error if calls else "the search was down")


def metrics(transcript: Transcript, rewards: TurnRewards, paid: list[float]) -> dict[str, float | None]:
    """Named numbers of one rollout: the preset's components, and per turn what was paid."""
    return {
        "turn/count": float(len(transcript.turns)),
        **{f"turn/{k}/reward": reward for k, reward in enumerate(paid, start=1)},
        "outcome/reward": rewards.outcome,
        DROPPED: 0.0,
        "outcome/truncated": float(transcript.end_reason == "response_length"),
        **tool_use(transcript),
        **rewards.components,
    }
