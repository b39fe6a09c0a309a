r"""``mtgrpo_decide_agent``: turns are decided before they are taken (:mod:`verl_mtgrpo.deciders`).

verl's loop writes a turn and goes on with it. Here a decider stands between the two::

    GENERATING          [copy the rollout; let verl's own method write each proposal into a copy of its own]
                        [the decider takes one: its copy becomes the rollout]

So a rollout whose first proposal is always taken is that of :class:`~.agent_loop.TurnToolAgentLoop`, token for token.
Only rows that our rollout workers' manager marked (:func:`~verl_mtgrpo.integration.decide.ask_for_decisions`) are
decided. How the update is told what was decided: :mod:`verl_mtgrpo.integration.decide`.
"""

from __future__ import annotations

import asyncio
import json
import random
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import register
from verl.experimental.agent_loop.tool_agent_loop import AgentData, AgentState
from verl.workers.rollout.replica import TokenOutput

from verl_mtgrpo.deciders import MEASURES, REJECTED, Decider, Decision, Proposal, Scorer, Tally, make_decider
from verl_mtgrpo.deciders.settings import DecideSettings
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.decide import ASKS, DECIDE, RAW_DECIDE, decide_settings
from verl_mtgrpo.integration.rollout.agent_loop import (
    RawContinuationAgentLoop,
    TurnAgentLoopOutput,
    TurnToolAgentLoop,
)
from verl_mtgrpo.integration.rollout.branches import State
from verl_mtgrpo.integration.rollout.calls import not_carried_out
from verl_mtgrpo.integration.rollout.messages import read_message
from verl_mtgrpo.integration.rollout.proxy import Proxy
from verl_mtgrpo.integration.rollout.record import RolloutRecord, new_record, record_of
from verl_mtgrpo.integration.rollout.transcripts import text_of_messages
from verl_mtgrpo.integration.rollout.turn_spans import turn_spans
from verl_mtgrpo.integration.settings import turn_reward_settings
from verl_mtgrpo.rewards import ToolCall, Transcript, Turn
from verl_mtgrpo.rewards.judge_turn import TurnJudge
from verl_mtgrpo.threads import DECODE, apart

_Loop = TurnToolAgentLoop if TYPE_CHECKING else object


@dataclass
class _Rollout:
    """What the decisions of one rollout share."""

    settings: DecideSettings
    decider: Decider
    trained: bool
    of: str
    prompt: Any
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class _After:
    """A rollout with a proposed turn: its state, what verl does next, and times to be counted."""

    state: State
    goes_on: AgentState
    metrics: dict[str, Any]


_running: ContextVar[_Rollout | None] = ContextVar("rollout whose turns are decided", default=None)
_written: ContextVar[str | None] = ContextVar("text that stands for the policy's next turn", default=None)


class _OrWritten(Proxy):
    """verl's LLM client, which gives a text of somebody else where there is one."""

    def __init__(self, server: Any, loop: Any) -> None:
        super().__init__(server)
        self._loop = loop

    async def generate(self, *args: Any, **kwargs: Any) -> Any:
        text = _written.get()
        if text is None:
            return await self._original.generate(*args, **kwargs)
        ids = self._loop.tokenizer.encode(text, add_special_tokens=False)
        end = self._loop.ends.token
        ids = [*ids, end] if end is not None else ids
        log_probs = [0.0] * len(ids) if kwargs["sampling_params"].get("logprobs") else None
        return TokenOutput(token_ids=ids, log_probs=log_probs, stop_reason="completed", extra_fields={})


class Deciding(_Loop):
    """Mixin that makes one of our agent loops decide its turns; it comes before the loop in the bases."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_manager = _OrWritten(self.server_manager, self)

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> Any:
        """Run one rollout, with decisions if the row asks for them."""
        asks = kwargs.get(ASKS)
        if not asks:
            return await super().run(sampling_params, priority=priority, **kwargs)
        settings = decide_settings(self.config)
        of = " ".join(str(kwargs.get(name)) for name in ("global_steps", "index", "session_id"))
        prompt = text_of_messages(kwargs["raw_prompt"])
        rollout = _Rollout(settings, _decider_of(self.config), asks == "training", of, prompt)
        _running.set(rollout)
        try:
            output: TurnAgentLoopOutput = await super().run(sampling_params, priority=priority, **kwargs)
        finally:
            _running.set(None)
        output.extra_fields[MEASURES] = rollout.tally.measures()
        if rollout.tally.penalties:
            output.extra_fields[REJECTED] = rollout.tally.penalties
        return output

    async def _handle_generating_state(
        self, agent_data: AgentData, sampling_params: dict[str, Any], ignore_termination: bool = False
    ) -> AgentState:
        rollout = _running.get()
        if rollout is None:
            return await super()._handle_generating_state(agent_data, sampling_params, ignore_termination)
        moment = DecidedTurn(self, rollout, agent_data, sampling_params)
        await moment.begin()
        return moment.take(await rollout.decider.decide(moment))

    async def write_turn(self, agent_data: AgentData, sampling_params: dict[str, Any]) -> AgentState:
        """Write a turn as the loop would without a decider."""
        return await super()._handle_generating_state(agent_data, sampling_params)

    async def transcript_of(self, agent_data: AgentData, record: RolloutRecord, prompt: Any) -> Transcript:
        """Return the rollout so far. The calls of a turn that was just written are marked as not carried out."""
        mask = agent_data.response_mask
        ids, first = agent_data.prompt_ids, len(agent_data.prompt_ids) - len(mask)
        spans = turn_spans(mask)
        texts = await apart(DECODE, self._decode, ids[:first], ids[first:], spans)
        turns = tuple(
            Turn(text=opened + text, span=span, tool_calls=tuple(calls), opened=opened)
            for (opened, text), span, calls in zip(texts, spans, record.calls, strict=False)
        )
        limits: dict[str, Any] = {
            "max_turns": self.max_assistant_turns or 0,
            "max_parallel_calls": self.max_parallel_calls,
        }
        return Transcript(turns, record.end_reason, prompt, format=self.tool_parser_name, **limits)


class DecidedTurn:
    """The :class:`~verl_mtgrpo.deciders.Moment` of one turn."""

    def __init__(self, loop: Any, rollout: _Rollout, agent_data: AgentData, sampling_params: dict[str, Any]) -> None:
        self._loop, self._rollout, self._data, self._sampling = loop, rollout, agent_data, sampling_params
        self._before = State.of(agent_data, record_of(agent_data))
        self._given: list[Proposal] = []
        self._sent_back: list[Proposal] = []
        turn = len(record_of(agent_data).calls)
        self.rollout = rollout.of
        self.draw = random.Random(f"{rollout.settings.seed} {rollout.of} {turn}")
        self.transcript: Transcript

    async def begin(self) -> None:
        """Read the rollout so far."""
        loop, rollout = self._loop, self._rollout
        self.transcript = await loop.transcript_of(self._data, record_of(self._data), rollout.prompt)

    async def propose(self, count: int) -> list[Proposal]:
        """Return turns of the policy in this state."""
        tasks = [asyncio.create_task(self._one(len(self._given) + number)) for number in range(count)]
        try:
            made = list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
        self._given += made
        return made

    async def write(self, text: str) -> Proposal:
        """Return a turn that somebody else wrote."""
        if self._rollout.trained:
            raise ConfigError(
                "a decider takes turns that the policy did not write, in rollouts that are trained on",
                fix="set trainer.turn.decide.when=validation",
            )
        task = asyncio.create_task(self._one(len(self._given), text))
        self._given.append(await task)
        return self._given[-1]

    async def reject(self, proposal: Proposal, feedback: str) -> bool:
        """Send a proposal back: proposals follow it and the feedback from now on. False if there is no room."""

        async def apply() -> State | None:
            data, record, _ = self._copy(proposal.after.state, 0)
            if data.messages and data.messages[-1].get("role") == "assistant":
                data.messages.pop()  # its calls would need answers
            data.messages.append({"role": "assistant", "content": proposal.turn.text})
            if self._rollout.settings.rejected == "mask":
                start = len(self._before.data["response_mask"])
                data.response_mask[start:] = [0] * (len(data.response_mask) - start)
                if data.response_logprobs:
                    data.response_logprobs[start:] = [0.0] * (len(data.response_logprobs) - start)
                record.calls.pop()
            else:
                record.calls[-1] = list(proposal.turn.tool_calls)
            data.assistant_turns -= 1  # an attempt is no turn of its own to the limits
            if not await read_message(self._loop, data, {"role": "user", "content": feedback}):
                return None
            data.user_turns -= 1
            data.tool_calls, record.written, record.end_reason = [], [], "answered"
            return State.of(data, record)

        after = await asyncio.create_task(apply())
        if after is None:
            return False
        tally = self._rollout.tally
        tally.rejected += 1
        if self._rollout.settings.rejected == "train":
            tally.penalties[len(after.record.calls) - 1] = self._rollout.settings.penalty
            tally.extra_tokens -= proposal.tokens  # it is a turn of the rollout
        self._before = after
        self._sent_back.append(proposal)
        return True

    def take(self, decision: Decision) -> AgentState:
        """Make the rollout the one in which this turn was taken, and return what verl does next."""
        data, taken = self._data, decision.proposal
        after: _After = taken.after
        after.state.restore(data, record_of(data))
        for name in {name for one in self._given for name in one.after.metrics}:
            waited = max(one.after.metrics.get(name) or 0 for one in self._given)
            data.metrics[name] = (data.metrics.get(name) or 0) + waited
        if decision.log_weight and data.response_logprobs and taken.tokens:
            last = max(at for at, generated in enumerate(data.response_mask) if generated)
            data.response_logprobs[last] += decision.log_weight
        tally = self._rollout.tally
        tally.turns += 1
        tally.proposed += len(self._given)
        tally.changed += taken is not self._given[0]
        tally.extra_tokens += sum(one.tokens for one in self._given) - taken.tokens
        tally.log_weight += decision.log_weight
        return after.goes_on

    def _copy(self, state: State, number: int) -> tuple[AgentData, RolloutRecord, dict[str, Any]]:
        """Return a rollout of its own in this state; called in a task of its own, whose record it becomes."""
        data, record = copy(self._data), new_record()
        metrics: dict[str, Any] = {}
        state.restore(data, record)
        data.metrics = metrics
        if number and self._loop.rollout_config.full_determinism:
            data.request_id = f"{data.request_id}-{len(record.calls)}-{number}"  # the engine draws by it
        return data, record, metrics

    async def _one(self, number: int, text: str | None = None) -> Proposal:
        _written.set(text)
        data, record, metrics = self._copy(self._before, number)
        start = len(data.response_mask)
        goes_on = await self._loop.write_turn(data, self._sampling)
        after = _After(State.of(data, record), goes_on, metrics)
        mask = data.response_mask[start:]
        tokens = sum(mask)
        if not tokens:
            return Proposal(Turn("", (start, start)), 0, (), after)
        calls = record.written if goes_on == AgentState.PROCESSING_TOOLS else record.calls[-1]
        record.calls[-1] = [one if isinstance(one, ToolCall) else not_carried_out(one) for one in calls]
        transcript = await self._loop.transcript_of(data, record, self._rollout.prompt)
        log_probs = zip(data.response_logprobs[start:], mask, strict=False)
        return Proposal(transcript.turns[-1], tokens, tuple(one for one, made in log_probs if made), after)


def _decider_of(config: Any) -> Decider:
    """Return the decider of a run, which is made once per process."""
    return _made(
        decide_settings(config).model_dump_json(),
        turn_reward_settings(config.get("reward")).judge.model_dump_json(),
        OmegaConf.to_yaml(config),
    )


@lru_cache(maxsize=4)
def _made(settings: str, judge: str, secret: str) -> Decider:
    from verl_mtgrpo.rewards.judge_client import JudgeSettings

    def asks() -> Scorer:
        return TurnJudge(JudgeSettings.model_validate_json(judge), secret).score

    return make_decider(DecideSettings(**json.loads(settings)), asks)


class DecideAgentLoop(Deciding, TurnToolAgentLoop):
    """``mtgrpo_tool_agent`` whose turns are decided."""


class RawDecideAgentLoop(Deciding, RawContinuationAgentLoop):
    """``mtgrpo_raw_agent`` whose turns are decided."""


register(DECIDE)(DecideAgentLoop)
register(RAW_DECIDE)(RawDecideAgentLoop)
