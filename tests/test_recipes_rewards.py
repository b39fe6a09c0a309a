"""The reward functions that recipes bring along, by hand."""

from __future__ import annotations

import pytest

from tests.recipes import RECIPES
from verl_mtgrpo.rewards.presets import load_preset
from verl_mtgrpo.rewards.transcript import ToolCall, Transcript, Turn

FOUND = ToolCall("search", '{"query": "fox"}', result="The red fox jumps.")
BROKEN = ToolCall("search", '{"query', ok=False, error_kind="bad_arguments")
ANSWER = Turn("<answer>red fox</answer>", (4, 6))


@pytest.mark.parametrize(
    ("turns", "outcome"),
    [
        ((Turn("looking", (0, 2), (FOUND,)), ANSWER), 0.8),  # two of two words right, two of three found
        ((Turn("looking", (0, 2), (BROKEN,)), ANSWER), -1.0),
        ((Turn("red fox", (0, 2)),), -1.0),
        ((Turn("<answer>badger</answer>", (0, 2)),), 0.0),
    ],
)
def test_arpo_pays_f1_and_takes_one_for_what_cannot_be_read(turns, outcome):
    rewards = load_preset(f"{RECIPES / 'arpo' / 'rewards.py'}:arpo")
    paid = rewards(Transcript(turns=turns, end_reason="answered"), {"target": ["the red fox jumps"]})
    assert paid.outcome == pytest.approx(outcome)
    assert paid.turns == (0.0,) * len(turns)
