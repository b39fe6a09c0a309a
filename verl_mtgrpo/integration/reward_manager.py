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
from dataclasses import replace
from functools import partial
from typing import Any

from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.utils.reward_score import default_compute_score

from verl_mtgrpo.deciders import MEASURES, REJECTED, charge_rejected
from verl_mtgrpo.errors import ConfigError, DropRollout, TranscriptError
from verl_mtgrpo.integration.preflight import check_run, check_tokenizer
from verl_mtgrpo.integration.roles import cast_of, plays_roles
from verl_mtgrpo.integration.scores import Score, score_roles
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
    BROKEN,
    DROPPED,
    DROPPED_REASON,
    FAILED,
    FAILURE,
    JUDGES,
    NO_TOKENS,
    NODE_PATH,
    OUTAGE,
    TRANSCRIPT,
    TURN_NOTES,
    TURN_REWARDS,
    Transcript,
    TurnRewards,
    load_preset,
    pay,
)
from verl_mtgrpo.rewards.any_tool import tool_use
from verl_mtgrpo.rewards.judge import Judge
from verl_mtgrpo.rewards.judge_paper import PaperJudge
from verl_mtgrpo.rewards.measures import charge_repeats, tool_trouble
from verl_mtgrpo.rewards.measures import tool_use as measure_tools
from verl_mtgrpo.rewards.pattern import TURN_PATTERN, turn_pattern
from verl_mtgrpo.rewards.presets import RewardFunction, check_kind, check_numbers
from verl_mtgrpo.roles import ANSWERING, CONVERSATION, FED_BY, OUTPUT_ID, ROLE, Cast

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
        self.cast = cast_of(config) if plays_roles(config) else None
        self.own_functions: dict[str, RewardFunction] = {}
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
        if self.cast is not None and all(_fields(item).get(ROLE) for item in items):
            scores = await self._score_roles(items, self.cast)
            return with_entries([self._result(item, one, one.paid) for item, one in zip(items, scores, strict=True)])
        scores = await asyncio.gather(*(self._score(item) for item in items))
        paths = [_fields(item).get(NODE_PATH) or "" for item in items]
        sharing = ["" if score.reason else path for score, path in zip(scores, paths, strict=True)]
        shared = mean_over_nodes([score.paid for score in scores], sharing)
        return with_entries([self._result(*one) for one in zip(items, scores, shared, strict=True)])

    async def _score_roles(self, items: list[Any], cast: Cast) -> list[Score]:
        """Score the outputs of a session's roles (:mod:`.scores`)."""

        async def score(row: int, own: str, scored: bool) -> Score:
            transcript = _transcript(items[row])
            blank = TurnRewards((0.0,) * len(transcript.turns), 0.0)
            return await self._score(items[row], None if scored else blank, own)

        transcripts = [_transcript(item) for item in items]
        return await score_roles([_fields(item) for item in items], transcripts, cast, score, self.settings.pay)

    async def _score(self, item: Any, rewards: TurnRewards | None = None, own: str = "") -> Score:
        """Score an output by itself.

        Args:
            item: The row.
            rewards: What it is paid if it is not lost; None asks the reward function.
            own: The reward function of its turns, which replaces what is said of them; empty for none.
        """
        transcript = _transcript(item)
        try:
            refuse_unfinished(transcript, _fields(item).get(FAILURE))
            rewards = await self._rewards(transcript, item) if rewards is None else rewards
            if own:
                of_turns = await self._ask(own, self._own_function(own), transcript, item)
                components = {**rewards.components, **of_turns.components}
                rewards = replace(of_turns, outcome=rewards.outcome, components=components)
            rewards = charge_repeats(transcript, rewards, self.settings.repeat_penalty)
            rewards = charge_rejected(rewards, _fields(item).get(REJECTED) or {})
            return Score(rewards, pay(rewards, len(transcript.turns), self.settings.pay), "")
        except DropRollout as error:
            logger.warning("a rollout is left out of the update: %s", error)
            return Score(None, [0.0] * len(transcript.turns), str(error))

    def _result(self, item: Any, score: Score, paid: list[float]) -> dict[str, Any]:
        """Return what verl gets of an output."""
        row, transcript = item.non_tensor_batch, _transcript(item)
        if score.rewards is None:
            measured = self._measures_of_a_dropped_rollout()
        else:
            measured = metrics(transcript, score.rewards, paid)
        if not score.scored:
            measured.pop("outcome/reward", None)
        return {
            "reward_score": float(sum(paid)),
            "reward_extra_info": {
                **measured,
                **score.measured,
                **tool_trouble(transcript),
                **(_fields(item).get(MEASURES) or {}),
                "uid": str(row.get("uid", "")),
                # verl's validation dump has neither; `mtgrpo eval` sorts and pairs by them. Strings become no metric.
                "data_source": str(row.get("data_source") or ""),
                "question_id": _question_id(row.get("extra_info")),
                DROPPED_REASON: score.reason,
                TURN_REWARDS: json.dumps(paid),
                # As text, which verl's group filtering reads as a number and no average of verl's or ours takes.
                TURN_PATTERN: str(math.nan if score.reason else turn_pattern(paid)),
                **_notes(score.rewards),
                **_of_role(_fields(item), self.cast),
            },
        }

    def _measures_of_a_dropped_rollout(self) -> dict[str, float | None]:
        # verl's group filtering wants its metric of every rollout; NaN is equal to nothing, so a group with a dropped
        # rollout is never filtered as one whose rollouts all earned the same.
        unknown = {self.filter_metric: math.nan} if self.filter_metric not in (None, "reward") else {}
        return {**unknown, DROPPED: 1.0}

    async def _rewards(self, transcript: Transcript, item: Any) -> TurnRewards:
        rewards = await self._ask(self.settings.preset, self.reward_function, transcript, item)
        if self.settings.outcome == "compute_score":
            return with_score(rewards, *await self._verls_score(transcript, item))
        return rewards

    async def _ask(self, name: str, function: RewardFunction, transcript: Transcript, item: Any) -> TurnRewards:
        """Return what a reward function says, checked."""
        rewards = function(transcript, item.non_tensor_batch["reward_model"]["ground_truth"])
        if inspect.isawaitable(rewards):
            rewards = await rewards
        return check_numbers(check_kind(rewards, name), len(transcript.turns), name)

    def _own_function(self, name: str) -> RewardFunction:
        """Return the reward function of a role's turns."""
        if name not in self.own_functions:
            settings = self.settings.model_copy(update={"preset": name})
            self.own_functions[name] = _reward_function(settings, self.router["reward_router_address"], self.config)
        return self.own_functions[name]

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
    """Return the preset with its settings; the judge uses its endpoint or else verl's reward-model router.

    verl's servers know the reward model by its path. The mark around what a judge is shown is made from the run's whole
    config: all reward workers have the same one, and neither the policy nor a page that it reads knows it.
    """
    if settings.preset == "tool_use":
        return partial(tool_use, **dict(settings.tool_use), compare=settings.outcome == "preset")
    if settings.preset not in JUDGES:
        return load_preset(settings.preset)
    judge = settings.judge
    if router and not judge.base_url:
        model = judge.model or str(config.reward.reward_model.model_path)
        judge = judge.model_copy(update={"base_url": f"http://{router}/v1", "model": model})
    secret = OmegaConf.to_yaml(config)
    return Judge(judge, secret) if settings.preset == Judge.preset else PaperJudge(judge, settings.pay, secret)


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
    """Raise ``DropRollout`` for a rollout that its search, server or environment ended: the policy is not to blame.

    Args:
        transcript: The rollout.
        failure: The error that it raised, if it is a branch of a tree that did, or that its environment raised.
    """
    if transcript.end_reason == BROKEN:
        raise DropRollout(f"the environment failed: {failure}")
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


def _of_role(fields: Mapping[str, Any], cast: Cast | None) -> dict[str, str]:
    """Return what dumps say of an output of a role, as text: it becomes no metric."""
    if cast is None or not fields.get(ROLE):
        return {}
    said = {name: str(fields.get(name) or "") for name in (ROLE, OUTPUT_ID, FED_BY, CONVERSATION)}
    return {**said, ANSWERING: "1" if said[ROLE] == cast.answers else ""}


def _notes(rewards: TurnRewards | None) -> dict[str, str]:
    """Return what the reward function says of its rewards, as text: it becomes no metric."""
    if rewards is None or not (rewards.notes or rewards.outcome_note):
        return {}
    said = {"turns": rewards.notes or ("",) * len(rewards.turns), "outcome": rewards.outcome_note}
    return {TURN_NOTES: json.dumps(said)}


def metrics(transcript: Transcript, rewards: TurnRewards, paid: list[float]) -> dict[str, float | None]:
    """Named numbers of one rollout: the preset's components, and per turn what was paid."""
    return {
        "turn/count": float(len(transcript.turns)),
        **{f"turn/{k}/reward": reward for k, reward in enumerate(paid, start=1)},
        "outcome/reward": rewards.outcome,
        DROPPED: 0.0,
        "outcome/truncated": float(transcript.end_reason == "response_length"),
        **measure_tools(transcript),
        **rewards.components,
    }
