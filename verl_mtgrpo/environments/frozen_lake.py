"""gymnasium's FrozenLake in words, with a reward for each step.

A board of ice and holes, another one for each row: the way from the start in one corner to the goal in the other is
always there, and not always straight. Each turn is one of the words left, down, right and up.

The reward of a step is shaped by the distance to the goal (Ng, Harada and Russell 1999, with γ = 1)::

    r_k = 0.2 · (d(s_k) - d(s_k+1))        d: the fewest steps to the goal, around the holes

so a step towards the goal earns 0.2, a step away from it loses 0.2, and a step against the edge earns nothing. A step
into a hole, which ends the episode, loses 0.2, and so does a turn that names no direction. Over an episode that stays
on the ice the sum depends only on where it began and ended. The outcome reward, ``info["outcome"]``, is 1 at the goal
and 0 anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from verl_mtgrpo.environments.gymnasium_text import GymnasiumText
from verl_mtgrpo.environments.protocol import Observation

import gymnasium  # pyright: ignore[reportMissingImports]  # isort: skip - the line above says what to do without it
from gymnasium.envs.toy_text.frozen_lake import generate_random_map  # pyright: ignore[reportMissingImports]  # isort: skip

WORDS = ("left", "down", "right", "up")
"""FrozenLake's actions, in its order."""
STEP_REWARD = 0.2
_MOVES = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}
_NAMES = {"S": "ice", "F": "ice", "H": "hole", "G": "goal"}


class FrozenLake(GymnasiumText):
    """FrozenLake-v1 on a random board of the row's seed.

    Args:
        size: Rows and columns of the board.
        frozen: Share of the board that is ice; the rest are holes.
        slippery: True for gymnasium's ice, on which one step in three goes where it should.
    """

    def __init__(self, size: int = 4, frozen: float = 0.75, slippery: bool = False) -> None:
        super().__init__("FrozenLake-v1", WORDS, invalid_reward=-STEP_REWARD)
        self.size, self.frozen, self.slippery = size, frozen, slippery
        self.board: Sequence[str] = ()
        self.distance: dict[tuple[int, int], int] = {}
        self.at = (0, 0)

    def make(self, row: Mapping[str, Any]) -> Any:
        """Return FrozenLake on the row's board."""
        self.board = generate_random_map(self.size, self.frozen, seed=int(row["seed"]))
        self.distance = distances(self.board)
        self.at = (0, 0)
        return gymnasium.make(self.id, desc=list(self.board), is_slippery=self.slippery)

    def describe(self, observation: Any) -> str:
        """Return what is around, and where the goal is."""
        row, column = divmod(int(observation), self.size)
        return described(self.board, (row, column))

    def reward(self, reward: float, observation: Any, info: Mapping[str, Any]) -> float:
        """Return the shaped reward of the step that led to ``observation``."""
        before, self.at = self.at, divmod(int(observation), self.size)
        return step_reward(self.distance, before, self.at)

    def reset(self, row: Mapping[str, Any]) -> Observation:
        """Begin on the row's board."""
        return replace(super().reset(row), info={"outcome": 0.0})

    def step(self, text: str) -> Observation:
        """Take a step; the outcome says whether the goal has been reached."""
        answer = super().step(text)
        outcome = float(self.distance.get(self.at) == 0)
        return replace(answer, info={"invalid": self.invalid, "outcome": outcome})


def described(board: Sequence[str], at: tuple[int, int]) -> str:
    """Return what a place of the board looks like in words.

    Args:
        board: Rows of S, F, H and G, as gymnasium has them.
        at: Row and column.
    """
    around = ", ".join(f"{word} {_cell(board, at, word)}" for word in WORDS)
    down, right = len(board) - 1 - at[0], len(board) - 1 - at[1]
    return f"{around}; goal {down} down {right} right"


def distances(board: Sequence[str]) -> dict[tuple[int, int], int]:
    """Return the fewest steps to the goal from each place on the ice that it can be reached from.

    Args:
        board: Rows of S, F, H and G.
    """
    goal = next((row, line.index("G")) for row, line in enumerate(board) if "G" in line)
    found, edge = {goal: 0}, [goal]
    for row, column in edge:  # grows while it is read
        for down, right in _MOVES.values():
            place = (row + down, column + right)
            inside = 0 <= place[0] < len(board) and 0 <= place[1] < len(board[0])
            if inside and place not in found and board[place[0]][place[1]] != "H":
                found[place] = found[row, column] + 1
                edge.append(place)
    return found


def step_reward(distance: Mapping[tuple[int, int], int], before: tuple[int, int], after: tuple[int, int]) -> float:
    """Return the shaped reward of a step from one place to another; a place without a distance is a hole."""
    if after not in distance:
        return -STEP_REWARD
    return STEP_REWARD * (distance[before] - distance[after])


def moved(board: Sequence[str], at: tuple[int, int], word: str) -> tuple[int, int]:
    """Return the place that a step leads to on ice that is not slippery; the edge stops it."""
    down, right = _MOVES[word]
    last = len(board) - 1
    return min(max(at[0] + down, 0), last), min(max(at[1] + right, 0), last)


def _cell(board: Sequence[str], at: tuple[int, int], word: str) -> str:
    place = moved(board, at, word)
    return "edge" if place == at else _NAMES[board[place[0]][place[1]]]
