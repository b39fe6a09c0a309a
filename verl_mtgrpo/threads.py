"""Threads of our own for what blocks: neither the event loop of a worker nor its default threads.

An agent loop worker runs hundreds of rollouts on one event loop, and verl tokenises on the loop's default threads (at
most 32). A search in the worker's own process, or an SQLite file that another process is writing, would hold up both.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

SEARCH, CACHE, DECODE, ENVIRONMENT = "mtgrpo-search", "mtgrpo-cache", "mtgrpo-decode", "mtgrpo-environment"
"""Kinds of work, by which threads are named. A cache has one connection, so one thread; a tokenizer holds the
interpreter lock while it decodes, so more threads would only keep the event loop waiting for it. Environments mostly
wait for something else, and one that hangs keeps its thread."""
_MOST_SEARCHES = 32
"""No more than a pool of Python's own has by default: the parts of a search that are Python run one at a time."""
_ENVIRONMENTS = 64
_pools: dict[tuple[int, str], ThreadPoolExecutor] = {}


async def apart(kind: str, function: Callable[..., T], *arguments: Any) -> T:
    """Call ``function`` in a thread of this kind and wait for its result without blocking the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_pool(kind), partial(function, *arguments))


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on an event loop of its own, from code that may itself run on one."""
    with ThreadPoolExecutor(1) as pool:  # asyncio.run needs a thread without a running event loop
        return pool.submit(asyncio.run, work).result()


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    # Containers are often given fewer cores than the machine has; macOS cannot ask.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def search_threads() -> int:
    """Return the number of searches that one process runs at once: one per core, 32 at most.

    A search only computes, so more threads than cores find nothing sooner: they keep the event loop waiting for the
    interpreter lock, and searches that began early waiting for later ones (``examples/benchmarks/retrieval.md``).
    """
    return min(usable_cores(), _MOST_SEARCHES)


def _pool(kind: str) -> ThreadPoolExecutor:
    key = (os.getpid(), kind)  # a forked child has the parent's pool, but not its threads
    if key not in _pools:
        threads = {SEARCH: search_threads(), ENVIRONMENT: _ENVIRONMENTS}
        _pools[key] = ThreadPoolExecutor(threads.get(kind, 1), kind)
    return _pools[key]
