from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def queue() -> Iterator[None]:
    """Start a Ray and a TransferQueue for this module."""
    from tests.queues import own_queue

    with own_queue():
        yield
