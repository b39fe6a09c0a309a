"""Groups of roles without anything to learn from."""

from __future__ import annotations

import pytest
import torch

from verl_mtgrpo.watch.roles import role_metrics


def test_groups_in_which_no_output_moves():
    advantages = torch.tensor([[0.5, 0], [-0.5, 0], [0, 0], [0, 0], [1.0, 9], [0, 0], [0, 0], [0, 0], [7, 0]])
    mask = torch.tensor([[1, 0]] * 7 + [[0, 0]] * 2)
    index = ["a", "a", "a", "a", "b", "b", "b", "b", "b"]
    role = ["rewriter", "rewriter", "answerer", "answerer", "rewriter", "rewriter", "answerer", "reader", None]
    # rewriter of a and b move; both answerers of a stay; b's answerer is alone; the reader is frozen; the last fills up
    assert role_metrics(advantages, mask, index, role) == {
        "role/rewriter/zero_variance": 0.0,
        "role/answerer/zero_variance": 1.0,
        "guard/zero_variance_groups": pytest.approx(1 / 3),
    }


def test_what_lies_outside_the_mask_does_not_count():
    advantages, mask = torch.tensor([[0.0, 3.0], [0.0, 3.0]]), torch.tensor([[1, 0], [1, 0]])
    assert role_metrics(advantages, mask, ["a", "a"], ["x", "x"])["role/x/zero_variance"] == 1.0
    assert role_metrics(advantages, mask, ["a", "b"], ["x", "x"]) == {}
