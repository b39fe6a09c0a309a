r"""``mtgrpo_env_agent``: each turn of the model is a step in an environment.

verl's loop for one rollout is changed in three places, and everything else of :class:`~.agent_loop.TurnToolAgentLoop`
stays::

    PENDING             [before it: reset the environment; its first observation joins the prompt]
    GENERATING          [every turn is an action, so none ends the rollout; a limit does, and then the turn is played]
    PROCESSING_TOOLS    [take the step; append the observation as a message, in tokens, mask 0]

Nothing is tokenised again: the model's tokens are kept, and observations come in through verl's own
``ct_merge_context_msg``. The rollout ends when the environment says so, at ``max_assistant_turns``, or when the
response is full. The last turn is played too, so that it earns its reward, but nobody reads the observation after it,
so that is left out. A turn that the end of the response cut off is no action, and is not played.

Each step is recorded as a call of the tool ``step`` with its reward, so that metrics, dumps and reports show steps as
they show tool calls. An environment that raises or hangs costs one rollout: it ends, the reward manager drops it and
says why (``outcome/dropped``, ``tool/errors/environment_error``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from verl.experimental.agent_loop.agent_loop import register
from verl.experimental.agent_loop.tool_agent_loop import AgentData, AgentState
from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser
from verl.utils.profiler import simple_timer

from verl_mtgrpo.environments import Observation
from verl_mtgrpo.environments.episode import Episode, seed_of
from verl_mtgrpo.environments.loading import load_environment
from verl_mtgrpo.errors import EnvironmentFailed
from verl_mtgrpo.integration.environments import ENV, environment_settings
from verl_mtgrpo.integration.rollout.agent_loop import TurnAgentLoopOutput, TurnToolAgentLoop
from verl_mtgrpo.integration.rollout.messages import read_message
from verl_mtgrpo.integration.rollout.record import fill_steps, record_of
from verl_mtgrpo.rewards import BROKEN, DONE, FAILURE, TRANSCRIPT, ToolCall
from verl_mtgrpo.text import encodable
from verl_mtgrpo.threads import DECODE, apart

STEP = "step"
"""Name of the tool call by which a step is recorded."""


class EveryTurnActs(ToolParser):
    """Tool parser that takes each turn, whatever its text, for one call of ``step``."""

    async def extract_tool_calls(
        self, responses_ids: list[int], tools: list[Any] | None = None
    ) -> tuple[str, list[FunctionCall]]:
        """Return the text of the turn, and one call with this text."""
        text = await apart(DECODE, self.tokenizer.decode, responses_ids)
        return text, [FunctionCall(name=STEP, arguments=_arguments(text))]


class EnvironmentAgentLoop(TurnToolAgentLoop):
    """verl's loop in an environment; see the module docstring. verl makes one of these for each rollout."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prompt_length: int
        self.settings = environment_settings(self.config)
        self.tool_parser = EveryTurnActs(self.tokenizer)
        make = _made(self.settings.name, json.dumps(self.settings.options, sort_keys=True))
        self.episode = Episode(make, self.settings.timeout_s)
        self.failure = ""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> TurnAgentLoopOutput:
        """Play one episode."""
        messages = list(kwargs["raw_prompt"])
        try:
            try:
                row = {**kwargs, "seed": seed_of(kwargs, self.settings.seed)}
                messages = with_observation(messages, self._safe((await self.episode.reset(row)).text)[0])
            except EnvironmentFailed as error:
                self.failure = str(error)
            output = await super().run(sampling_params, priority=priority, **{**kwargs, "raw_prompt": messages})
        finally:
            await self.episode.close()
        transcript = output.extra_fields[TRANSCRIPT]
        output.extra_fields[TRANSCRIPT] = replace(transcript, info=self.episode.info)
        if self.failure:
            output.extra_fields[FAILURE] = self.failure
            fill_steps(output.extra_fields, kwargs)
        return output

    async def _handle_pending_state(self, agent_data: AgentData, sampling_params: dict[str, Any]) -> AgentState:
        state = await super()._handle_pending_state(agent_data, sampling_params)  # pyright: ignore[reportAttributeAccessIssue]
        if not self.failure:
            return state
        record_of(agent_data).end_reason = BROKEN
        return AgentState.TERMINATED

    def _cap_text_prompt_length(self, prompt_ids: list[int]) -> list[int]:
        """Let verl cut the prompt, and remember that it did: the rollout would not know what it is about."""
        if len(prompt_ids) > self.prompt_length and not self.failure:
            self.failure = (
                f"with its first observation the prompt has {len(prompt_ids)} tokens, and data.max_prompt_length is "
                f"{self.prompt_length}"
            )
        return super()._cap_text_prompt_length(prompt_ids)

    async def _handle_generating_state(
        self, agent_data: AgentData, sampling_params: dict[str, Any], ignore_termination: bool = False
    ) -> AgentState:
        state = await super()._handle_generating_state(agent_data, sampling_params, ignore_termination)
        reason, written = record_of(agent_data).end_reason, agent_data.response_ids
        complete = bool(written) and written[-1] in self.ends.ends
        if reason == "max_turns" or (reason == "response_length" and complete and self._fits(agent_data)):
            await self._step(agent_data)
        return state

    def _fits(self, agent_data: AgentData) -> bool:
        """Return True if the whole last turn is in the response, which verl cuts off at its length."""
        return len(agent_data.response_mask) <= self.response_length

    async def _handle_processing_tools_state(self, agent_data: AgentData) -> AgentState:
        observation = await self._step(agent_data)
        if observation is None or observation.done:
            return AgentState.TERMINATED
        record = record_of(agent_data)
        (call,) = record.calls[-1]
        if not await read_message(self, agent_data, {"role": self.settings.role, "content": call.result}):
            return AgentState.TERMINATED
        record.calls[-1] = [replace(call, seen=True)]
        return AgentState.GENERATING

    def _build_assistant_message(self, content: str, agent_data: AgentData) -> dict[str, Any]:
        return {"role": "assistant", "content": content}

    async def _step(self, agent_data: AgentData) -> Observation | None:
        """Take the step of the last turn and record it; None if the environment failed."""
        record, start = record_of(agent_data), time.perf_counter()
        text = await apart(DECODE, self.tokenizer.decode, self.ends.trimmed(agent_data.response_ids))
        try:
            with simple_timer("tool_calls", agent_data.metrics):
                observation = await self.episode.step(text)
        except EnvironmentFailed as error:
            self.failure, record.end_reason = str(error), BROKEN
            observation = None
            outcome: dict[str, Any] = {"ok": False, "error_kind": error.kind, "error": str(error)}
        else:
            shown, defused = self._safe(observation.text)
            outcome = {"result": shown, "reward": observation.reward, "defused": defused}
            if observation.done:
                record.end_reason = DONE
        latency = time.perf_counter() - start
        record.calls[-1] = [ToolCall(STEP, _arguments(text), seen=False, latency_s=latency, **outcome)]
        return observation

    def _safe(self, text: str) -> tuple[str, bool]:
        """Return the text with control tokens broken up, and True if there were any."""
        said = encodable(text)
        shown = self.outside(said)
        return shown, shown != said


def with_observation(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Return the prompt with the first observation: in its last message if that is the user's, or after it.

    Args:
        messages: The chat of the row.
        text: The observation; an empty one changes nothing.
    """
    last: Mapping[str, Any] = messages[-1] if messages else {}
    if not text:
        return messages
    if last.get("role") == "user" and isinstance(last.get("content"), str):
        return [*messages[:-1], {**last, "content": f"{last['content']}\n\n{text}"}]
    return [*messages, {"role": "user", "content": text}]


def _arguments(text: str) -> str:
    return json.dumps({"text": text}, ensure_ascii=False)


@lru_cache(maxsize=16)
def _made(name: str, options: str) -> Any:
    """Return what makes environments; a file of the user's is loaded once per process."""
    return load_environment(name, json.loads(options))


register(ENV)(EnvironmentAgentLoop)
