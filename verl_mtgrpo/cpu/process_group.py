"""Set the gloo backend in the one place where verl has no extension point for a CPU.

``verl.utils.distributed.initialize_global_process_group_ray`` names a backend per device type,
``cpu:gloo,{device}:{backend}``. On the CPU that is ``cpu:gloo,cpu:gloo``, which torch refuses as a
duplicate. The function does take a ``backend``, but its caller (``TrainingWorker``) passes none, so
its default is changed here to plain ``gloo``. Nothing else of the function is replaced.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from verl_mtgrpo.errors import CompatibilityError
from verl_mtgrpo.installed import TESTED_VERL, verl_version

_FUNCTION = "initialize_global_process_group_ray"
_MARK = "_mtgrpo_plain_gloo"
"""Attribute of a function whose default was changed."""


def use_plain_gloo(module: Any) -> None:
    """Give ``initialize_global_process_group_ray`` of ``verl.utils.distributed`` the default "gloo".

    Idempotent. Raises CompatibilityError if this verl's function is not as described above.
    """
    original = getattr(module, _FUNCTION, None)
    if getattr(original, _MARK, False):
        return
    if original is None or "backend" not in inspect.signature(original).parameters:
        raise CompatibilityError(
            f"verl {verl_version()} has no verl.utils.distributed.{_FUNCTION}(..., backend=...), which "
            "VERL_PLATFORM=cpu needs to start gloo",
            fix=f"install verl {TESTED_VERL}, the tested version",
        )

    @functools.wraps(original)
    def initialize(timeout_second: float | None = None, backend: str | None = None) -> None:
        return original(timeout_second=timeout_second, backend=backend or "gloo")

    setattr(initialize, _MARK, True)
    setattr(module, _FUNCTION, initialize)
