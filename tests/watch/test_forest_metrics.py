"""The metrics of a forest, worked by hand."""

from __future__ import annotations

import pytest
import torch

from verl_mtgrpo.watch.forest import forest_metrics


def test_by_hand():
    # a and b share a first turn of two tokens, c stands alone; every second turn has one token.
    mask = torch.tensor([[1, 1, 0, 1]] * 3)
    rewards = torch.tensor([[0, 0.5, 0, 1.0], [0, 0.5, 0, 0.0], [0, 0.0, 0, 1.0]])
    found = forest_metrics(rewards, mask, ["q"] * 3, ["0/0.0", "0/0.1", "1/1.0"])
    # Nodes: two first turns, three second ones, of which two have a sibling. Tokens: 9, of which a and b have 2 twice.
    # Returns: second turns 1 0, std .7071; first turns .5 + .5 = 1 and 0 + 1 = 1, std 0. Mean .35355.
    assert found == pytest.approx(
        {
            "forest/nodes": 5,
            "forest/shared_fraction": 4 / 9,
            "forest/with_siblings": 2 / 3,
            "forest/sibling_std": 0.35355,
        },
        abs=1e-4,
    )


def test_chains_share_nothing_and_one_turn_has_no_later_one():
    mask = torch.tensor([[1, 1], [1, 0]])
    found = forest_metrics(torch.tensor([[0, 1.0], [0, 0]]), mask, ["q", "q"], [None, ""])
    assert found["forest/shared_fraction"] == 0
    assert "forest/with_siblings" not in found
    assert found["forest/sibling_std"] == pytest.approx(0.7071, abs=1e-4)


def test_an_empty_batch_has_no_shares():
    assert forest_metrics(torch.zeros(2, 3), torch.zeros(2, 3), ["q", "q"], [None, "0/1"]) == {"forest/nodes": 0}
