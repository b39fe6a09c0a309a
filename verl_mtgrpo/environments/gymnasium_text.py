"""Play environments of gymnasium in words: actions are named, observations are written."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from verl_mtgrpo.environments.protocol import Observation, without_thought
from verl_mtgrpo.errors import ConfigError

try:  # here, because loading takes seconds, and a reset has a time limit
    import gymnasium  # pyright: ignore[reportMissingImports]
    from gymnasium.envs.registration import load_env_creator  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ConfigError("the environments of gymnasium need gymnasium", fix='pip install "verl-mtgrpo[env]"') from error


_COLOURS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")


class GymnasiumText:
    """An environment of gymnasium whose actions are words, or any text.

    Its methods are plain functions, which the agent loop calls in threads. Subclasses may replace :meth:`make`,
    :meth:`describe` and :meth:`reward`.

    Args:
        id: What ``gymnasium.make`` takes, such as ``Taxi-v4`` or ``package.module:Name-v0``.
        actions: The word for each action of a discrete action space, in order. Without words they are numbers, from
            0. An action space of text takes the turn as it is, and needs none.
        invalid_reward: The reward of a turn that names no action. The environment does not move then.
        arguments: Further keyword arguments of ``gymnasium.make``.
    """

    def __init__(
        self,
        id: str,
        actions: Sequence[str] | None = None,
        invalid_reward: float = 0.0,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.id, self.arguments = id, dict(arguments or {})
        self.invalid_reward = invalid_reward
        self.words = [str(word).lower() for word in actions or ()]
        self.env: Any = None
        self.shown = ""
        self.invalid = 0

    def make(self, row: Mapping[str, Any]) -> Any:
        """Return the environment for a row."""
        if "render_mode" not in self.arguments and "ansi" in _render_modes(self.id):
            return gymnasium.make(self.id, render_mode="ansi", **self.arguments)
        return gymnasium.make(self.id, **self.arguments)

    def describe(self, observation: Any) -> str:
        """Return what the model reads: the environment's own text rendering, or the observation as text."""
        if self.env.render_mode == "ansi":
            return in_words(str(self.env.render())).strip()
        return str(observation)

    def reward(self, reward: float, observation: Any, info: Mapping[str, Any]) -> float:
        """Return what a step is paid; the environment's own reward unless a subclass says something else."""
        return reward

    def reset(self, row: Mapping[str, Any]) -> Observation:
        """Begin an episode from the row's seed."""
        self.env = self.make(row)
        space = self.env.action_space
        count = getattr(space, "n", None)
        if count is not None and not self.words:
            self.words = [str(number) for number in range(int(count))]
        if count is not None and len(self.words) != int(count):
            raise ConfigError(f"{self.id} has {int(count)} actions, and {len(self.words)} words were given")
        if count is None and type(space).__name__ != "Text":
            raise ConfigError(
                f"the actions of {self.id} are {space}", expected="a discrete action space or one of text"
            )
        observation, info = self.env.reset(seed=int(row["seed"]))
        self.shown = self.describe(observation)
        return Observation(self.shown, info=dict(info))

    def step(self, text: str) -> Observation:
        """Take the action that the turn names last. A turn that names none is answered with the known words."""
        action = self.action(text)
        if action is None:
            self.invalid += 1
            text = f"There is no such action. Actions: {', '.join(self.words)}\n{self.shown}"
            return Observation(text, self.invalid_reward, info={"invalid": self.invalid})
        observation, reward, terminated, truncated, info = self.env.step(action)
        paid = self.reward(float(reward), observation, info)
        done, self.shown = bool(terminated or truncated), self.describe(observation)
        return Observation(self.shown, paid, done, {**info, "invalid": self.invalid})

    def action(self, text: str) -> Any:
        """Return the action that a turn stands for; None if it names none."""
        said = without_thought(text)
        if not self.words:
            return said
        named = [word for word in re.findall(r"[\w-]+", said.lower()) if word in self.words]
        return self.words.index(named[-1]) if named else None

    def close(self) -> None:
        """Close gymnasium's environment."""
        if self.env is not None:
            self.env.close()


def _render_modes(id: str) -> Sequence[str]:
    """Return the render modes of a registered environment; none if they cannot be looked up without making it."""
    with contextlib.suppress(Exception):  # an environment of a package that registers it only when it is made
        entry: Any = gymnasium.spec(id).entry_point
        creator: Any = load_env_creator(entry) if isinstance(entry, str) else entry
        return list(creator.metadata.get("render_modes", ()))
    return ()


def in_words(text: str) -> str:
    """Return a terminal's text with its colours in words, because some renderings say things by colour alone.

    Taxi marks passenger and destination so: ``(magenta)Y``.
    """

    def word(code: re.Match[str]) -> str:
        numbers = [int(number) for number in code[1].split(";") if number]
        names = [_COLOURS[number % 10] for number in numbers if number // 10 in (3, 4) and number % 10 < 8]
        return f"({names[-1]})" if names else ""

    return re.sub(r"\x1b\[([0-9;]*)m", word, text)
