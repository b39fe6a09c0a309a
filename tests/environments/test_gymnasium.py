"""gymnasium in words: FrozenLake's rewards against paths found by hand, Taxi, and actions that are none."""

from __future__ import annotations

import asyncio
import string

import pytest

pytest.importorskip("gymnasium")

from tests.environments.counting import play
from verl_mtgrpo.environments.frozen_lake import FrozenLake, described, distances, moved, step_reward
from verl_mtgrpo.environments.gymnasium_text import GymnasiumText
from verl_mtgrpo.environments.loading import load_environment
from verl_mtgrpo.errors import EnvironmentFailed

BOARD = ["SFFF", "FHFH", "FFFH", "HFFG"]
# Counted by hand; None is a hole, or ice that the goal cannot be reached from.
DISTANCES = [[6, 5, 4, 5], [5, None, 3, None], [4, 3, 2, None], [None, 2, 1, 0]]


def test_distances_around_the_holes():
    expected = {(r, c): d for r, line in enumerate(DISTANCES) for c, d in enumerate(line) if d is not None}
    assert distances(BOARD) == expected


@pytest.mark.parametrize(
    ("at", "word", "to", "reward"),
    [
        ((0, 0), "right", (0, 1), 0.2),
        ((0, 2), "right", (0, 3), -0.2),
        ((0, 0), "up", (0, 0), 0.0),
        ((0, 1), "down", (1, 1), -0.2),
        ((3, 2), "right", (3, 3), 0.2),
    ],
)
def test_the_reward_of_a_step(at, word, to, reward):
    assert moved(BOARD, at, word) == to
    assert step_reward(distances(BOARD), at, to) == pytest.approx(reward)


def test_a_place_in_words():
    assert described(BOARD, (0, 0)) == "left edge, down ice, right ice, up edge; goal 3 down 3 right"
    assert described(BOARD, (2, 2)) == "left ice, down ice, right hole, up ice; goal 1 down 1 right"
    assert described(BOARD, (3, 2)) == "left ice, down edge, right goal, up ice; goal 0 down 1 right"


def words_to_the_goal(game):
    at, words = (0, 0), []
    while game.distance[at]:
        nearer = [word for word in ("left", "down", "right", "up")
                  if game.distance.get(moved(game.board, at, word), 99) < game.distance[at]]  # fmt: skip
        words.append(nearer[0])
        at = moved(game.board, at, nearer[0])
    return words


@pytest.mark.parametrize("seed", range(6))
def test_gymnasium_moves_as_the_board_says(seed):
    """Played in gymnasium, a way found on the board alone reaches the goal with nothing but rewards of 0.2."""
    game = FrozenLake()
    game.reset({"seed": seed})
    words = words_to_the_goal(game)
    answers, info = play(FrozenLake, *[f"I go {word}." for word in words], row={"seed": seed})
    assert [one.reward for one in answers] == pytest.approx([0.0, *[0.2] * len(words)])
    assert [one.done for one in answers] == [False] * len(words) + [True]
    assert info == {"invalid": 0.0, "outcome": 1.0}
    assert len(words) >= 6


def test_a_group_starts_on_the_same_board_and_others_on_others():
    first = [play(FrozenLake, "down", row={"seed": seed})[0] for seed in (1, 1)]
    assert first[0] == first[1]
    boards = set()
    for seed in range(20):
        game = FrozenLake()
        game.reset({"seed": seed})
        boards.add(tuple(game.board))
    assert len(boards) > 15


def test_a_hole_ends_the_episode():
    for seed in range(20):
        game = FrozenLake()
        game.reset({"seed": seed})
        for word in ("down", "right"):
            row, column = moved(game.board, (0, 0), word)
            if game.board[row][column] == "H":
                answer = game.step(word)
                assert (answer.reward, answer.done, answer.info["outcome"]) == (-0.2, True, 0.0)
                return
    pytest.fail("no board with a hole beside the start")


def test_a_turn_without_an_action_does_not_move():
    answers, info = play(FrozenLake, "jump", "<think>left? up?</think> right or no, Down", row={"seed": 3})
    assert (answers[1].reward, answers[1].done) == (-0.2, False)
    assert answers[1].text == f"There is no such action. Actions: left, down, right, up\n{answers[0].text}"
    assert info["invalid"] == 1.0
    assert "goal 2 down 3 right" in answers[2].text, "the last word counts, thoughts do not"


def test_slippery_ice_slips_the_same_way_for_a_group():
    make = load_environment("frozen_lake", {"slippery": True, "size": 6})
    plays = [play(make, *["down"] * 3, row={"seed": 5})[0] for _ in range(2)]
    assert plays[0] == plays[1]


def test_taxi_by_number_and_by_word():
    by_number, _ = play(load_environment("gymnasium", {"id": "Taxi-v4"}), "action 1", row={"seed": 3})
    words = ["south", "north", "east", "west", "pickup", "dropoff"]
    by_word, info = play(load_environment("gymnasium", {"id": "Taxi-v4", "actions": words}), "North!", row={"seed": 3})
    assert by_number == by_word
    rows = by_word[0].text.splitlines()
    assert rows[1] == "|(blue)R: |(yellow) : :G|", "the passenger and the taxi, which gymnasium shows by colour alone"
    assert (by_word[1].reward, info["invalid"]) == (-1.0, 0.0)


def test_what_cannot_be_played_in_words():
    with pytest.raises(EnvironmentFailed, match="the actions of Pendulum-v1 are Box"):
        play(lambda: GymnasiumText("Pendulum-v1"))
    with pytest.raises(EnvironmentFailed, match="Taxi-v4 has 6 actions, and 2 words were given"):
        play(lambda: GymnasiumText("Taxi-v4", ["a", "b"]))


def test_an_environment_whose_actions_are_texts():
    import gymnasium
    from gymnasium import spaces

    class Echo(gymnasium.Env):
        action_space, observation_space = spaces.Text(100), spaces.Text(100, charset=string.printable)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return f"seeded with {seed}", {}

        def step(self, action):
            return f"you said {action}", 1.5, False, action == "stop", {"long": len(action)}

    gymnasium.register("Echo-v0", Echo)
    answers, info = play(lambda: GymnasiumText("Echo-v0"), "<think>x</think>hello there", "stop", row={"seed": 3})
    assert [one.text for one in answers] == ["seeded with 3", "you said hello there", "you said stop"]
    assert [(one.reward, one.done) for one in answers[1:]] == [(1.5, False), (1.5, True)]
    assert info == {"long": 4.0, "invalid": 0.0}


def test_closing_before_anything_was_made():
    asyncio.run(asyncio.to_thread(GymnasiumText("Taxi-v4").close))
