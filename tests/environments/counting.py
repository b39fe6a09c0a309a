"""Environments for tests, and how they are played."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, ClassVar

from verl_mtgrpo.environments import Observation
from verl_mtgrpo.environments.episode import Episode


def play(make, *turns, timeout_s=60.0, row=None):
    """Return the answers of one episode, and what it said beside them."""

    async def go():
        episode = Episode(make, timeout_s)
        try:
            answers = [await episode.reset(row or {"seed": 1})]
            answers += [await episode.step(turn) for turn in turns]
            return answers, episode.info
        finally:
            await episode.close()

    return asyncio.run(go())


class Counting:
    """Counts to ``goal``. The turn ``up`` is paid 0.5, any other -0.25; the last number has the outcome 1."""

    closed: ClassVar[list[int]] = []
    rows: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, goal: int = 3, at: int = -1, trouble: str = "", outcome: bool = True):
        self.goal, self.at, self.trouble, self.outcome = goal, at, trouble, outcome
        self.count = self.steps = 0

    async def reset(self, row):
        Counting.rows.append(dict(row))
        await self._trouble()
        return Observation("The count is 0.")

    async def step(self, text):
        self.steps += 1
        await self._trouble()
        up = text.strip() == "up"
        self.count += up
        done = self.count >= self.goal
        info = {"count": self.count, "secret": object(), **({"outcome": float(done)} if self.outcome else {})}
        return Observation(f"The count is {self.count}.", 0.5 if up else -0.25, done, info)

    async def close(self):
        Counting.closed.append(self.steps)

    async def _trouble(self):
        if self.steps != self.at:
            return
        if self.trouble == "raise":
            raise RuntimeError("the server is gone")
        if self.trouble == "hang":
            await asyncio.sleep(60)


class Plain(Counting):
    """The same without coroutines; each step waits for those of the other seven."""

    together: ClassVar[threading.Barrier] = threading.Barrier(8)

    def reset(self, row):  # type: ignore[override]
        return Observation("The count is 0.")

    def step(self, text):  # type: ignore[override]
        self.together.wait(timeout=60)
        return Observation("", 1.0, True)

    def close(self):  # type: ignore[override]
        Counting.closed.append(-1)


class Answers:
    """Gives the answers that it is given."""

    def __init__(self, first: Any = None, then: Any = None):
        self.first, self.then = first or Observation(""), then

    async def reset(self, row):
        return self.first

    async def step(self, text):
        return self.then


class NoStep:
    """Is no environment."""

    async def reset(self, row):
        return Observation("")


class Tower:
    """Pays the toy policy of the tests 0.5 for a search and 0.1 for an answer; the right one ends it. It may break.

    Args:
        breaks: Raise in the second step of every row whose index is a multiple of this; 0: never.
    """

    def __init__(self, breaks: int = 0):
        self.breaks, self.steps, self.index = breaks, 0, 0

    async def reset(self, row):
        self.index = int(row["extra_info"]["index"])
        return Observation("Search or answer.", info={"outcome": 0.0})

    async def step(self, text):
        self.steps += 1
        if self.steps == 2 and self.breaks and self.index % self.breaks == 0:
            raise RuntimeError("the tower fell")
        right = "Oslo" in text
        info = {"outcome": float(right), "steps": self.steps}
        return Observation("The tower is in Oslo.", 0.5 if "search" in text else 0.1, right, info)
