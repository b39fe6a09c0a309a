import numpy as np
import pytest
import torch

from verl_mtgrpo.credit import group_rows, normalize_within_group
from verl_mtgrpo.errors import CreditInputError

CPU = torch.device("cpu")


def norm(values, index, valid=None, scale="std"):
    values = torch.tensor(values)[:, None]
    valid = torch.ones_like(values, dtype=torch.bool) if valid is None else torch.tensor(valid)[:, None]
    groups = group_rows(index, len(values), CPU)
    return normalize_within_group(values, valid, groups, scale=scale, epsilon=1e-6)[:, 0]


def test_worked_by_hand():
    # Group a: 1, 2, 3: mean 2, unbiased std 1. Group b: 0, 4: mean 2, std sqrt((4+4)/1) = 2.828427.
    result = norm([1.0, 0.0, 2.0, 4.0, 3.0], ["a", "b", "a", "b", "a"])
    assert result.tolist() == pytest.approx([-1.0, -0.7071068, 0.0, 0.7071068, 1.0], abs=1e-5)


def test_entries_that_are_not_valid_take_no_part_and_get_zero():
    result = norm([1.0, 3.0, 1000.0], ["a"] * 3, valid=[True, True, False], scale="none")
    assert result.tolist() == [-1.0, 1.0, 0.0]


def test_one_valid_entry_keeps_its_value():
    assert norm([5.0, 7.0], ["a", "a"], valid=[True, False]).tolist() == pytest.approx([5.0, 0.0], rel=1e-5)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 12345.678])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_equal_entries_give_exactly_zero(value, size):
    # The mean of three float32 0.1 is not 0.1; dividing that error by epsilon would give 1e-2 or worse.
    assert norm([value] * size, ["a"] * size).tolist() == [0.0] * size


def test_a_large_common_offset_changes_nothing():
    small = norm([0.0, 0.5, 1.0], ["a"] * 3)
    assert torch.allclose(norm([1e6, 1e6 + 0.5, 1e6 + 1.0], ["a"] * 3), small, atol=1e-6)


@pytest.mark.parametrize(
    "index",
    [
        ["x", "y", "x"],
        [10, 2, 10],
        np.array(["x", "y", "x"], dtype=object),
        np.array([3, 1, 3]),
        torch.tensor([9, 8, 9]),
        [("p", 1), ("p", 2), ("p", 1)],
    ],
    ids=["str", "int", "object", "int64", "tensor", "tuple"],
)
def test_labels_of_any_kind(index):
    groups = group_rows(index, 3, CPU)
    first, second, third = groups.id_B.tolist()
    assert first == third != second
    assert (groups.size, groups.to_rows(groups.sum(torch.ones(3, 1))).tolist()) == (2, [[2.0], [1.0], [2.0]])


def test_wrong_number_of_labels():
    with pytest.raises(CreditInputError, match="2 group labels for 3 rollouts"):
        group_rows(["a", "b"], 3, CPU)


def test_unknown_scale():
    with pytest.raises(CreditInputError, match=r"scale is 'mad', expected one of \('std', 'none'\)"):
        norm([1.0], ["a"], scale="mad")
