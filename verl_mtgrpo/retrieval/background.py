"""One thread per process with an event loop, for coroutines submitted from any thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")

_starting = threading.Lock()
_running: tuple[int, asyncio.AbstractEventLoop] | None = None


def submit(coroutine: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
    """Start ``coroutine`` on the loop of this process; cancelling the future cancels it."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop())


def wait_for(coroutine: Coroutine[Any, Any, _T], timeout_s: float | None = None) -> _T:
    """Run ``coroutine`` on the loop of this process and return its result; Ctrl-C cancels it."""
    future = submit(coroutine)
    try:
        return future.result(timeout_s)
    except BaseException:
        future.cancel()
        raise


def _loop() -> asyncio.AbstractEventLoop:
    global _running
    if _running is None or _running[0] != os.getpid():
        with _starting:
            # A forked child has the parent's loop, but not the thread that runs it.
            if _running is None or _running[0] != os.getpid():
                loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, name="mtgrpo-http", daemon=True).start()
                _running = (os.getpid(), loop)
    return _running[1]


def _after_fork_in_child() -> None:
    """Replace the lock: a thread that does not exist in the child may have held it."""
    global _starting
    _starting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
