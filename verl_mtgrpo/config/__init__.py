"""Find and read the config groups that come with the package: ``+mtgrpo=NAME``."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

GROUPS = files(__name__) / "mtgrpo"


def group_names() -> list[str]:
    """Return the names of the packaged config groups, sorted."""
    names = [one.name.removesuffix(".yaml") for one in GROUPS.iterdir() if one.name.endswith(".yaml")]
    return sorted(name for name in names if not name.startswith("_"))


@cache
def packaged(name: str) -> DictConfig:
    """Return the settings of a packaged group: its file merged over its defaults; nothing is resolved."""
    from omegaconf import DictConfig, OmegaConf

    own = OmegaConf.create((GROUPS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(own, DictConfig)  # the files of this package are mappings
    below = [packaged(one) for one in own.pop("defaults", []) if one != "_self_"]
    merged = OmegaConf.merge(*below, own)
    assert isinstance(merged, DictConfig)
    return merged


def of_group(name: str, key: str) -> Any:
    """Return what a packaged group sets for a key; None if it sets nothing, or if there is no such group."""
    from omegaconf import OmegaConf

    return OmegaConf.select(packaged(name), key) if name in group_names() else None
