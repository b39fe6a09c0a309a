"""Puts our config groups on Hydra's search path, so that ``+mtgrpo=...`` can never be a mere string.

Without it, a command line that forgets ``hydra.searchpath=[pkg://verl_mtgrpo.config]`` would not fail:
Hydra would append a plain key ``mtgrpo`` and verl would train with its own defaults. (The flag stays in
the documented commands: it makes the opposite mistake, a missing plugin, fail loudly as well.)
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin


class MTGRPOSearchPath(SearchPathPlugin):
    """Appends ``pkg://verl_mtgrpo.config``; a recipe's own configs come first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the search path; Hydra calls this when it composes a config."""
        search_path.append(provider="verl-mtgrpo", path="pkg://verl_mtgrpo.config")


Plugins.instance().register(MTGRPOSearchPath)
