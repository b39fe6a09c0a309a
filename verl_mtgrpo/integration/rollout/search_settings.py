"""Settings of the search tool, as they stand under ``config:`` in its YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from verl_mtgrpo.errors import ConfigError, IndexFormatError
from verl_mtgrpo.retrieval import Retriever, check_template
from verl_mtgrpo.retrieval.render import DEFAULT_TEMPLATE
from verl_mtgrpo.settings import Number, Settings


class SearchSettings(Settings):
    """``tools[].config`` of the search tool."""

    type: str = "native"
    """verl's kind of tool; it knows only this one."""
    index: Any = None
    """Folder that ``mtgrpo index`` made (an absolute path that every worker can read), the URL of a search service
    (``mtgrpo serve``, or any server that speaks Search-R1's format), or a list of these, whose ranks are fused."""
    k: int = Field(default=3, ge=1)
    """Passages returned for a query."""
    max_chars: int | None = Field(default=3000, ge=1)
    """Longest answer in characters, null for no limit. Keep it within ``rollout.multi_turn.max_tool_response_length``,
    or verl cuts the answer a second time, in the middle of a word."""
    template: str = DEFAULT_TEMPLATE
    """How one passage is written; the fields are ``{rank}``, ``{title}`` and ``{text}``."""
    max_queries: int = Field(default=1, ge=1)
    """Queries in one call. Above 1, the argument ``query`` may be a list of strings, answered one after the other (say
    so in the schema below)."""
    max_searches: int = Field(default=0, ge=0)
    """Searches a rollout may make; further calls are refused with a message to the model. 0: no limit."""
    patience_s: Number = Field(default=20.0, gt=0)
    """Longest time in seconds that one call may take, with waiting and retries; then the search counts as down."""
    request_timeout_s: Number = Field(default=10.0, gt=0)
    """Longest time in seconds of one try at a search service; a try that takes longer is repeated."""
    concurrency: int = Field(default=64, ge=1)
    """Searches at a time from one agent loop worker; more wait their turn, on their patience."""
    on_outage: Literal["drop", "raise"] = "drop"
    """What a search that is down does to the rollout. ``drop``: it ends, is taken out of the update and counted in
    ``tool/outage``; ``raise``: it fails, is counted in ``outcome/failed``, and verl handles its group as failed."""
    cache: str = ""
    """SQLite file that remembers answers for all workers of a machine; empty: none."""
    token_env: str = ""
    """Environment variable with the bearer token of a search service; empty: none."""

    @field_validator("template")
    @classmethod
    def _shows_passages(cls, template: str) -> str:
        check_template(template)
        return template


def search_settings(config: Mapping[str, Any]) -> SearchSettings:
    """Read and check the mapping under ``config:``."""
    return SearchSettings.read(config, "config", "the search tool")


def open_index(settings: SearchSettings) -> Retriever:
    """Open the index and search it once, so that a missing one stops the run before anything is generated.

    A search service that is just starting has ``patience_s`` seconds to become ready.

    Raises:
        ConfigError, RetrievalError: There is no index, or it cannot be searched.
    """
    spec = settings.index
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
