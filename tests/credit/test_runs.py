"""The two forms of each primitive, numpy's and torch's, against each other and a loop."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.credit.batches import ON_ROWS, estimate, random_batch
from verl_mtgrpo.credit import runs


def mask_of(seed: int, rows: int = 7, length: int = 11) -> torch.Tensor:
    return (torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < 0.6).long()


def runs_by_loop(mask: torch.Tensor) -> list[int]:
    starts, at = [], 0
    for row in mask.tolist():
        for _, group in itertools.groupby(row):
            starts.append(at)
            at += len(list(group))
    return starts


@pytest.mark.parametrize("find", [runs._find_on_host, runs._find_on_device])
@pytest.mark.parametrize("seed", range(10))
def test_where_runs_begin(find, seed):
    mask = mask_of(seed)
    start_R, _, bad, (seven,) = find(mask, torch.tensor(7))
    assert start_R.tolist() == runs_by_loop(mask)
    assert (bad, seven) == (False, 7)


def test_the_device_form_counts_turns():
    assert runs._find_on_device(torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1]]))[1] == 2


@pytest.mark.parametrize("find", [runs._find_on_host, runs._find_on_device])
@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan")])
def test_what_is_no_mask_is_noticed(find, value):
    assert find(torch.tensor([[1, 0, value]]))[2]


@pytest.mark.parametrize("seed", range(5))
def test_sums_and_repeats_are_the_same_on_a_device(seed, monkeypatch):
    mask = mask_of(seed)
    values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed))
    start_R, *_ = runs.find_runs(mask)
    expected = [piece.sum() for piece in torch.tensor_split(values.view(-1), start_R[1:])]
    sums = runs.sum_runs(values, start_R)
    assert torch.allclose(sums, torch.stack(expected), atol=1e-6)
    spread = runs.repeat_runs(sums, start_R, (7, 11))
    assert torch.equal(runs.find_runs(mask)[0], start_R)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    assert torch.allclose(runs.sum_runs(values, start_R), sums, atol=1e-6)
    assert torch.equal(runs.repeat_runs(sums, start_R, (7, 11)), spread)


@pytest.mark.parametrize("name", ON_ROWS)
@pytest.mark.parametrize("seed", range(3))
def test_on_a_device_every_estimator_gives_the_same_with_one_trip_to_the_host(name, seed, monkeypatch):
    batch = random_batch(seed)
    expected = estimate(name, batch.rewards, batch.mask, batch.index)
    trips = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)  # the form that runs on a GPU
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: trips.append(self) or tolist(self))
    for synchronises in ("item", "__int__", "__bool__", "__float__", "__index__", "nonzero", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, synchronises, lambda *_, what=synchronises: pytest.fail(what))
    result = estimate(name, batch.rewards, batch.mask, batch.index)
    monkeypatch.undo()
    assert len(trips) == 1
    for got, wanted in zip(result, expected, strict=True):
        assert torch.allclose(got, wanted, atol=1e-5)
