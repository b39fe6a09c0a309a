"""A real Ray and a real TransferQueue for tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import transfer_queue as tq
from omegaconf import OmegaConf

from tests.composed import composed


@contextmanager
def own_queue() -> Iterator[None]:
    """Start a private Ray and TransferQueue, and stop both afterwards."""
    before = os.environ.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory(prefix="mtg", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(num_cpus=16, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
        try:
            queue = composed(preset="mt_grpo").transfer_queue
            OmegaConf.set_struct(queue, False)
            queue.enable = True
            tq.init(queue)
            yield
            tq.close()
        finally:
            ray.shutdown()
            if before is not None:
                os.environ["RAY_ADDRESS"] = before
