"""Stand-in for the demo's assets where nothing is trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SomeAssets:
    policy: Path
    index: Path
    train_file: Path
    val_file: Path
    tool_config: Path
    manifest: Mapping[str, Any] = field(default_factory=lambda: {"seed": 0, "em": 0.25})


def assets_below(folder: Path) -> SomeAssets:
    names = ("policy", "index", "train.parquet", "val.parquet", "search_tool.yaml")
    return SomeAssets(*(folder / name for name in names))
