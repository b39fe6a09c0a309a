"""Play one episode of an environment that may hang, raise or answer nonsense."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from verl_mtgrpo.environments.protocol import Observation
from verl_mtgrpo.errors import EnvironmentFailed, EnvironmentTimeout
from verl_mtgrpo.rewards.environment import OUTCOME
from verl_mtgrpo.threads import ENVIRONMENT, apart

logger = logging.getLogger(__name__)

_SEEDED_BY = ("data_source", "extra_info", "reward_model", "raw_prompt")


def seed_of(row: Mapping[str, Any], seed: int) -> int:
    """Return the seed of a row's episodes, between 0 and 2^31 - 1.

    It depends on the content of the row only, so it is the same for all rollouts of a group, in every epoch and on
    every machine; rows that differ in their prompt, truth or ``extra_info`` have different ones.

    Args:
        row: The row of the data set.
        seed: The seed of the run's environments.
    """
    content = [seed, *(row.get(name) for name in _SEEDED_BY)]
    text = json.dumps(content, sort_keys=True, default=_plain)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _plain(value: Any) -> Any:
    """Return an array as a list, and anything else that is not JSON as its type: addresses differ between processes."""
    listed = getattr(value, "tolist", None)
    return listed() if callable(listed) else type(value).__name__


class Episode:
    """One episode, with a time limit for each call and checked answers.

    Args:
        make: Returns a new environment.
        timeout_s: Longest time in seconds for one call.
    """

    def __init__(self, make: Callable[[], Any], timeout_s: float) -> None:
        self._make, self._timeout_s = make, timeout_s
        self._environment: Any = None
        self.info: dict[str, Any] = {}
        """The numbers, booleans and texts of all answers so far; later ones replace earlier ones of the same name."""

    async def reset(self, row: Mapping[str, Any]) -> Observation:
        """Make the environment, and return its first answer.

        Raises:
            EnvironmentFailed: It raised, did not answer in time, or answered with something else.
        """
        self._environment = await self._call(self._make, what="could not be made")
        first = self._checked(await self._call(self._environment.reset, row, what="raised in reset"), "reset")
        if first.reward:
            raise EnvironmentFailed(
                f"reset returned the reward {first.reward}, and there is no turn that it could be paid to",
                fix="return Observation(text, reward=0.0) from reset",
            )
        return first

    async def step(self, text: str) -> Observation:
        """Take a step, and return the answer.

        Raises:
            EnvironmentFailed: It raised, did not answer in time, or answered with something else.
        """
        return self._checked(await self._call(self._environment.step, text, what="raised in step"), "step")

    async def close(self) -> None:
        """Close the environment if it can be closed. A failure is only logged: the rollout has its rewards already."""
        close = getattr(self._environment, "close", None)
        if callable(close):
            try:
                await self._call(close, what="raised in close")
            except EnvironmentFailed as error:
                logger.warning("%s", error)

    async def _call(self, function: Callable[..., Any], *arguments: Any, what: str) -> Any:
        try:
            return await asyncio.wait_for(_answer(function, *arguments), self._timeout_s)
        except asyncio.TimeoutError as error:
            raise EnvironmentTimeout(
                f"it did not answer within {self._timeout_s:g} s ({what.rpartition(' ')[2]})",
                fix="raise trainer.turn.environment.timeout_s, or make it faster",
            ) from error
        except Exception as error:  # the environment is the user's: it may raise anything
            raise EnvironmentFailed(f"it {what}: {type(error).__name__}: {error}") from error

    def _checked(self, answer: Any, method: str) -> Observation:
        if not isinstance(answer, Observation):
            raise EnvironmentFailed(
                f"{method} returned a {type(answer).__name__}",
                expected="verl_mtgrpo.environments.Observation(text, reward, done, info)",
            )
        text: Any = answer.text
        if not isinstance(text, str):
            raise EnvironmentFailed(
                f"{method} returned an Observation whose text is a {type(text).__name__}", expected="a text"
            )
        reward = _number(answer.reward)
        if reward is None or not math.isfinite(reward):
            raise EnvironmentFailed(f"{method} returned the reward {answer.reward!r}", expected="a finite number")
        outcome = answer.info.get(OUTCOME)
        if outcome is not None and not isinstance(_scalar(outcome), float):
            raise EnvironmentFailed(f"{method} returned the outcome {outcome!r}", expected="a finite number")
        scalars = {str(name): _scalar(value) for name, value in answer.info.items()}
        info = {name: value for name, value in scalars.items() if value is not None}
        self.info.update(info)
        return Observation(text, reward, bool(answer.done), info)


async def _answer(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a coroutine function on the event loop, and any other in a thread, so that it cannot block the rollouts."""
    if inspect.iscoroutinefunction(function):
        return await function(*arguments)
    result = await apart(ENVIRONMENT, function, *arguments)
    return await result if inspect.isawaitable(result) else result


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _scalar(value: Any) -> float | str | None:
    """Return a number or boolean (those of numpy and torch too) as a float, a text as it is, None for the rest."""
    if isinstance(value, str):
        return value
    single = isinstance(value, bool | int | float) or getattr(value, "shape", None) == ()
    number = _number(value) if single else None
    return number if number is not None and math.isfinite(number) else None
