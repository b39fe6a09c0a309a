"""OmegaConf resolvers that our config groups use.

``${mtgrpo_asset:tools/search_tool.yaml}`` is the absolute path of a file shipped in
``verl_mtgrpo/config``. It also is a guard: in a process without the plugin the resolver is unknown, and
resolving the config fails before any model is loaded.

``${mtgrpo_skip_tokenizer:${actor_rollout_ref.rollout.multi_turn.format}}`` says whether the rollout engine can do
without a tokenizer in a format.
"""

from __future__ import annotations

from importlib import resources

from omegaconf import OmegaConf

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.rewards.formats import CUT_FORMATS


def asset(name: str) -> str:
    """Absolute path of the packaged config file ``name``; ``ConfigError`` if there is none."""
    root = resources.files("verl_mtgrpo.config")
    path = root
    for part in name.split("/"):
        path = path / part
    if not path.is_file():
        raise ConfigError(f"mtgrpo_asset: no file {name!r} in {root}", expected="a file shipped with verl_mtgrpo")
    return str(path)


def skip_tokenizer(format: str) -> bool:
    """Return True if the engine needs no closing tag to stop at: verl's formats end turns with a token."""
    return format not in CUT_FORMATS


OmegaConf.register_new_resolver("mtgrpo_asset", asset, replace=True)
OmegaConf.register_new_resolver("mtgrpo_skip_tokenizer", skip_tokenizer, replace=True)
