from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def queue() -> Iterator[None]:
    """A Ray and a TransferQueue of this module's own."""
    from tests.queues import own_queue

    with own_queue():
        yield
