r"""One role's rows: :class:`~.agent_loop.TurnToolAgentLoop` with what a role may do, and partners to talk to.

verl's loop is changed in these places, and everything else stays::

    PENDING             [the id of the requests; a prompt that is too long is a failure]
    GENERATING          [end a turn at the role's stop text; in a conversation say it, and read the answer]
    PROCESSING_TOOLS    [for a role whose output ends with a call: carry it out, and end]

An error (a request that fails, a tool that raises) ends the output that it hit, with what there was before it: its row
is dropped, and says why.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from verl.experimental.agent_loop.agent_loop import ToolListWrap
from verl.experimental.agent_loop.tool_agent_loop import AgentData, AgentState
from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.rollout.agent_loop import TurnAgentLoopOutput, TurnToolAgentLoop
from verl_mtgrpo.integration.rollout.cutting import CuttingServer
from verl_mtgrpo.integration.rollout.loop_setup import knows_stop_strings
from verl_mtgrpo.integration.rollout.messages import read_message
from verl_mtgrpo.integration.rollout.record import fill_steps, record_of
from verl_mtgrpo.integration.rollout.transcripts import Destination
from verl_mtgrpo.integration.several import OUTPUTS
from verl_mtgrpo.rewards import DROPPED, FAILED, FAILURE, OUTAGE, Transcript
from verl_mtgrpo.roles import FED_BY, LEARNT, ROLE, Role
from verl_mtgrpo.roles.prompts import Said, passed_on
from verl_mtgrpo.text import encodable
from verl_mtgrpo.threads import DECODE, apart

ANSWERED = "answered"
Say = Callable[[str], Awaitable[str | None]]
"""Takes what a role says in a conversation and returns what it hears next; None if the conversation is over."""


class NoCalls(ToolParser):
    """Tool parser of a role without tools: whatever it writes is text."""

    async def extract_tool_calls(
        self, responses_ids: list[int], tools: list[Any] | None = None
    ) -> tuple[str, list[FunctionCall]]:
        """Return the text of the turn, and no call."""
        return await apart(DECODE, self.tokenizer.decode, responses_ids), []


class RoleOutput(TurnAgentLoopOutput):
    """Output of a role. If nothing is to be learnt from it, its mask is 0, and its rewards stay on its tokens."""

    @classmethod
    def of_role(cls, output: TurnAgentLoopOutput, destination: Destination) -> RoleOutput:
        """Return an output of the loop as one of these."""
        made = cls(**{name: getattr(output, name) for name in output.model_fields_set})
        made._destination = destination
        return made

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of the row. A dropped one feeds none that was not: its row leaves the batch."""
        said = self.extra_fields.get("reward_extra_info") or {}
        output = super().as_dict()
        lost = {number for number, info in enumerate(said.get(OUTPUTS, ())) if info.get(DROPPED)}
        if self._number not in lost:
            read = [one for one in self.extra_fields[FED_BY].split("/") if one]
            output["extra_fields"][FED_BY] = "/".join(one for one in read if int(one.partition(":")[2]) not in lost)
        if not self.extra_fields[LEARNT]:
            output["response_mask"] = torch.zeros_like(output["response_mask"])
        return output


@dataclass(frozen=True)
class Part:
    """What an output is to be.

    Attributes:
        name: The role's name.
        role: What it may do.
        request_id: Id of its requests to the rollout server; empty for verl's.
        say: Its partner in a conversation; None outside of one.
    """

    name: str
    role: Role
    request_id: str = ""
    say: Say | None = None


class RoleLoop(TurnToolAgentLoop):
    """One output of a role, or its side of a conversation; made anew for each.

    It takes what verl gives to an agent loop, of whose tools the role gets its own, and the :class:`Part` as ``part``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        part, tools = kwargs.pop("part"), kwargs.pop("tools", None)
        name, role = part.name, part.role
        given = {tool.name: tool for tool in (tools.tools if tools else [])}
        if absent := [one for one in role.tools if one not in given]:
            raise ConfigError(
                f"trainer.turn.roles.names.{name}.tools has {', '.join(absent)}, but the tools of this run are "
                f"{', '.join(given) or 'none'}",
                fix="correct the name, or add the tool to actor_rollout_ref.rollout.multi_turn.tool_config_path",
            )
        super().__init__(*args, tools=ToolListWrap([given[one] for one in role.tools]), **kwargs)
        self.prompt_length: int
        self.name: str = name
        self.role: Role = role
        self.request_id: str = part.request_id
        self.say: Say | None = part.say
        self.failure: Exception | None = None
        if not role.tools:
            self.tool_parser = NoCalls(self.tokenizer)
            self.max_assistant_turns = self.max_user_turns = None
        if role.stop:
            stop = knows_stop_strings(self.rollout_config)
            self.server_manager = CuttingServer(
                self.server_manager, None, self.tokenizer.decode, stop=stop, end=self.ends.token, closing=(role.stop,)
            )
        self.cuts = self.cuts or bool(role.stop or role.max_tokens)

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> RoleOutput:
        """Write the role's row; an error is in :attr:`failure` then, and in the row."""
        made = await super().run(sampling_params, priority=priority, **kwargs)
        output = RoleOutput.of_role(made, self.transcripts_go)
        fields = output.extra_fields
        fill_steps(fields, kwargs)
        fields |= {ROLE: self.name, LEARNT: not self.role.frozen}
        if self.failure is not None:
            fields[FAILURE] = f"{type(self.failure).__name__}: {self.failure}"
        return output

    async def _handle_pending_state(self, agent_data: AgentData, sampling_params: dict[str, Any]) -> AgentState:
        state = await super()._handle_pending_state(agent_data, sampling_params)  # pyright: ignore[reportAttributeAccessIssue]
        agent_data.request_id = self.request_id or agent_data.request_id
        if self.failure is None:
            return state
        record_of(agent_data).end_reason = FAILED
        return AgentState.TERMINATED

    def _cap_text_prompt_length(self, prompt_ids: list[int]) -> list[int]:
        """Let verl cut the prompt, and remember that it did: the role would not know what it is about."""
        if len(prompt_ids) > self.prompt_length and self.failure is None:
            self.failure = ConfigError(
                f"the prompt of {self.name} has {len(prompt_ids)} tokens, and data.max_prompt_length is "
                f"{self.prompt_length}",
                fix="set it to more, or limit what it reads with max_tokens of the roles before it",
            )
        return super()._cap_text_prompt_length(prompt_ids)

    async def _handle_generating_state(
        self, agent_data: AgentData, sampling_params: dict[str, Any], ignore_termination: bool = False
    ) -> AgentState:
        if self.role.max_tokens is not None:
            left = max(1, self.response_length - len(agent_data.response_mask))
            sampling_params = {**sampling_params, "max_tokens": min(self.role.max_tokens, left)}
        try:
            state = await super()._handle_generating_state(agent_data, sampling_params, ignore_termination)
            if self.say is not None and state == AgentState.TERMINATED:
                return await self._talk(agent_data, self.say)
        except Exception as error:  # costs this output alone, whatever it is
            return self._failed(agent_data, error)
        return state

    async def _talk(self, agent_data: AgentData, say: Say) -> AgentState:
        """Say what was written and read what the others answer, if the turn is complete."""
        record = record_of(agent_data)
        if record.end_reason not in (ANSWERED, "malformed_call"):
            return AgentState.TERMINATED
        record.end_reason = ANSWERED
        text = await apart(DECODE, self.tokenizer.decode, self.ends.trimmed(agent_data.response_ids))
        heard = await say(self._cut(text))
        if heard is None or not await read_message(self, agent_data, {"role": "user", "content": heard}):
            return AgentState.TERMINATED
        return AgentState.GENERATING

    async def _handle_processing_tools_state(self, agent_data: AgentData) -> AgentState:
        tokens, mask, log_probs = agent_data.prompt_ids, agent_data.response_mask, agent_data.response_logprobs
        user_turns = agent_data.user_turns
        try:
            state = await super()._handle_processing_tools_state(agent_data)
        except Exception as error:  # as above
            return self._failed(agent_data, error)
        record = record_of(agent_data)
        if not self.role.call_ends or record.end_reason == OUTAGE:
            return state
        # The others read the results, so this role does not: they leave its row, and need no room in it.
        agent_data.prompt_ids, agent_data.response_mask, agent_data.response_logprobs = tokens, mask, log_probs
        agent_data.user_turns, record.end_reason = user_turns, ANSWERED
        record.calls[-1] = [replace(call, seen=True) if call.ok else call for call in record.calls[-1]]
        return AgentState.TERMINATED

    def _failed(self, agent_data: AgentData, error: Exception) -> AgentState:
        self.failure, record_of(agent_data).end_reason = error, FAILED
        return AgentState.TERMINATED

    def _cut(self, text: str) -> str:
        """Return a turn's text up to the end of the role's stop text."""
        before, stop, _ = text.partition(self.role.stop) if self.role.stop else (text, "", "")
        return before + stop

    def _decode(
        self, prompt_ids: list[int], response_ids: list[int], spans: list[tuple[int, int]]
    ) -> list[tuple[str, str]]:
        return [(opened, self._cut(text)) for opened, text in super()._decode(prompt_ids, response_ids, spans)]

    def told(self, text: str) -> str:
        """Return what the others read of one of its turns: no control tokens, and only what its pattern passes on."""
        return self.outside(encodable(passed_on(self.role.pattern, text)[0]))

    def said(self, transcript: Transcript) -> Said:
        """Return what the others read of its output: its last turn, and what its tools answered."""
        last = transcript.turns[-1].text if transcript.turns else ""
        return Said(self.told(last), "\n".join(text for turn in transcript.turns for text in turn.results))
