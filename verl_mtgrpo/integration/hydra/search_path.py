"""Put our config groups on Hydra's search path, so that ``+mtgrpo=...`` always means the group.

Without this, a command line that forgets ``hydra.searchpath=[pkg://verl_mtgrpo.config]`` would not fail: Hydra would
add a plain key ``mtgrpo``, and verl would train with its defaults. The documented commands still have the flag, because
it makes the opposite mistake fail loudly too: an environment in which the plugin is not installed.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin


class MTGRPOSearchPath(SearchPathPlugin):
    """Appends ``pkg://verl_mtgrpo.config``, so that the configs of a recipe take precedence."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append our search path; Hydra calls this when it composes a config."""
        search_path.append(provider="verl-mtgrpo", path="pkg://verl_mtgrpo.config")


Plugins.instance().register(MTGRPOSearchPath)
