"""A critic's memory: the doctor says what of it is never read."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("verl")

from tests.composed import composed
from tests.doctor.setups import ROLLOUT
from verl_mtgrpo.doctor.setup import Setup
from verl_mtgrpo.doctor.unused import unused

pytestmark = pytest.mark.compose

CRITIC = "trainer.turn.critic"
SIZES = (f"{ROLLOUT}.n=2", "data.train_batch_size=8", "critic.ppo_mini_batch_size=4")


@pytest.mark.parametrize(
    ("preset", "overrides", "says"),
    [
        ("archer", (), None),
        ("archer", (f"{CRITIC}.memory=8", f"{CRITIC}.replay=0.5"), None),  # exactly a mini-batch of 4 x 2 rows
        ("archer", (f"{CRITIC}.memory=7",), "at most 7 earlier rollouts per round .* a mini-batch of 8, so none"),
        ("archer", (f"{CRITIC}.replay=0.4",), "at most 6.4 earlier rollouts per round"),
        ("turn_td", (f"{CRITIC}.replay=2",), "critic.replay is not read with trainer.turn.critic.memory=0"),
        ("turn_td", (f"{CRITIC}.max_age=3",), "critic.max_age is not read"),
    ],
)
def test_a_memory_that_nothing_is_drawn_from_is_a_warning(preset, overrides, says):
    found = [one for one in unused(Setup(composed(*SIZES, *overrides, preset=preset))) if CRITIC in one.message]
    assert [one.status for one in found] == ([] if says is None else ["warn"])
    if says is not None:
        assert re.search(says, found[0].message)
