"""Register the OmegaConf resolvers that our config groups use.

``${mtgrpo_asset:tools/search_tool.yaml}`` is the absolute path of a file shipped in ``verl_mtgrpo/config``. It is also
a safeguard: in a process without the plugin the resolver is unknown, so resolving the config fails before any model is
loaded.

``${mtgrpo_search_tool:${actor_rollout_ref.rollout.multi_turn.function_tool_path}}`` is the packaged search tool's YAML
for a run that names no function tools, and nothing for one that does. ``${mtgrpo_rewards:…}`` of the same key is the
preset that pays turns: ``paper_v1``, whose rewards are about searching, or ``tool_use``, which takes any tool.

``${mtgrpo_skip_tokenizer:${actor_rollout_ref.rollout.multi_turn.format}}`` is True if the rollout engine needs no
tokenizer for that format.
"""

from __future__ import annotations

from importlib import resources

from omegaconf import OmegaConf

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.rewards.formats import CUT_FORMATS


def asset(name: str) -> str:
    """Return the absolute path of the packaged config file ``name``; raise ``ConfigError`` if there is none."""
    root = resources.files("verl_mtgrpo.config")
    path = root
    for part in name.split("/"):
        path = path / part
    if not path.is_file():
        raise ConfigError(f"mtgrpo_asset: no file {name!r} in {root}", expected="a file shipped with verl_mtgrpo")
    return str(path)


def search_tool(function_tool_path: str | None) -> str | None:
    """Return the path of the packaged search tool; None for a run with function tools of its own."""
    return None if function_tool_path else asset("tools/search_tool.yaml")


def rewards(function_tool_path: str | None) -> str:
    """Return the name of the preset that pays turns; with function tools of one's own the one for any tool."""
    return "tool_use" if function_tool_path else "paper_v1"


def skip_tokenizer(format: str) -> bool:
    """Return True if turns of the format end with a token; to stop at a closing tag, an engine needs a tokenizer."""
    return format not in CUT_FORMATS


OmegaConf.register_new_resolver("mtgrpo_asset", asset, replace=True)
OmegaConf.register_new_resolver("mtgrpo_search_tool", search_tool, replace=True)
OmegaConf.register_new_resolver("mtgrpo_rewards", rewards, replace=True)
OmegaConf.register_new_resolver("mtgrpo_skip_tokenizer", skip_tokenizer, replace=True)
