"""Searches get as many threads as the process has cores, and no more."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

# 64 searches that all want to run at once, in a process that may use the cores it is given; says how many ran at most.
MANY = """
import asyncio, os, sys, threading, time
from verl_mtgrpo.retrieval.server import ServerSettings
from verl_mtgrpo.threads import SEARCH, apart

os.sched_setaffinity(0, set(map(int, sys.argv[1:])))
lock, running, most = threading.Lock(), 0, 0

def search():
    global running, most
    with lock:
        running += 1
        most = max(most, running)
    time.sleep(0.01)
    with lock:
        running -= 1

async def all_at_once():
    await asyncio.gather(*(apart(SEARCH, search) for _ in range(64)))

asyncio.run(all_at_once())
print(most, ServerSettings().thread_count)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
@pytest.mark.parametrize("cores", [1, 2])
def test_as_many_searches_run_at_once_as_there_are_cores(cores: int):
    available = sorted(os.sched_getaffinity(0))[:cores]
    if len(available) < cores:
        pytest.skip(f"needs {cores} cores")
    argv = [sys.executable, "-c", MANY, *map(str, available)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert said == [str(cores), str(cores)]
