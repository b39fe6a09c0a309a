"""Threads of our own for what blocks: neither the event loop of a worker nor its default threads.

An agent loop worker runs hundreds of rollouts on one event loop, and verl tokenises on the loop's default threads (at
most 32). A search in the worker's own process, or an SQLite file that another process is writing, would hold up both.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

SEARCH, CACHE, DECODE = "mtgrpo-search", "mtgrpo-cache", "mtgrpo-decode"
"""Kinds of work, by which threads are named."""
_SIZES: dict[str, int | None] = {SEARCH: None, CACHE: 1, DECODE: 1}
"""Threads of a kind; None: Python's default, by the number of cores. A cache has one connection, so one thread; a
tokenizer holds the interpreter lock while it decodes, so more threads would only keep the event loop waiting for it."""
_pools: dict[tuple[int, str], ThreadPoolExecutor] = {}


async def apart(kind: str, function: Callable[..., T], *arguments: Any) -> T:
    """Call ``function`` in a thread of this kind and wait for its result without blocking the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_pool(kind), partial(function, *arguments))


def _pool(kind: str) -> ThreadPoolExecutor:
    key = (os.getpid(), kind)  # a forked child has the parent's pool, but not its threads
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(_SIZES[kind], kind)
    return _pools[key]
