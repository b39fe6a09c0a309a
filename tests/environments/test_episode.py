"""One episode: time limits, errors, nonsense, seeds, and environments by name."""

from __future__ import annotations

import asyncio
import hashlib
import math

import numpy as np
import pytest

from tests.environments.counting import Answers, Counting, Plain, play
from verl_mtgrpo.environments import Environment, Observation, without_thought
from verl_mtgrpo.environments.episode import Episode, seed_of
from verl_mtgrpo.environments.loading import load_environment
from verl_mtgrpo.errors import ConfigError, EnvironmentFailed, EnvironmentTimeout

COUNTING = "tests.environments.counting:Counting"


def test_rewards_go_to_their_steps_and_info_keeps_numbers_and_texts():
    Counting.closed.clear()
    answers, info = play(lambda: Counting(goal=2), "up", "what?", "up")
    assert [one.text for one in answers] == [f"The count is {n}." for n in (0, 1, 1, 2)]
    assert [one.reward for one in answers] == [0.0, 0.5, -0.25, 0.5]
    assert [one.done for one in answers] == [False, False, False, True]
    assert info == {"count": 2.0, "outcome": 1.0}, "the object is left out"
    assert Counting.closed == [3]


def test_numbers_of_numpy_are_numbers():
    answers, info = play(lambda: Answers(then=Observation("", np.float32(0.5), np.True_, {"n": np.int64(3)})), "x")
    assert (answers[1].reward, answers[1].done, info) == (0.5, True, {"n": 3.0})
    assert type(answers[1].reward) is float


def test_plain_methods_do_not_block_the_event_loop():
    async def go():
        episodes = [Episode(Plain, 60) for _ in range(8)]
        await asyncio.gather(*(one.reset({}) for one in episodes))
        answers = await asyncio.gather(*(one.step("x") for one in episodes))
        await asyncio.gather(*(one.close() for one in episodes))
        return answers

    assert [one.reward for one in asyncio.run(go())] == [1.0] * 8, "they wait for one another, so they ran together"


@pytest.mark.parametrize("at", [0, 2])
def test_an_environment_that_hangs(at):
    Counting.closed.clear()
    with pytest.raises(EnvironmentTimeout, match=r"did not answer within 1 s .*timeout_s"):
        # The steps before it may be slow on a busy machine.
        play(lambda: Counting(at=at, trouble="hang"), "up", "up", timeout_s=1)
    assert Counting.closed == [at], "it is closed all the same"


@pytest.mark.parametrize(("at", "method"), [(0, "reset"), (1, "step")])
def test_an_environment_that_raises(at, method):
    with pytest.raises(EnvironmentFailed, match=f"raised in {method}: RuntimeError: the server is gone") as raised:
        play(lambda: Counting(at=at, trouble="raise"), "up", "up")
    assert raised.value.kind == "environment_error"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (("text", 1.0), r"step returned a tuple, expected .*Observation"),
        (None, "step returned a NoneType"),
        (Observation(None), "Observation whose text is a NoneType"),
        (Observation("", math.nan), "the reward nan, expected a finite number"),
        (Observation("", "0.5"), "the reward '0.5'"),
        (Observation("", None), "the reward None"),
        (Observation("", info={"outcome": "won"}), "outcome 'won', expected a finite number"),
        (Observation("", info={"outcome": math.inf}), "outcome inf"),
    ],
    ids=str,
)
def test_nonsense_is_refused(answer, message):
    with pytest.raises(EnvironmentFailed, match=message):
        play(lambda: Answers(then=answer), "x")


def test_a_reset_earns_nothing():
    with pytest.raises(EnvironmentFailed, match=r"reset returned the reward 1.0"):
        play(lambda: Answers(first=Observation("", 1.0)))


def test_a_constructor_that_does_not_take_the_options():
    with pytest.raises(EnvironmentFailed, match=r"could not be made: TypeError: .*goals"):
        play(load_environment(COUNTING, {"goals": 3}))


def test_the_seed_depends_on_the_row_alone():
    row = {"data_source": "x", "extra_info": {"index": 1, "board": np.arange(3)}, "raw_prompt": [{"content": "?"}]}
    seed = seed_of(row, 0)
    assert 0 <= seed < 2**31
    assert seed == seed_of({**row, "uid": "another", "global_steps": 7}, 0)
    others = [{**row, "extra_info": {"index": 2}}, {**row, "raw_prompt": []}, {**row, "data_source": "y"}]
    assert len({seed, seed_of(row, 1), *(seed_of(other, 0) for other in others)}) == 5
    text = '[0, "x", {"board": [0, 1, 2], "index": 1}, null, [{"content": "?"}]]'
    assert seed == int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) // 2, "the same on every machine"


def test_environments_by_name(tmp_path):
    assert isinstance(load_environment(COUNTING, {"goal": 5})(), Environment)
    assert load_environment(COUNTING, {"goal": 5})().goal == 5
    file = tmp_path / "mine.py"
    file.write_text("""
from __future__ import annotations
from dataclasses import dataclass
from verl_mtgrpo.environments import Observation

@dataclass
class Mine:
    size: int = 3
    async def reset(self, row): return Observation("")
    async def step(self, text): return Observation("", done=True)
""")
    assert load_environment(f"{file}:Mine", {})().size == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", r"has no environment; set trainer.turn.environment.name to one of \['frozen_lake', 'gymnasium'\]"),
        ("lake", r"is 'lake', expected one of \['frozen_lake', 'gymnasium'\], or a class"),
        ("nowhere.py:X", "there is no file nowhere.py"),
        ("json:Game", "json has no class 'Game'"),
        ("tests.environments.counting:NoStep", "has no method step"),
        ("no_such_package:Game", "cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_names_that_are_wrong(name, message):
    with pytest.raises(ConfigError, match=message):
        load_environment(name, {})


def test_what_follows_the_thought():
    assert without_thought("<think>\nleft or right?</think>\n\nright\n") == "right"
    assert without_thought(" up ") == "up"
