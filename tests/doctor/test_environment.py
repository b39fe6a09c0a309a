"""The doctor plays the environment of a run: two resets and a step of the first row."""

from __future__ import annotations

import pytest

pytest.importorskip("verl")

from tests.composed import composed
from tests.doctor.setups import Healthy
from verl_mtgrpo.doctor.checks import examine, named
from verl_mtgrpo.doctor.setup import Setup

pytestmark = [pytest.mark.compose, pytest.mark.heavy]


def looked(healthy: Healthy, name: str, *overrides: str):
    """Return status and words of the check."""
    made = composed(
        "+mtgrpo_cpu=default", *healthy.overrides, "+mtgrpo_env=default", f"trainer.turn.environment.name={name}",
        *overrides, preset="mt_grpo",
    )  # fmt: skip
    return [(found.status, str(found)) for found in examine(Setup(made), named("environment"))]


COUNTING = "tests.environments.counting:Counting"
OPTIONS = "+trainer.turn.environment.options"


def test_one_that_can_be_played(healthy, surroundings):
    ((status, said),) = looked(healthy, COUNTING)
    assert (status, said) == ("ok", f"{COUNTING} begins with 15 characters; the turn '?' earns -0.25")


@pytest.mark.parametrize(
    ("overrides", "status", "words"),
    [
        ([f"{OPTIONS}.at=0", f"{OPTIONS}.trouble=raise"], "fail", "fails: it raised in reset: RuntimeError: the serv"),
        ([f"{OPTIONS}.at=1", f"{OPTIONS}.trouble=raise"], "fail", "fails: it raised in step: RuntimeError: the serve"),
        ([f"{OPTIONS}.goals=1"], "fail", "it could not be made: TypeError: "),
        (["trainer.turn.environment.timeout_s=0.1", f"{OPTIONS}.at=0", f"{OPTIONS}.trouble=hang"], "fail",
         "did not answer within 0.1 s"),
        (["data.max_prompt_length=16"], "fail", "tokens, data.max_prompt_length=16; set data.max_prompt_length="),
    ],
)  # fmt: skip
def test_one_that_cannot(healthy, surroundings, overrides, status, words):
    ((found, said),) = looked(healthy, COUNTING, *overrides)
    assert found == status
    assert words in said


def test_one_that_cannot_be_found(healthy, surroundings):
    ((status, said),) = looked(healthy, "nowhere.py:Game")
    assert status == "fail" and "there is no file nowhere.py" in said


def test_one_whose_start_is_left_to_chance(healthy, surroundings):
    file = healthy.file(
        "dice.py",
        """
import random
from verl_mtgrpo.environments import Observation

class Dice:
    async def reset(self, row): return Observation(str(random.random()))
    async def step(self, text): return Observation("")
""",
    )
    ((status, said),) = looked(healthy, f"{file}:Dice")
    assert status == "warn" and "begin differently" in said and 'row["seed"]' in said


def test_a_run_without_an_environment_has_no_such_line(healthy, surroundings):
    made = composed("+mtgrpo_cpu=default", *healthy.overrides, preset="mt_grpo")
    assert examine(Setup(made), named("environment")) == []
