"""Keep, forget, draw and save the rollouts of earlier steps that a critic learns from again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from verl_mtgrpo.errors import CreditInputError
from verl_mtgrpo.integration.trainer.memory import Kept, Memory


def row(step: int, number: int = 0, axes: int = 1) -> Kept:
    """A rollout whose lengths and contents tell it from others."""
    prompt, response = 2 + number % 3, 1 + (step + number) % 4
    length = prompt + response
    positions = torch.arange(length, dtype=torch.int32).expand(axes, length) if axes > 1 else torch.arange(length).int()
    return Kept(
        step,
        prompt=torch.full((prompt,), step).int(),
        response=torch.full((response,), 100 * step + number).int(),
        mask=torch.arange(response) % 2 == 0,
        rewards=torch.full((response,), 0.1 * number),
        positions=positions,
    )


def assert_same(one: Kept, other: Kept) -> None:
    assert one.step == other.step
    for name in ("prompt", "response", "mask", "rewards", "positions"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name


def test_the_oldest_are_forgotten_beyond_the_capacity():
    memory = Memory(capacity=5)
    for step in (1, 2, 3):
        memory.add([row(step, number) for number in range(2)])
    assert [kept.step for kept in memory.rows] == [1, 2, 2, 3, 3]
    assert int(memory.rows[0].response[0]) == 101, "the second of step 1"


def test_no_capacity_keeps_nothing():
    memory = Memory(capacity=0)
    memory.add([row(1)])
    assert len(memory) == 0


def test_rollouts_of_more_steps_ago_are_forgotten():
    memory = Memory(capacity=9, max_age=2)
    memory.add([row(step) for step in (1, 2, 3)])
    memory.forget(4)
    assert [kept.step for kept in memory.rows] == [2, 3]
    ageless = Memory(capacity=9)
    ageless.add([row(1)])
    ageless.forget(10_000)
    assert len(ageless) == 1


def test_each_rollout_is_drawn_equally_often_and_never_twice_at_once():
    memory = Memory(capacity=6)
    memory.add([row(1, number) for number in range(6)])
    drawn = [[int(kept.response[0]) for kept in memory.draw(2, f"42/{step}/0")] for step in range(3000)]
    assert all(len(set(pair)) == 2 for pair in drawn)
    counts = Counter(number for pair in drawn for number in pair)
    assert len(counts) == 6
    # Each of 3000 draws has a given row with probability 1/3: 1000, standard deviation 26; five of them.
    assert all(abs(count - 1000) < 130 for count in counts.values()), counts
    assert drawn[7] == [int(kept.response[0]) for kept in memory.draw(2, "42/7/0")], "the same seed, the same rows"


@pytest.mark.parametrize("axes", [1, 4])
def test_what_is_saved_is_what_is_read(tmp_path: Path, axes: int):
    memory = Memory(capacity=20)
    memory.add([row(step, number, axes) for step in (3, 5) for number in range(4)])
    torch.save(memory.state(), tmp_path / "memory.pt")
    again = Memory(capacity=20)
    again.load(torch.load(tmp_path / "memory.pt", weights_only=True))
    assert len(again) == 8
    for one, other in zip(memory.rows, again.rows, strict=True):
        assert_same(one, other)
    for one, other in zip(memory.draw(3, "s"), again.draw(3, "s"), strict=True):
        assert_same(one, other)


def test_a_smaller_capacity_keeps_the_newest_of_a_file():
    memory = Memory(capacity=20)
    memory.add([row(step) for step in (1, 2, 3)])
    again = Memory(capacity=2)
    again.load(memory.state())
    assert [kept.step for kept in again.rows] == [2, 3]


def test_an_empty_memory_is_saved_too(tmp_path: Path):
    torch.save(Memory(capacity=3).state(), tmp_path / "memory.pt")
    again = Memory(capacity=3)
    again.load(torch.load(tmp_path / "memory.pt", weights_only=True))
    assert len(again) == 0


def test_a_file_of_another_version_is_refused():
    with pytest.raises(CreditInputError, match="layout 99, expected layout 1; remove the file"):
        Memory(capacity=3).load({"layout": 99})
