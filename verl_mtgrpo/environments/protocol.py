"""What an environment is: two methods and the answer that both of them return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

_END_OF_THOUGHT = "</think>"


@dataclass(frozen=True)
class Observation:
    """The answer of an environment to a reset or a step.

    Attributes:
        text: What the model reads next. It is not shown after the last step.
        reward: The reward of the step, a finite number. It is paid to the turn that took the step. The reward of a
            reset has no turn to go to, so it has to be 0.
        done: True if the episode is over.
        info: Anything else. Numbers, booleans and texts in it are kept with the rollout; numbers become the metrics
            ``env/<name>`` with their last value. ``info["outcome"]`` is the outcome reward of the episode so far.
    """

    text: str
    reward: float = 0.0
    done: bool = False
    info: Mapping[str, Any] = field(default_factory=dict[str, Any])


@runtime_checkable
class Environment(Protocol):
    """One episode. The class is called with the options of the run once for each rollout.

    Both methods may also be plain functions, which then run in threads of their own. A method ``close()``, if there is
    one, is called when the rollout has ended, however it ended.
    """

    async def reset(self, row: Mapping[str, Any]) -> Observation:
        """Begin the episode, and return what the model reads first (an empty text if the prompt says it all).

        Args:
            row: The row of the data set (``extra_info``, ``reward_model``, ``data_source``, ``raw_prompt`` and what
                else it has), and ``seed``, a number that is the same for all rollouts of the row. A group has to
                start from the same state: draw everything random of the start from this seed.
        """
        ...

    async def step(self, text: str) -> Observation:
        """Carry out what the model wrote in one turn.

        A text that is no action is an ordinary step that the environment answers, perhaps with a negative reward. An
        exception means that the environment itself is broken: the rollout is left out of the update.

        Args:
            text: The turn as the model wrote it, thoughts included, without end tokens.
        """
        ...


def without_thought(text: str) -> str:
    """Return what follows the model's thoughts (``</think>``), without white space around it."""
    return text.rpartition(_END_OF_THOUGHT)[2].strip()
