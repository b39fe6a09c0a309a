"""Find the config groups that come with the package: ``+mtgrpo=NAME``."""

from __future__ import annotations

from importlib.resources import files

GROUPS = files(__name__) / "mtgrpo"


def group_names() -> list[str]:
    """Return the names of the packaged config groups, sorted."""
    names = [one.name.removesuffix(".yaml") for one in GROUPS.iterdir() if one.name.endswith(".yaml")]
    return sorted(name for name in names if not name.startswith("_"))
