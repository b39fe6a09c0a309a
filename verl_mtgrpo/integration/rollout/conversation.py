"""A conversation of roles: they speak in turns, and each has a row with its own turns (mask 1) and what it heard.

After ReMA (arXiv 2503.09501; ziyuwan/ReMA-public@24b5b47, ``rema_separated_trainer/ppo/multi_agent_rollout.py``): the
word that finishes a conversation is looked for when everybody has spoken in that round, so the one who answers has
always read the last plan. A turn that is cut off by the end of its row ends the conversation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from verl_mtgrpo.roles import Cast
from verl_mtgrpo.roles.prompts import Said

if TYPE_CHECKING:
    from verl_mtgrpo.integration.rollout.role_loop import RoleLoop, RoleOutput, Say

Begin: TypeAlias = "Callable[[str, Say], RoleLoop]"
Write: TypeAlias = "Callable[[RoleLoop, Mapping[str, Said]], Awaitable[RoleOutput]]"


class Speaker:
    """One role in a conversation: its loop runs in a task of its own and waits while others speak."""

    def __init__(self, name: str, begin: Begin, write: Write):
        self.loop = begin(name, self._say)
        self._write = write
        self._said: asyncio.Future[str]  # made anew for everything that it says
        self._heard: asyncio.Future[str | None] | None = None
        self.task: asyncio.Task[RoleOutput] | None = None
        self.heard_up_to = 0

    async def _say(self, text: str) -> str | None:
        """Say something and wait for an answer; called in the task of the loop."""
        self._heard = asyncio.get_running_loop().create_future()
        self._said.set_result(text)
        return await self._heard

    async def speak(self, heard: str, said: Mapping[str, Said]) -> str | None:
        """Return what the role says next; None if it has no more to say: its row is full, or it failed.

        Args:
            heard: What it has heard since it spoke.
            said: What the others said last, for its first prompt.
        """
        self._said = asyncio.get_running_loop().create_future()
        if self.task is None:
            self.task = asyncio.ensure_future(self._write(self.loop, said))
        elif self._heard is not None:
            self._heard.set_result(heard)
        await asyncio.wait({self.task, self._said}, return_when=asyncio.FIRST_COMPLETED)
        return self._said.result() if self._said.done() else None

    async def leave(self) -> RoleOutput:
        """End the role's side and return its row."""
        assert self.task is not None
        if not self.task.done() and self._heard is not None and not self._heard.done():
            self._heard.set_result(None)
        return await self.task


class Conversation:
    """One conversation.

    Args:
        cast: The roles.

    Attributes:
        finished: True if it has ended as it should: with its word, or after its rounds if it has none.
    """

    def __init__(self, cast: Cast):
        self.cast, self.finished = cast, False
        self._turns: list[tuple[str, str]] = []

    async def hold(self, begin: Begin, write: Write) -> list[tuple[RoleLoop, RoleOutput]]:
        """Let the roles talk until the end, and return the rows of those that spoke.

        Args:
            begin: Makes the loop of a role that talks to us.
            write: Runs it, given what was said before it speaks for the first time.
        """
        speakers: dict[str, Speaker] = {}
        try:
            await self._talk(speakers, begin, write)
            return [(speaker.loop, await speaker.leave()) for speaker in speakers.values()]
        finally:
            for speaker in speakers.values():
                if speaker.task is not None:
                    speaker.task.cancel()

    async def _talk(self, speakers: dict[str, Speaker], begin: Begin, write: Write) -> None:
        settings, last = self.cast.settings, dict[str, Said]()
        for _ in range(settings.rounds):
            raw: dict[str, str] = {}
            for name in self.cast.names:
                if name not in speakers:
                    speakers[name] = Speaker(name, begin, write)
                speaker = speakers[name]
                text = await speaker.speak(self._heard_by(name, speaker), last)
                if text is None:
                    return
                raw[name], last[name] = text, Said(speaker.loop.told(text))
                self._turns.append((name, last[name].text))
                speaker.heard_up_to = len(self._turns)
            if settings.finish and settings.finish in raw[self.cast.finisher]:
                self.finished = True
                return
        self.finished = not settings.finish

    def _heard_by(self, name: str, speaker: Speaker) -> str:
        """Return what a role hears before it speaks again, as its ``sees`` says."""
        new = [(who, text) for who, text in self._turns[speaker.heard_up_to :] if who != name]
        sees: Any = self.cast.roles[name].sees
        if not new or sees == "own":
            return ""
        return new[-1][1] if sees == "partner" else "\n\n".join(f"{who}: {text}" for who, text in new)
