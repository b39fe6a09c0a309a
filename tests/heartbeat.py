"""Check that an event loop is not blocked."""

from __future__ import annotations

import asyncio
import time

BEAT_S = 0.002


async def heartbeat(late_s: list[float]) -> None:
    """Note by how much each short sleep was too long: for so long the loop did something else."""
    while True:
        start = time.perf_counter()
        await asyncio.sleep(BEAT_S)
        late_s.append(time.perf_counter() - start - BEAT_S)
