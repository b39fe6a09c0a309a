"""Measure time, memory and synchronisations of a call, on a GPU or on the host."""

from __future__ import annotations

import statistics
import time
import tracemalloc
import warnings
from collections.abc import Callable, Mapping
from itertools import accumulate

import torch

_WARNING = "called a synchronizing CUDA operation"


class CannotCount(Exception):
    """Raised if this torch does not report synchronisations, so that seeing none means nothing."""


def count_synchronisations(call: Callable[[], object]) -> int:
    """Return how often the host waits for the GPU in ``call``, as counted by torch itself.

    Raises:
        CannotCount: a call that certainly waits is not reported.
    """
    number = torch.ones((), device="cuda")
    if _reports(number.item) != 1:
        raise CannotCount(f"torch {torch.__version__} does not report that .item() waits for the GPU")
    return _reports(call)


def _reports(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum(_WARNING in str(warning.message) for warning in seen)


def median_seconds(calls: Mapping[str, Callable[[], object]], device: str, repeats: int) -> dict[str, float]:
    """Return the median seconds of each call, from its start until its result is there. The calls alternate.

    The host's share counts too: a trainer waits for both.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):  # the first round is the warm-up
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            wait(device)
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def copy_seconds(size: int, device: str, repeats: int) -> float:
    """Return the median seconds for moving ``size`` bytes, reads and writes counted, by copying a tensor."""
    source = torch.randint(256, (size // 2,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return median_seconds({"copy": lambda: target.copy_(source)}, device, repeats)["copy"]


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Return the peak memory of ``call`` beyond its inputs, including its result."""
    if device == "cpu":
        return _peak_on_host(call)
    wait(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    wait(device)
    return torch.cuda.max_memory_allocated() - before


def _peak_on_host(call: Callable[[], object]) -> int:
    """Return torch's peak plus numpy's, as in examples/benchmarks/credit.py."""
    tracemalloc.start()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as run:
        kept = call()
    numpys = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    del kept
    events = run.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [event.nbytes() for event in sorted(events, key=lambda e: e.start_ns()) if event.name() == "[memory]"]
    return max(0, *accumulate(changes)) + numpys


def wait(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()
