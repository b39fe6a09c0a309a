"""Run the Python of the documentation as it is printed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.docs.pages import PAGES, blocks, name_of

BLOCKS = [(page, block) for page in PAGES for block in blocks(page, "python")]


def run(source: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    return namespace


def block_with(text: str) -> dict[str, Any]:
    (source,) = (block for _, block in BLOCKS if text in block)
    return run(source)


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[name_of(page) for page, _ in BLOCKS])
def test_every_block_runs(page, block):
    run(block)


def test_the_first_example_gives_what_its_comment_says():
    got = block_with("mt_grpo(")["advantages"]
    said = [[2.11, 2.11, 0, 0, 1.00, 1.00], [-1.28, -1.28, 0, 0, -1.00, -1.00], [-0.83, -0.83, -0.83, 0, 0, 0]]
    assert torch.allclose(got, torch.tensor(said), atol=0.006)


def test_the_reward_function():
    from verl_mtgrpo.rewards import ToolCall, Transcript, Turn

    turns = (Turn("x", (0, 1), (ToolCall("search", "{}"),)), Turn("<answer>the Oslo</answer>", (2, 3)))
    rewards = block_with("short_queries")["short_queries"](Transcript(turns, "answered"), {"target": ["Oslo"]})
    assert (rewards.turns, rewards.outcome) == (pytest.approx((0.3, 0.0)), 1.0)


def test_the_environment():
    import asyncio

    from verl_mtgrpo.environments.episode import Episode

    async def play():
        episode = Episode(lambda: block_with("class Guess")["Guess"](most=50), 5)
        await episode.reset({"seed": 141})  # the number is 42
        return [await episode.step(text) for text in ("hm", "10", "<think>43? No.</think> 42")]

    answers = asyncio.run(play())
    assert [(one.text, one.reward, one.done) for one in answers] == [
        ("Say a number.", -0.2, False),
        ("larger", 0.0, False),
        ("smaller", 0.0, True),
    ]
    assert [one.info.get("outcome") for one in answers] == [None, 0.0, 1.0]
