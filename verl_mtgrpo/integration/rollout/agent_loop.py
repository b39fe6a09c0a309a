r"""verl's tool agent loop, plus a record of turns and turn rewards on the tokens that earned them.

``mtgrpo_tool_agent`` generates exactly what verl's ``tool_agent`` generates (tokens, masks, log-probs): every override
calls verl's own method and only looks at what it did. (In the formats of :mod:`.tool_parsers`, which verl does not
have, turns are cut at their closing tag.) The one exception is text from outside, which verl's loop lets become control
tokens (:mod:`.outside_text`).

verl's loop for one rollout, and in brackets where this class steps in::

    run ............................ [run: begin the record]
     |
    PENDING                          render the prompt    [ct_build_initial_tokens: no tool schemas in our formats]
     |
    GENERATING <-----------------.   write one turn       [CuttingServer: end it at its closing tag]
     |                           |                        [_handle_generating_state: record its calls]
     |-- a limit, or no call -----------> TERMINATED      [why it ended]
     |                           |
     |   message of the calls    |                        [_build_assistant_message: arguments that verl can read]
     |                           |
    PROCESSING_TOOLS             |   all calls at once    [_call_tool: record the outcome, defuse the text]
     |                           |                        [_handle_processing_tools_state: put calls in order]
     |   results to tokens       |                        [ct_merge_context_msg: end a turn that was cut]
     |                           |
     |-- response is full, or an outage --> TERMINATED    [why it ended]
     `---------------------------'

    TERMINATED: AgentLoopOutput      [run: attach the transcript]
     |
    verl's worker asks the reward manager, which reads the transcript
     |
    as_dict                          [TurnAgentLoopOutput: each turn's reward on its last generated token]

What happens between these points is kept in one :class:`~.record.RolloutRecord`. The output's
``extra_fields["transcript"]`` is the rollout's :class:`~verl_mtgrpo.rewards.Transcript`. Rewards go into ``rm_scores``,
the only reward channel that every verl trainer keeps.

Tokens are only ever appended, as verl's own loop does: no earlier message is rendered again. So what a model thought in
earlier turns stays in its context, and is trained on, even where the chat template of a chat server would leave it out
(Qwen3, DeepSeek-R1). A template that opens the thought (its generation prompt ends in ``<think>\n``) does so again in
front of each turn that it writes a generation prompt for: those tokens have mask 0, and ``Turn.text`` begins with them.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from pydantic import PrivateAttr
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.tool_agent_loop import AgentData, AgentState, ToolAgentLoop
from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser
from verl.utils.tokenizer.continuous_token import MergeResult

from verl_mtgrpo.errors import ConfigError, NoTokensError, RetrievalError, TranscriptError
from verl_mtgrpo.integration.rollout.calls import call_marks, make_readable, not_carried_out, written_calls
from verl_mtgrpo.integration.rollout.cutting import CuttingServer, cut_text, raw_agent_needs_tags
from verl_mtgrpo.integration.rollout.loop_setup import loop_setup
from verl_mtgrpo.integration.rollout.record import new_record, record_of
from verl_mtgrpo.integration.rollout.tool_outcome import ToolOutcome, checked_reward, watch, watched
from verl_mtgrpo.integration.rollout.transcripts import COLUMN, Destination, pack, text_of_messages, to_json
from verl_mtgrpo.integration.rollout.turn_spans import place_rewards, turn_spans
from verl_mtgrpo.integration.several import own_entry
from verl_mtgrpo.rewards import (
    DROPPED,
    NO_TOKENS,
    NODE_PATH,
    OUTAGE,
    TRANSCRIPT,
    TURN_REWARDS,
    ToolCall,
    Transcript,
    Turn,
)
from verl_mtgrpo.rewards.measures import BAD_ARGUMENTS
from verl_mtgrpo.rewards.transcript import MALFORMED_CALL
from verl_mtgrpo.text import encodable
from verl_mtgrpo.threads import DECODE, apart


class TurnAgentLoopOutput(AgentLoopOutput):
    """Agent loop output whose rewards lie on the last generated token of each turn.

    ``extra_fields["transcript"]`` is the rollout's :class:`~verl_mtgrpo.rewards.Transcript`, for the reward manager.
    """

    _destination: Destination = PrivateAttr("info")
    _number: int | None = PrivateAttr(None)

    @classmethod
    def of(cls, output: AgentLoopOutput, destination: Destination) -> TurnAgentLoopOutput:
        """Return verl's output as one of these, which knows where its transcript goes."""
        made = cls(**{name: getattr(output, name) for name in output.model_fields_set})
        made._destination = destination
        return made

    def number_among_outputs(self, number: int) -> None:
        """Say which of its session's outputs this is, counted from 0: the reward manager scored each of them."""
        self._number = number

    def as_dict(self) -> dict[str, Any]:
        """Return verl's dict, with ``rm_scores`` written per turn when the reward manager gave turn rewards.

        The transcript has been read by then: it goes where :mod:`.transcripts` says. Of a session with several outputs
        verl gives all the same ``reward_extra_info``, in which the manager keeps a list: each takes its own entry.

        Raises:
            TranscriptError: there is not exactly one reward per turn of ``response_mask``.
        """
        info = own_entry(self.extra_fields.get("reward_extra_info") or {}, self._number)
        rewards = info.get(TURN_REWARDS)
        if rewards is None or self.reward_score is None:
            return super().as_dict()
        score, fields = self.reward_score, self.extra_fields
        # verl copies extra_fields deeply, which costs more for a transcript than all the rest.
        others = {name: value for name, value in fields.items() if name != TRANSCRIPT}
        self.reward_score, self.extra_fields = None, {**others, "reward_extra_info": info}
        try:
            output = super().as_dict()
        finally:
            self.reward_score, self.extra_fields = score, fields
        output.pop("reward_score", None)
        output["rm_scores"] = place_rewards(json.loads(rewards), self.response_mask)
        if info.get(DROPPED):  # no generated token is left: it enters no statistic and no loss
            output["response_mask"] = torch.zeros_like(output["response_mask"])
            output["extra_fields"].pop(NODE_PATH, None)  # a path has one id per turn, and no turn is left
        if TRANSCRIPT in fields and self._destination == "column":
            output[COLUMN] = pack(fields[TRANSCRIPT])
        elif TRANSCRIPT in fields and self._destination == "info":
            output["extra_fields"]["reward_extra_info"][TRANSCRIPT] = to_json(fields[TRANSCRIPT].to_dict())
        return output


class TurnToolAgentLoop(ToolAgentLoop):
    """verl's ``tool_agent`` with a transcript; see the module docstring."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # verl's decorator hides its class from type checkers: what is read of it is said here.
        self.max_assistant_turns: int | None
        self.max_user_turns: int | None
        self.max_parallel_calls: int
        self.response_length: int
        self.tokenizer: Any
        self.tool_parser: ToolParser
        self.tool_parser_name: str
        self.tools: dict[str, Any] = {name: watched(tool) for name, tool in self.tools.items()}
        setup = loop_setup(self.config, self.data_config, self.tokenizer)
        self.cut_format, self.ends, self.outside = setup.cut_format, setup.ends, setup.outside
        self.transcripts_go: Destination = setup.transcripts_go
        self.cuts = self.cut_format is not None  # turns may end without an end token
        if self.cut_format:
            self.server_manager = CuttingServer(
                self.server_manager,
                self.cut_format,
                self.tokenizer.decode,
                stop=setup.stop,
                end=self.ends.token,
            )

    async def ct_build_initial_tokens(
        self, messages: list[dict[str, Any]], tools: Any = None, **kwargs: Any
    ) -> list[int]:
        """Do what verl does, but without tool schemas for our formats, which the prompt explains."""
        kwargs["tools"] = None if self.cut_format else tools
        return await super().ct_build_initial_tokens(messages, **kwargs)

    async def ct_merge_context_msg(
        self,
        previous_messages: list[dict[str, Any]],
        updated_messages: list[dict[str, Any]],
        runtime_token_ids: list[int],
        response_mask: list[int],
        response_logprobs: list[float] | None = None,
        tools: Any = None,
    ) -> Any:
        """Do what verl does, after ending a turn cut at its closing tag as the chat template does (mask 0)."""
        ids, mask, log_probs = runtime_token_ids, response_mask, response_logprobs
        if self.cut_format:
            tools = None  # the prompt was built without
        if self.cuts and ids[-1] not in self.ends.ends:
            closing = self.ends.closing
            ids, mask = [*ids, *closing], [*mask, *(0 for _ in closing)]
            log_probs = None if log_probs is None else [*log_probs, *(0.0 for _ in closing)]
        return await super().ct_merge_context_msg(
            previous_messages, updated_messages, ids, mask, log_probs, tools=tools
        )

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> TurnAgentLoopOutput:
        """Run one rollout as verl's loop does, then attach its transcript."""
        record = new_record()
        output = await super().run(  # pyright: ignore[reportAbstractUsage]
            sampling_params, priority=priority, **kwargs
        )
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
                f"{len(spans)} runs of response_mask but {len(record.calls)} generations recorded: verl's "
                "ToolAgentLoop works differently from the versions this package was tested with",
                fix="install the version that mtgrpo doctor names",
            )
        transcript = Transcript(
            turns=turns,
            end_reason=record.end_reason,
            prompt=text_of_messages(kwargs["raw_prompt"]),
            max_turns=self.max_assistant_turns or 0,
            format=self.tool_parser_name,
            max_parallel_calls=self.max_parallel_calls,
        )
        output.extra_fields[TRANSCRIPT] = transcript
        return TurnAgentLoopOutput.of(output, self.transcripts_go)

    async def _handle_generating_state(
        self, agent_data: AgentData, sampling_params: dict[str, Any], ignore_termination: bool = False
    ) -> AgentState:
        state = await super()._handle_generating_state(agent_data, sampling_params, ignore_termination)  # pyright: ignore[reportAttributeAccessIssue]
        record = record_of(agent_data)
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
        """Return the last turn's calls, including those that verl's parser could not read."""
        if call_marks(self.tool_parser) is None:
            return list(agent_data.tool_calls)
        text = await apart(DECODE, self.tokenizer.decode, agent_data.response_ids)
        tools = [tool.tool_schema for tool in getattr(agent_data, "_active_tools", self.tools).values()]
        return await written_calls(self.tool_parser, text, agent_data.tool_calls, tools)

    async def _handle_processing_tools_state(self, agent_data: AgentData) -> AgentState:
        record = record_of(agent_data)
        made = record.made = {}
        state = await super()._handle_processing_tools_state(agent_data)  # pyright: ignore[reportAttributeAccessIssue]
        dropped = state == AgentState.TERMINATED
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
        return super()._build_assistant_message(content, agent_data)  # pyright: ignore[reportAttributeAccessIssue]

    async def _call_tool(
        self, tool_call: FunctionCall, tools_kwargs: dict[str, Any], agent_data: AgentData
    ) -> tuple[Any, float, dict[str, Any]]:
        start, seen = time.perf_counter(), watch()
        response, reward, info = await super()._call_tool(tool_call, tools_kwargs, agent_data)  # pyright: ignore[reportAttributeAccessIssue]
        known = seen.answered  # by the tool; else verl's loop made the answer
        outcome = ToolOutcome.from_info(info, tool_call.name) if known else self._failure(tool_call, agent_data)
        if outcome.outage and outcome.on_outage == "raise":
            # A search that is down is not an answer: the rollout fails visibly, the policy is not blamed.
            raise RetrievalError(f"tool {tool_call.name!r} is down: {outcome.outage}")
        said = encodable(response.text or "")
        text = await apart(DECODE, self.outside, said)
        record_of(agent_data).made[id(tool_call)] = outcome.of_call(
            tool_call.name,
            tool_call.arguments,
            text,
            took_s=time.perf_counter() - start,
            reward=checked_reward(tool_call.name, seen.reward),
            defused=text != said,
        )
        if self.cut_format:  # the model reads results in the tags of its format; the transcript keeps the bare text
            text = f"<{self.cut_format.result}>{text}</{self.cut_format.result}>"
        if text:
            response = response.model_copy(update={"text": text})
        return response, reward, info

    def _failure(self, call: FunctionCall, agent_data: AgentData) -> ToolOutcome:
        """Return why no tool answered: verl reports its own failures only as text, so the causes are checked again."""
        kind = "tool_exception"
        if call.name not in getattr(agent_data, "_active_tools", self.tools):
            kind = "unknown_tool"
        else:
            try:
                json.loads(call.arguments)
            except (TypeError, ValueError):
                kind = BAD_ARGUMENTS
        return ToolOutcome(ok=False, error_kind=kind)

    def _answered(self, agent_data: AgentData) -> bool:
        """Return True if verl looked for tool calls in the last turn and found none."""
        at_limit = self.max_assistant_turns and agent_data.assistant_turns >= self.max_assistant_turns
        at_limit = at_limit or (self.max_user_turns and agent_data.user_turns >= self.max_user_turns)
        return not at_limit

    def _decode(
        self, prompt_ids: list[int], response_ids: list[int], spans: list[tuple[int, int]]
    ) -> list[tuple[str, str]]:
        """Return what the chat template opened of each turn, and the generated text without end tokens."""
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
                "the rollout server returned no token for the first turn, so no routed experts, which every row of "
                "the batch needs (actor_rollout_ref.rollout.enable_rollout_routing_replay=True)",
                fix="see the server's log, which says why",
            )
        log_probs = sampling_params.get("logprobs", self.rollout_config.calculate_log_probs)
        output.response_ids, output.response_mask = [self.tokenizer.pad_token_id or 0], [0]
        output.response_logprobs = [0.0] if log_probs else None


class RawContinuationAgentLoop(TurnToolAgentLoop):
    r"""Observations as plain text in one long assistant message, without chat roles, as Search-R1 does.

    After a call the model reads ``\n\n<information>…</information>\n\n`` (the result tag of its format) and
    continues; these tokens are not trained on. For base models, and for the paper's v2 set-up.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.cut_format:
            raise raw_agent_needs_tags(self.tool_parser_name)

    async def ct_merge_context_msg(
        self,
        previous_messages: list[dict[str, Any]],
        updated_messages: list[dict[str, Any]],
        runtime_token_ids: list[int],
        response_mask: list[int],
        response_logprobs: list[float] | None = None,
        tools: list[dict[str, Any]] | None = None,
    ) -> Any:
        """Append the new messages' text as it is, mask and log-prob 0."""
        new = updated_messages[len(previous_messages) :]
        texts = [message["content"] for message in new]
        if not all(isinstance(text, str) for text in texts):
            raise ConfigError(
                "mtgrpo_raw_agent continues in plain text, but a tool returned an image or something else",
                fix="set actor_rollout_ref.rollout.agent.default_agent_loop=mtgrpo_tool_agent",
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


# Not as decorators: verl's would hide the classes from type checkers.
register("mtgrpo_tool_agent")(TurnToolAgentLoop)
register("mtgrpo_raw_agent")(RawContinuationAgentLoop)

# The loops that derive from those above register with verl too. They are loaded here and by no hook of their own:
# whoever imports this module first makes verl run the hooks while nothing above exists yet.
for _name in ("tree_loop", "env_loop", "roles_loop", "pairs_loop", "decide_loop"):
    import_module(f"verl_mtgrpo.integration.rollout.{_name}")
