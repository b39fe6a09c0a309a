"""Run the kit under pytest on a machine with a GPU: `pytest -m gpu tests/gpu`. `make test-gpu` prints tables too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu import estimators, machine, verl_runs
from tests.gpu.arguments import SIZES, parse_sizes

pytestmark = pytest.mark.gpu


@pytest.fixture
def report() -> estimators.Report:
    if missing := machine.missing_for_cuda():
        pytest.skip("; ".join(missing))
    return estimators.Report(machine.describe("cuda"))


def test_estimators_on_the_gpu_are_those_of_the_host_and_wait_once(report: estimators.Report):
    estimators.check_agreement(report, "cuda")
    assert report.failed == []


def test_time_and_memory_can_be_measured(report: estimators.Report):
    estimators.check_times(report, "cuda", parse_sizes(SIZES), repeats=5)
    assert report.failed == [] and report.times


def test_verls_trainer_on_the_gpu_beside_stock(report: estimators.Report, tmp_path: Path):
    if missing := machine.missing_for_verl():
        pytest.skip(missing)
    server = verl_runs.choose_server(report, "cuda", None)
    tokenizer = verl_runs.choose_tokenizer(report, "cuda", None)
    verl_runs.run(report, verl_runs.Settings("cuda", server, 10, tokenizer, timeout=240.0))
    print(*report.not_run, sep="\n")
    assert report.failed == []
