"""``mtgrpo_roles_agent``: several roles, played by one policy; each output of a role is a row.

Which roles there are, what each sees and where a prompt forks is in ``trainer.turn.roles``
(:mod:`verl_mtgrpo.roles`). A :class:`~.role_loop.RoleLoop` writes each output, and this loop says who
speaks when:

* ``chain`` and ``graph``: the roles in order, in as many branches as the row asks for
  (:func:`~verl_mtgrpo.integration.trees.ask_for_trees`), from the role at which the prompt forks;
* ``alternate``: as many conversations as the row asks for (:mod:`.conversation`).

Rows of validation, which ask for none, get one branch or one conversation. The outputs of the role that answers come
last, because verl takes a session's last output for its result.

An output that fails ends its branch or its conversation; if no branch or conversation has come to an end, the error is
raised, and the prompt has failed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, register

from verl_mtgrpo.integration.roles import OUTPUTS, ROLES, cast_of
from verl_mtgrpo.integration.rollout import role_loop  # its names later: importing it first loads this module
from verl_mtgrpo.integration.rollout.conversation import Conversation
from verl_mtgrpo.integration.trees import LEAVES
from verl_mtgrpo.rewards import FAILED, NO_TOKENS, OUTAGE, TRANSCRIPT
from verl_mtgrpo.roles import CONVERSATION, FED_BY, FINISHED, LEARNT, OUTPUT_ID
from verl_mtgrpo.roles.plan import asked_of, draw, fork_at
from verl_mtgrpo.roles.prompts import Said, fill, messages_for, question_of

if TYPE_CHECKING:
    from verl_mtgrpo.integration.rollout.role_loop import RoleLoop, RoleOutput, Say

logger = logging.getLogger(__name__)

LOST = (FAILED, NO_TOKENS, OUTAGE)
"""How an output ends that nobody can go on from."""


@dataclass(eq=False)
class Made:
    """An output of a role.

    Attributes:
        name: The role.
        output: Its row.
        said: What the others read of it.
        read: The outputs that its prompt contains.
        failure: The error that ended it.
        conversation: The conversation that it is one side of; empty outside of one.
        finished: True if that conversation has ended as it should.
    """

    name: str
    output: RoleOutput
    said: Said = field(default_factory=lambda: Said(""))
    read: Sequence[Made] = ()
    failure: Exception | None = None
    conversation: str = ""
    finished: bool = True

    @property
    def lost(self) -> bool:
        """True if it is no output that another role could read."""
        return self.output.extra_fields[TRANSCRIPT].end_reason in LOST


class RolesAgentLoop(AgentLoopBase):
    """Plays the roles of one prompt; verl makes one of these for each session."""

    def __init__(self, *args: Any, **verls: Any) -> None:
        if args:
            raise TypeError(f"{ROLES} takes keyword arguments, as verl gives them")
        super().__init__(**verls)
        self.verls = verls
        self.cast = cast_of(self.config)

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> list[RoleOutput]:
        """Return all outputs of a prompt, those of the role that answers last."""
        branches, session = int(kwargs.get(LEAVES) or 0) or 1, str(kwargs.get("session_id", 0))
        play = Play(self, sampling_params, priority, kwargs)
        if self.cast.talks:
            fork = 0
            sides = await asyncio.gather(*(play.converse(f"{session}:{number}") for number in range(branches)))
            made = [one for conversation in sides for one in conversation]
        else:
            fork = fork_at(self.cast.settings, self.cast.speaking, play.of) if branches > 1 else 0
            made = await play.branches(fork, branches)
        self._raise_if_all_failed(made)
        made.sort(key=lambda one: self.cast.speaking.index(one.name))  # stable: branches stay in order
        names = {one: f"{session}:{number}" for number, one in enumerate(made)}
        for number, one in enumerate(made):
            feeding = "/".join(names[other] for other in one.read)
            talk = {CONVERSATION: one.conversation, FINISHED: str(int(one.finished))} if one.conversation else {}
            one.output.extra_fields |= {OUTPUT_ID: names[one], FED_BY: feeding, **talk}
            one.output.number_among_outputs(number)
        made[0].output.extra_fields[OUTPUTS] = asked_of(self.cast.settings, len(self.cast.names), fork, branches)
        return [one.output for one in made]

    def _raise_if_all_failed(self, made: Sequence[Made]) -> None:
        failed = [one for one in made if one.failure is not None]
        ends = [one for one in made if one.name == self.cast.answers and not one.lost]
        if failed and not ends:
            raise failed[0].failure or AssertionError
        for one in failed:
            logger.error("an output of the role %s failed and is dropped", one.name, exc_info=one.failure)


class Play:
    """The branches or conversations of one prompt.

    Args:
        loop: The agent loop.
        sampling_params: verl's.
        priority: verl's.
        row: The row of the question.
    """

    def __init__(self, loop: RolesAgentLoop, sampling_params: dict[str, Any], priority: int, row: Mapping[str, Any]):
        self.loop, self.cast = loop, loop.cast
        self.sampling_params, self.priority, self.row = sampling_params, priority, row
        self.before, self.question = question_of(row["raw_prompt"])
        self.of = f"{row.get('global_steps')} {row.get('index')}"
        self.fixed_ids = bool(loop.rollout_config.full_determinism)

    def begin(self, name: str, branch: str, shared_id: str = "", say: Say | None = None) -> RoleLoop:
        """Return the loop of one output.

        Args:
            name: The role.
            branch: Names the output among those of the role.
            shared_id: Id of the requests of outputs with one prompt, so that one server has their prefix.
            say: Its partner in a conversation.
        """
        request_id = shared_id
        if self.fixed_ids:  # verl gives it to the engine: the same in every run, and never two at once
            request_id = f"det-{self.priority}-{self.row.get('index')}-{name}-{branch}"
        part = role_loop.Part(name, self.cast.roles[name], request_id, say)
        return role_loop.RoleLoop(part=part, **self.loop.verls)

    async def write(self, loop: RoleLoop, said: Mapping[str, Said]) -> RoleOutput:
        """Let a role write its row, given what the others said."""
        text = fill(self.cast.prompts[loop.name], self.question, said)
        messages = messages_for(loop.role.system, self.before, text)
        row = {**self.row, "raw_prompt": messages}
        return await loop.run(self.sampling_params, priority=self.priority, **row)

    async def speak(self, name: str, line: Mapping[str, Made], branch: str, shared_id: str = "") -> Made:
        """Return a role's output after those of a branch."""
        loop = self.begin(name, branch, shared_id)
        read = [line[one] for one in self.cast.inputs[name]]
        output = await self.write(loop, {one.name: one.said for one in read})
        return Made(name, output, loop.said(output.extra_fields[TRANSCRIPT]), read, loop.failure)

    async def go_on(
        self, line: Mapping[str, Made], names: Sequence[str], branch: str, *, learnt: bool = True
    ) -> list[Made]:
        """Let these roles speak one after the other, and return their outputs; the first that is lost is the last."""
        line, made = dict(line), list[Made]()
        for name in names:
            line[name] = one = await self.speak(name, line, branch)
            made.append(one)
            if not learnt:
                one.output.extra_fields[LEARNT] = False
            if one.lost:
                break
        return made

    async def branches(self, fork: int, count: int) -> list[Made]:
        """Return the outputs of a prompt that forks at one role, or at each (``is``)."""
        names = self.cast.speaking
        if self.cast.settings.sampling == "is" and count > 1:
            return await self._independent(names, count)
        shared = await self.go_on({}, names[:fork], "0")
        if shared and shared[-1].lost:
            return shared
        line = {one.name: one for one in shared}
        found = await asyncio.gather(*(self.go_on(line, names[fork:], str(number)) for number in range(count)))
        return [*shared, *(one for branch in found for one in branch)]

    async def _independent(self, names: Sequence[str], count: int) -> list[Made]:
        """Return ``count`` outputs of each role for one input, of which one goes on.

        The others are continued too, by outputs that nothing is learnt from: without, they would have no outcome.
        """
        line, made, rest = dict[str, Made](), list[Made](), list[asyncio.Task[list[Made]]]()
        for number, name in enumerate(names):
            shared_id = uuid4().hex
            several = await asyncio.gather(*(self.speak(name, line, str(k), shared_id) for k in range(count)))
            made += several
            good = [one for one in several if not one.lost]
            if not good:
                break
            line[name] = draw(self.cast.settings, self.of, name).choice(good)
            if number + 1 < len(names):
                rest += [
                    asyncio.create_task(
                        self.go_on({**line, name: one}, names[number + 1 :], f"{name}-{k}", learnt=False)
                    )
                    for k, one in enumerate(several)
                    if not one.lost and one is not line[name]
                ]
        return [*made, *(one for branch in await asyncio.gather(*rest) for one in branch)]

    async def converse(self, conversation: str) -> list[Made]:
        """Return each role's side of one conversation."""
        talk = Conversation(self.cast)
        outputs = await talk.hold(
            lambda name, say: self.begin(name, conversation, uuid4().hex, say),
            self.write,
        )
        return [
            Made(loop.name, output, failure=loop.failure, conversation=conversation, finished=talk.finished)
            for loop, output in outputs
        ]


register(ROLES)(RolesAgentLoop)
