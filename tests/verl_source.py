"""Check that functions of verl that ours rely on have not changed since ours were written."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest

from verl_mtgrpo.installed import TESTED_VERL

only_tested_version = pytest.mark.skipif(
    version("verl") != TESTED_VERL, reason=f"the hashes are those of verl {TESTED_VERL}"
)


def source_hash(function: Callable[..., Any]) -> str:
    """A short hash of a function's source."""
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
