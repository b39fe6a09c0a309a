"""Store settings in such a way that a new one does not make what is stored obsolete."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def stored_settings(settings: DataclassInstance, *, later: Collection[str]) -> dict[str, Any]:
    """Return the fields of a dataclass, those in ``later`` only where they differ from their defaults.

    Args:
        settings: The settings.
        later: Fields that were added when assets or runs had been stored already.
    """
    defaults = {field.name: field.default for field in fields(settings)}
    stored = asdict(settings)
    return {name: value for name, value in stored.items() if name not in later or value != defaults[name]}
