"""The reward manager ``mtgrpo``: scores a rollout's transcript, one reward per turn and an outcome.

It gives verl the total as ``reward_score`` and everything else as ``reward_extra_info``: scalars become
validation metrics, strings go into validation dumps, ``turn_rewards`` is what the agent loop places on tokens, and
``turn_pattern`` what ``algorithm.filter_groups`` may compare. Which rewards: ``reward.turn.preset``; where they are
paid: ``reward.turn.pay``.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.utils.reward_score import default_compute_score

from verl_mtgrpo.errors import ConfigError, DropRollout, TranscriptError
from verl_mtgrpo.integration.preflight import check_run, check_tokenizer
from verl_mtgrpo.integration.settings import TurnRewardSettings, turn_reward_settings
from verl_mtgrpo.integration.several import mean_over_nodes, with_entries
from verl_mtgrpo.integration.verl_score import (
    ask,
    model_text,
    read_score,
    response_text,
    score_arguments,
    with_score,
)
from verl_mtgrpo.rewards import (
    DROPPED,
    DROPPED_REASON,
    FAILED,
    FAILURE,
    JUDGES,
    NO_TOKENS,
    NODE_PATH,
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
from verl_mtgrpo.rewards.pattern import TURN_PATTERN, turn_pattern
from verl_mtgrpo.rewards.presets import RewardFunction, check_kind, check_numbers

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
        reward_model_tokenizer: Any = None,
        **_: Any,
    ):
        """Read and check the settings; runs once per reward worker, before the first rollout."""
        super().__init__(config, tokenizer, compute_score)
        check_run(config)
        check_tokenizer(tokenizer)
        self.settings = turn_reward_settings(config.reward)
        self.own_function = bool(OmegaConf.select(config, "reward.custom_reward_function.path"))
        self.reward_function = _reward_function(self.settings, reward_router_address, config)
        self.router = {"reward_router_address": reward_router_address, "reward_model_tokenizer": reward_model_tokenizer}
        filtering = config.algorithm.get("filter_groups") or {}
        self.filter_metric = filtering.get("metric") if filtering.get("enable") else None

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score a session: one rollout, or several outputs, each of which is scored.

        Outputs of a tree share turns, which earn the same in all of them (:func:`.several.mean_over_nodes`). Of outputs
        without a transcript of their own the last one stands for the session.
        """
        items = [data[row] for row in range(len(data))]
        if not all(_fields(item).get(TRANSCRIPT) for item in items):
            items = items[-1:]
        scores = await asyncio.gather(*(self._score(item) for item in items))
        paths = [_fields(item).get(NODE_PATH) or "" for item in items]
        sharing = ["" if score.reason else path for score, path in zip(scores, paths, strict=True)]
        shared = mean_over_nodes([score.paid for score in scores], sharing)
        return with_entries([self._result(*one) for one in zip(items, scores, shared, strict=True)])

    async def _score(self, item: Any) -> _Score:
        transcript = _transcript(item)
        try:
            refuse_unfinished(transcript, _fields(item).get(FAILURE))
            rewards = charge_repeats(transcript, await self._rewards(transcript, item), self.settings.repeat_penalty)
            return _Score(rewards, pay(rewards, len(transcript.turns), self.settings.pay), "")
        except DropRollout as error:
            logger.warning("a rollout is left out of the update: %s", error)
            return _Score(None, [0.0] * len(transcript.turns), str(error))

    def _result(self, item: Any, score: _Score, paid: list[float]) -> dict[str, Any]:
        """Return what verl gets of an output."""
        row, transcript = item.non_tensor_batch, _transcript(item)
        if score.rewards is None:
            measured = self._measures_of_a_dropped_rollout()
        else:
            measured = metrics(transcript, score.rewards, paid)
        return {
            "reward_score": float(sum(paid)),
            "reward_extra_info": {
                **measured,
                **tool_trouble(transcript),
                "uid": str(row.get("uid", "")),
                # verl's validation dump has neither; `mtgrpo eval` sorts and pairs by them. Strings become no metric.
                "data_source": str(row.get("data_source") or ""),
                "question_id": _question_id(row.get("extra_info")),
                DROPPED_REASON: score.reason,
                TURN_REWARDS: json.dumps(paid),
                # As text, which verl's group filtering reads as a number and no average of verl's or ours takes.
                TURN_PATTERN: str(math.nan if score.reason else turn_pattern(paid)),
            },
        }

    def _measures_of_a_dropped_rollout(self) -> dict[str, float | None]:
        # verl's group filtering wants its metric of every rollout; NaN is equal to nothing, so a group with a dropped
        # rollout is never filtered as one whose rollouts all earned the same.
        unknown = {self.filter_metric: math.nan} if self.filter_metric not in (None, "reward") else {}
        return {**unknown, DROPPED: 1.0}

    async def _rewards(self, transcript: Transcript, item: Any) -> TurnRewards:
        rewards = self.reward_function(transcript, item.non_tensor_batch["reward_model"]["ground_truth"])
        if inspect.isawaitable(rewards):
            rewards = await rewards
        rewards = check_kind(rewards, self.settings.preset)
        rewards = check_numbers(rewards, len(transcript.turns), self.settings.preset)
        if self.settings.outcome == "compute_score":
            return with_score(rewards, *await self._verls_score(transcript, item))
        return rewards

    async def _verls_score(self, transcript: Transcript, item: Any) -> tuple[float, dict[str, Any]]:
        """Return the outcome from verl's ``compute_score``, called as verl's own manager calls it."""
        if self.settings.solution == "response":
            solution = response_text(item, self.tokenizer)
        else:
            solution = model_text(transcript)
        arguments = score_arguments(item.non_tensor_batch, solution, own=self.own_function)
        if self.router["reward_router_address"] is not None:
            arguments |= self.router
        return read_score(await ask(self.compute_score or default_compute_score, arguments))

    @classmethod
    def assemble_rm_scores(cls, data: DataProto, scores: list[float]) -> Any:
        """Refuse verl's path for colocated reward models, which returns only one number per rollout."""
        raise ConfigError(
            "the reward manager mtgrpo cannot pay turn rewards when verl scores after sampling (a colocated reward "
            "model)",
            fix="set reward.reward_model.enable_resource_pool=True or reward.reward_model.enable=False",
        )


def _reward_function(settings: TurnRewardSettings, router: str | None, config: Any) -> RewardFunction:
    """Return the preset; the judge uses its endpoint or, without one, verl's reward-model router.

    verl's servers know the reward model by its path. The mark around what a judge is shown is made from the run's whole
    config: all reward workers have the same one, and neither the policy nor a page that it reads knows it.
    """
    if settings.preset not in JUDGES:
        return load_preset(settings.preset)
    judge = settings.judge
    if router and not judge.base_url:
        model = judge.model or str(config.reward.reward_model.model_path)
        judge = judge.model_copy(update={"base_url": f"http://{router}/v1", "model": model})
    secret = OmegaConf.to_yaml(config)
    return Judge(judge, secret) if settings.preset == Judge.preset else PaperJudge(judge, settings.pay, secret)


@dataclass(frozen=True)
class _Score:
    """Rewards of an output, what each turn is paid, and why it is dropped; without rewards if it is."""

    rewards: TurnRewards | None
    paid: list[float]
    reason: str


def _fields(item: Any) -> Mapping[str, Any]:
    """Return what the agent loop says of an output beside its tokens."""
    fields = item.non_tensor_batch.get("tool_extra_fields")
    return fields if isinstance(fields, dict) else {}


def _transcript(item: Any) -> Transcript:
    transcript = _fields(item).get(TRANSCRIPT)
    if not isinstance(transcript, Transcript):
        raise TranscriptError(
            f"extra_fields['{TRANSCRIPT}'] of a rollout is a {type(transcript).__name__}",
            expected="a verl_mtgrpo.rewards.Transcript",
            fix=(
                "the reward manager mtgrpo scores rollouts of the agent loop mtgrpo_tool_agent: set "
                "actor_rollout_ref.rollout.agent.default_agent_loop=mtgrpo_tool_agent"
            ),
        )
    return transcript


def _question_id(extra_info: Any) -> str:
    """Return the question's id in its set, the same in every run, unlike verl's ``uid``; empty if unknown."""
    known = extra_info if isinstance(extra_info, Mapping) else {}
    return str(known.get("id", known.get("index", "")))


def refuse_unfinished(transcript: Transcript, failure: str | None = None) -> None:
    """Raise ``DropRollout`` for a rollout that its search or server ended by failing: the policy is not to blame.

    Args:
        transcript: The rollout.
        failure: The error that it raised, if it is a branch of a tree that did.
    """
    if transcript.end_reason == FAILED:
        raise DropRollout(f"this branch of its tree failed: {failure}")
    if transcript.end_reason == NO_TOKENS:
        raise DropRollout(
            f"the rollout server returned no token for turn {len(transcript.turns) + 1} (an aborted request, or "
            "SGLang's ids and log-probs differed in number; see the server's log)"
        )
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
