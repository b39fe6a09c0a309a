"""Settings of the search tool, as they stand under ``config:`` in its YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_mtgrpo.errors import ConfigError, IndexFormatError
from verl_mtgrpo.integration.settings import read_settings
from verl_mtgrpo.retrieval import Retriever, check_template
from verl_mtgrpo.retrieval.render import DEFAULT_TEMPLATE

ON_OUTAGE = ("drop", "raise")
_NOT_READ_HERE = ("type", "index", "max_chars")


@dataclass(frozen=True)
class SearchSettings:
    """``tools[].config`` of the search tool, apart from ``index`` and ``max_chars``."""

    k: int = 3
    """Passages returned for a query."""
    template: str = DEFAULT_TEMPLATE
    """How one passage is written."""
    max_queries: int = 1
    """Queries in one call. More than one: ``query`` may be a list of strings, answered one after the other."""
    max_searches: int = 0
    """Searches a rollout may make; further calls are refused with a message to the model. 0: no limit."""
    patience_s: float = 20.0
    """Longest time in seconds that a call may take, with waiting and retries; then it is an outage."""
    request_timeout_s: float = 10.0
    """Longest time in seconds of one try at a search service; a try that takes longer is repeated."""
    concurrency: int = 64
    """Searches at a time from one agent loop worker; more wait their turn, on their patience."""
    on_outage: str = "drop"
    """``drop``: a rollout whose search is down ends and is taken out of the update, counted in ``tool/outage``;
    ``raise``: it fails, counted in ``outcome/failed``, and verl handles its group as failed."""
    cache: str = ""
    """SQLite file that remembers answers, shared by the workers of a machine; empty: none."""
    token_env: str = ""
    """Environment variable with the bearer token of a search service; empty: none."""


DEFAULT_MAX_CHARS = 3000


def search_settings(config: Mapping[str, Any]) -> tuple[SearchSettings, int | None]:
    """Read and check the settings; returns them and the longest answer in characters (None: no limit)."""
    given = {key: value for key, value in config.items() if key not in _NOT_READ_HERE}
    settings = read_settings(SearchSettings, given, "search tool")
    check_template(settings.template)
    for name in ("k", "max_queries", "concurrency"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"search tool: {name} is {getattr(settings, name)}", expected="at least 1")
    if settings.max_searches < 0:
        raise ConfigError(f"search tool: max_searches is {settings.max_searches}", expected="0 (no limit) or more")
    for name in ("patience_s", "request_timeout_s"):
        if not 0 < getattr(settings, name) < float("inf"):
            raise ConfigError(
                f"search tool: {name} is {getattr(settings, name)}",
                expected="a number of seconds above 0",
            )
    if settings.on_outage not in ON_OUTAGE:
        raise ConfigError(f"search tool: on_outage is {settings.on_outage!r}", expected=f"one of {ON_OUTAGE}")
    max_chars = config.get("max_chars", DEFAULT_MAX_CHARS)
    if max_chars is not None and (not isinstance(max_chars, int) or isinstance(max_chars, bool) or max_chars < 1):
        raise ConfigError(
            f"search tool: max_chars is {max_chars!r}",
            expected="a whole number of at least 1, or null for no limit",
        )
    return settings, max_chars


def open_index(spec: Any, settings: SearchSettings) -> Retriever:
    """Open what ``index`` names and search once, so that a missing one stops the run before anything is generated.

    A search service that is just starting has ``patience_s`` to become ready.

    Raises:
        ConfigError, RetrievalError: There is no index, or it cannot be searched.
    """
    if not spec:
        raise ConfigError(
            "the search tool has no index",
            fix=(
                "set the environment variable MTGRPO_INDEX to an index folder or the URL of a search service before "
                "the training (and before `ray start`, if Ray runs already), or write it as `index:` in a copy of "
                "search_tool.yaml (to build an index: mtgrpo index CORPUS --out DIR)"
            ),
        )
    from verl_mtgrpo.retrieval import open_retriever

    service = {name: getattr(settings, name) for name in ("patience_s", "request_timeout_s", "concurrency")}
    try:
        index = open_retriever(spec, **service, token_env=settings.token_env or None)
        index.search(["test"], 1)
        return index
    except IndexFormatError as error:
        relative = isinstance(spec, str) and not Path(spec).is_absolute()
        hint = f" (the path {spec!r} is relative; workers need an absolute one)" if relative else ""
        raise type(error)(f"search tool: {error.found}", fix=f"{error.fix}{hint}") from error
