"""Options that several commands share: ``--preset`` and ``--index``."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.retrieval.addresses import base_url, is_address, meant_address


def check_preset(preset: str, overrides: Sequence[str]) -> None:
    """Raise ``ConfigError`` if there is no such config, unless the overrides add a search path, where it may be."""
    group = resources.files("verl_mtgrpo.config") / "mtgrpo"
    ours = sorted(file.name.removesuffix(".yaml") for file in group.iterdir() if not file.name.startswith("_"))
    if preset not in ours and not any("searchpath" in one for one in overrides):
        close = difflib.get_close_matches(preset, ours, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"there is no preset {preset!r}", fix=f"{meant}choose one of {', '.join(ours)}")


def index_variable(index: str | None) -> dict[str, str]:
    """Return the environment variable that names the search tool's index: as given, or as already set."""
    if index:
        return {"MTGRPO_INDEX": index_of(index)}
    # The run would inherit it anyway, but the printed command has to be complete.
    return {"MTGRPO_INDEX": os.environ["MTGRPO_INDEX"]} if "MTGRPO_INDEX" in os.environ else {}


def index_of(option: str) -> str:
    """Return ``--index`` as the workers of a run need it: the address of a service, or an absolute path.

    Raises:
        ConfigError: It is not an HTTP address, or one without ``http://``.
    """
    if is_address(option):
        base_url(option)
        return option
    if not Path(option).exists() and (address := meant_address(option)):
        raise ConfigError(f"--index {option} is not a folder", fix=f"for a search service write --index {address}")
    return os.path.abspath(option)
