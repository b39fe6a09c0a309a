"""verl's tool agent loop, plus a record of turns and turn rewards on the tokens that earned them.

``mtgrpo_tool_agent`` generates exactly what verl's ``tool_agent`` generates (tokens, masks, log-probs):
every override calls verl's own method and only looks at what it did. (In the formats of
:mod:`.tool_parsers`, which verl does not have, turns are cut at their closing tag.) The one
exception is text from outside, which verl's loop lets become control tokens (:mod:`.outside_text`). What it adds:

- ``extra_fields["transcript"]``: the rollout's :class:`~verl_mtgrpo.rewards.Transcript` as a dict, which
  verl hands to the reward manager;
- the output's ``as_dict`` writes the reward of each turn on that turn's last generated token of
  ``rm_scores``, the only reward channel that every verl trainer keeps.

Tokens are only ever appended, as verl's own loop does: no earlier message is rendered again. So what a model thought in
earlier turns stays in its context, and is trained on, even where the chat template of a chat server would leave it out
(Qwen3, DeepSeek-R1). A template that opens the thought (its generation prompt ends in ``<think>\\n``) does so again in
front of each turn that it writes a generation prompt for: those tokens have mask 0, and ``Turn.text`` begins with them.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from pydantic import PrivateAttr
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.tool_agent_loop import AgentData, AgentState, ToolAgentLoop
from verl.experimental.agent_loop.tool_parser import FunctionCall
from verl.utils.tokenizer.continuous_token import MergeResult

from verl_mtgrpo.errors import ConfigError, NoTokensError, RetrievalError, TranscriptError
from verl_mtgrpo.integration.rollout.calls import (
    call_marks,
    documents_of,
    faults_of,
    forget_reward,
    latency_of,
    make_readable,
    not_carried_out,
    tool_reward,
    with_reward_seen,
    written_calls,
)
from verl_mtgrpo.integration.rollout.cutting import CuttingServer, cut_text
from verl_mtgrpo.integration.rollout.loop_setup import loop_setup
from verl_mtgrpo.integration.rollout.transcripts import COLUMN, Destination, pack, text_of_messages, to_json
from verl_mtgrpo.integration.rollout.turn_spans import place_rewards, turn_spans
from verl_mtgrpo.rewards import (
    DROPPED,
    NO_TOKENS,
    OUTAGE,
    TRANSCRIPT,
    TURN_REWARDS,
    ToolCall,
    Transcript,
    Turn,
)
from verl_mtgrpo.rewards.formats import CUT_FORMATS
from verl_mtgrpo.rewards.measures import SERVICE_ERRORS
from verl_mtgrpo.rewards.transcript import MALFORMED_CALL
from verl_mtgrpo.text import encodable
from verl_mtgrpo.threads import DECODE, apart

_RECORD = "_mtgrpo_record"


@dataclass
class _Record:
    """What happened so far: the tool calls of each generation, and why it ended."""

    calls: list[list[ToolCall]] = field(default_factory=list)
    written: list[FunctionCall | ToolCall] = field(default_factory=list)  # in the last turn, as it stands there
    end_reason: str = "answered"


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


@register("mtgrpo_tool_agent")
class TurnToolAgentLoop(ToolAgentLoop):
    """verl's ``tool_agent`` with a transcript; see the module docstring."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tools = {name: with_reward_seen(tool) for name, tool in self.tools.items()}
        setup = loop_setup(self.config, self.data_config, self.tokenizer)
        self.cut_format, self.ends, self.outside = setup.cut_format, setup.ends, setup.outside
        self.transcripts_go = setup.transcripts_go
        if self.cut_format:
            self.server_manager = CuttingServer(
                self.server_manager,
                self.cut_format,
                self.tokenizer.decode,
                stop=setup.stop,
                end=self.ends.token,
            )

    async def ct_build_initial_tokens(self, messages: list[dict], tools: Any = None, **kwargs: Any) -> list[int]:
        """verl's, but our formats explain themselves in the prompt: no tool schemas, which name other tags."""
        return await super().ct_build_initial_tokens(messages, tools=None if self.cut_format else tools, **kwargs)

    async def ct_merge_context_msg(
        self,
        previous_messages: list[dict],
        updated_messages: list[dict],
        runtime_token_ids: list[int],
        response_mask: list[int],
        response_logprobs: list[float] | None = None,
        tools: Any = None,
    ) -> Any:
        """verl's; a turn that was cut at its closing tag is first ended as the chat template ends turns (mask 0)."""
        ids, mask, log_probs = runtime_token_ids, response_mask, response_logprobs
        if self.cut_format:
            tools = None  # the prompt was built without
            if ids[-1] not in self.ends.ends:
                closing = self.ends.closing
                ids, mask = [*ids, *closing], [*mask, *(0 for _ in closing)]
                log_probs = None if log_probs is None else [*log_probs, *(0.0 for _ in closing)]
        return await super().ct_merge_context_msg(
            previous_messages, updated_messages, ids, mask, log_probs, tools=tools
        )

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        """Run one rollout as verl's loop does, then attach its transcript."""
        output = await super().run(sampling_params, priority, **kwargs)
        record = output.extra_fields.pop(_RECORD, None) or _Record()
        if not output.response_mask:
            self._stand_in(output, sampling_params)
        spans = turn_spans(output.response_mask)
        texts = await apart(DECODE, self._decode, output.prompt_ids, output.response_ids, spans)
        turns = tuple(
            Turn(text=opened + text, span=span, tool_calls=tuple(calls), opened=opened)
            for (opened, text), span, calls in zip(texts, spans, record.calls, strict=False)
        )
        if len(turns) != len(spans):
            raise TranscriptError(
                f"{len(spans)} runs of response_mask but {len(record.calls)} generations recorded; "
                "verl's ToolAgentLoop does not work as in the versions this package was tested with"
            )
        transcript = Transcript(
            turns=turns,
            end_reason=record.end_reason,
            prompt=text_of_messages(kwargs["raw_prompt"]),
            max_turns=self.max_assistant_turns or 0,
            format=self.tool_parser_name,
            max_parallel_calls=self.max_parallel_calls,
        )
        output.extra_fields[TRANSCRIPT] = transcript.to_dict()
        fields = {name: getattr(output, name) for name in output.model_fields_set}
        made = TurnAgentLoopOutput(**fields)
        made._destination = self.transcripts_go
        return made

    async def _handle_generating_state(
        self, agent_data: AgentData, sampling_params: dict[str, Any], ignore_termination: bool = False
    ) -> AgentState:
        state = await super()._handle_generating_state(agent_data, sampling_params, ignore_termination)
        record = self._record(agent_data)
        record.calls.append([])
        if not agent_data.response_ids:
            record.end_reason = NO_TOKENS  # the reward manager takes the rollout out of the update
        elif len(agent_data.response_mask) >= self.response_length:
            record.end_reason = "response_length"
        elif state == AgentState.TERMINATED and not self._answered(agent_data):
            record.end_reason = "max_turns"
        else:
            record.written = await self._written_calls(agent_data)
            if state == AgentState.TERMINATED and record.written:  # verl took it for an answer
                record.calls[-1] = [call for call in record.written if isinstance(call, ToolCall)]
                record.end_reason = MALFORMED_CALL
        return state

    async def _written_calls(self, agent_data: AgentData) -> list[FunctionCall | ToolCall]:
        """The last turn's calls, also those that verl's parser could not read."""
        if call_marks(self.tool_parser) is None:
            return list(agent_data.tool_calls)
        text = await apart(DECODE, self.tokenizer.decode, agent_data.response_ids)
        tools = [tool.tool_schema for tool in getattr(agent_data, "_active_tools", self.tools).values()]
        return await written_calls(self.tool_parser, text, agent_data.tool_calls, tools)

    async def _handle_processing_tools_state(self, agent_data: AgentData) -> AgentState:
        made: dict[int, ToolCall] = {}
        agent_data._mtgrpo_made = made  # type: ignore[attr-defined]  # filled by _call_tool, in any order
        state = await super()._handle_processing_tools_state(agent_data)
        dropped = state == AgentState.TERMINATED
        record = self._record(agent_data)
        record.calls[-1] = [
            call
            if isinstance(call, ToolCall)
            else replace(made[id(call)], seen=not dropped)
            if id(call) in made
            else not_carried_out(call)
            for call in record.written
        ]
        if any(call.error for call in made.values()):  # an outage that the tool reported as such
            record.end_reason = OUTAGE  # the reward manager takes the rollout out of the update
            return AgentState.TERMINATED
        if dropped:
            record.end_reason = "response_length"
        return state

    def _build_assistant_message(self, content: str, agent_data: AgentData) -> dict[str, Any]:
        for call in agent_data.tool_calls:
            make_readable(call)
        return super()._build_assistant_message(content, agent_data)

    async def _call_tool(
        self, tool_call: FunctionCall, tools_kwargs: dict[str, Any], agent_data: AgentData
    ) -> tuple[Any, float, dict]:
        start = time.perf_counter()
        forget_reward()
        response, reward, info = await super()._call_tool(tool_call, tools_kwargs, agent_data)
        info = info if isinstance(info, dict) else {}
        if info.get("outage") and info.get("on_outage") == "raise":
            # A search that is down is no answer: the rollout fails visibly, the policy is not blamed.
            raise RetrievalError(f"tool {tool_call.name!r} is down: {info['outage']}")
        said = encodable(response.text or "")
        kind = self._error_kind(tool_call, said, info, agent_data)
        text = await apart(DECODE, self.outside, said)
        agent_data._mtgrpo_made[id(tool_call)] = ToolCall(  # type: ignore[attr-defined]
            name=tool_call.name,
            arguments=tool_call.arguments,
            result=text,
            ok=bool(info.get("ok", kind is None)),
            error_kind=kind,
            error=str(info.get("outage") or ""),
            documents=documents_of(info),
            latency_s=latency_of(info, time.perf_counter() - start),
            repeat=bool(info.get("repeat")),
            faults=faults_of(info),
            reward=tool_reward(tool_call.name, reward),
            defused=text != said,
        )
        if self.cut_format:  # the model reads results in the tags of its format; the transcript keeps the bare text
            text = f"<{self.cut_format.result}>{text}</{self.cut_format.result}>"
        if text:
            response = response.model_copy(update={"text": text})
        return response, reward, info

    def _error_kind(self, call: FunctionCall, text: str, info: dict[str, Any], agent_data: AgentData) -> str | None:
        """Why a call failed, or None. verl reports its own failures only as text, so causes are re-checked."""
        if info.get("outage"):
            return info["error_kind"] if info.get("error_kind") in SERVICE_ERRORS else "outage"
        if "ok" in info:
            return info.get("error_kind") or (None if info["ok"] else "tool_error")
        if call.name not in getattr(agent_data, "_active_tools", self.tools):
            return "unknown_tool"
        try:
            json.loads(call.arguments)
        except (TypeError, ValueError):
            return "bad_arguments"
        return "tool_exception" if text.startswith(f"Error executing tool '{call.name}'") else None

    def _answered(self, agent_data: AgentData) -> bool:
        """True if verl looked for tool calls in the last turn and found none."""
        at_limit = self.max_assistant_turns and agent_data.assistant_turns >= self.max_assistant_turns
        at_limit = at_limit or (self.max_user_turns and agent_data.user_turns >= self.max_user_turns)
        return not at_limit

    def _decode(
        self, prompt_ids: list[int], response_ids: list[int], spans: list[tuple[int, int]]
    ) -> list[tuple[str, str]]:
        """What the chat template opened of each turn, and what the model generated without the end tokens behind it."""
        decode, texts = self.tokenizer.decode, []
        for start, end in spans:
            opened = self.ends.opened_in([*prompt_ids, *response_ids[:start]], self.tokenizer)
            text = decode(self.ends.trimmed(response_ids[start:end]))
            texts.append((opened, cut_text(text, self.cut_format) if self.cut_format else text))
        return texts

    def _stand_in(self, output: AgentLoopOutput, sampling_params: dict[str, Any]) -> None:
        """Make a row of an output without a generated token, one token that nothing is learnt from, in every column.

        verl takes the whole prompt for the response then. And a row without log-probs would take that column from the
        whole batch: TransferQueue gives the columns that all rows have.
        """
        if self.rollout_config.enable_rollout_routing_replay:
            raise NoTokensError(
                "the rollout server gave no token for the first turn, and so no routed experts, which every row of the "
                "batch needs (actor_rollout_ref.rollout.enable_rollout_routing_replay=True); the server's log says why"
            )
        log_probs = sampling_params.get("logprobs", self.rollout_config.calculate_log_probs)
        output.response_ids, output.response_mask = [self.tokenizer.pad_token_id or 0], [0]
        output.response_logprobs = [0.0] if log_probs else None

    @staticmethod
    def _record(agent_data: AgentData) -> _Record:
        # Kept with the rollout, not on self: one loop object may run several rollouts. It goes in after
        # the first generation, because verl takes "extra_fields is empty" as "nothing generated yet".
        return agent_data.extra_fields.setdefault(_RECORD, _Record())


@register("mtgrpo_raw_agent")
class RawContinuationAgentLoop(TurnToolAgentLoop):
    """Observations as plain text in one long assistant message, without chat roles, as Search-R1 does.

    After a call the model reads ``\\n\\n<information>…</information>\\n\\n`` (the result tag of its format) and
    goes on; these tokens are not trained on. For base models, and for the paper's v2 set-up.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.cut_format:
            raise ConfigError(
                f"mtgrpo_raw_agent needs a format with closing tags ({', '.join(CUT_FORMATS)}), but "
                f"actor_rollout_ref.rollout.multi_turn.format={self.tool_parser_name}"
            )

    async def ct_merge_context_msg(
        self,
        previous_messages: list[dict],
        updated_messages: list[dict],
        runtime_token_ids: list[int],
        response_mask: list[int],
        response_logprobs: list[float] | None = None,
        tools: list[dict] | None = None,
    ) -> Any:
        """Append the new messages' text as it is, mask and log-prob 0."""
        new = updated_messages[len(previous_messages) :]
        texts = [message["content"] for message in new]
        if not all(isinstance(text, str) for text in texts):
            raise ConfigError(
                "mtgrpo_raw_agent continues in plain text, but a tool gave an image or something else that is no text; "
                "set actor_rollout_ref.rollout.agent.default_agent_loop=mtgrpo_tool_agent"
            )
        text = "\n\n" + "\n".join(texts) + "\n\n"
        ids = await apart(DECODE, partial(self.tokenizer.encode, text, add_special_tokens=False))
        merged = MergeResult(
            token_ids=[*runtime_token_ids, *ids],
            inserted_token_ids=[],
            appended_token_count=len(ids),
            removed_prefix_token_count=0,
            kind="context",
        )
        return merged, *self.continuous_token_builder.align_response_metadata(merged, response_mask, response_logprobs)
