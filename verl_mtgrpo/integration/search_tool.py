"""verl's tool ``search``: passages from a BM25 index in the worker's own process."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verl.tools.base_tool import BaseTool
from verl.tools.schemas import OpenAIFunctionToolSchema, ToolResponse
from verl.utils.rollout_trace import rollout_trace_op

from verl_mtgrpo.errors import ConfigError, IndexFormatError, RetrievalError
from verl_mtgrpo.retrieval import BM25Index, check_template, render_passages
from verl_mtgrpo.retrieval.render import DEFAULT_TEMPLATE

logger = logging.getLogger(__name__)

_KEYS = ("type", "index", "k", "max_chars", "template")
_DEFAULT_K = 3
_DEFAULT_MAX_CHARS = 3000


class SearchTool(BaseTool):
    """Search with one argument, ``query``; see ``config/tools/search_tool.yaml`` for the settings.

    verl makes one tool per agent loop worker and all its rollouts share it; the index is opened here,
    so that a missing one stops the run before anything is generated.
    """

    def __init__(self, config: Mapping[str, Any], tool_schema: OpenAIFunctionToolSchema | None) -> None:
        config = dict(config)
        self._k, self._max_chars, self._template = _check_config(config)
        self._index = _open_index(config.get("index"))
        super().__init__(config, tool_schema or _default_schema())

    @rollout_trace_op
    async def execute(
        self, instance_id: str, parameters: dict[str, Any], **kwargs: Any
    ) -> tuple[ToolResponse, float, dict[str, Any]]:
        """Search and return ``(response, 0.0, info)``.

        ``query`` has to be a string: a list or anything else counts as bad arguments, because the
        schema promises a string and a reward must not call a malformed call a success. Further
        arguments are ignored.

        ``info`` has ``ok``, ``error_kind`` (None, ``bad_arguments``, ``no_query`` or ``outage``),
        ``documents`` (id, title, text, score of each passage, best first) and ``latency_s``. When the
        index itself fails, ``info["outage"]`` says why. It is reported and not raised, because verl
        turns every exception of a tool into an answer that the model would be blamed for.
        """
        start = time.perf_counter()
        query = parameters.get("query") if isinstance(parameters, dict) else None
        if not isinstance(query, str):
            got = f"query is a {type(query).__name__}" if query is not None else "query is missing"
            text = f'Error: {got}; the arguments must be {{"query": "some words"}}.'
            return _failed(text, "bad_arguments", start)
        if not query.strip():
            return _failed("Error: query is empty; write the words to search for.", "no_query", start)
        try:
            (passages,) = await self._index.asearch([query], self._k)
        except RetrievalError as error:
            logger.error("search tool: %s", error)
            response, reward, info = _failed("Error: the search engine is down.", "outage", start)
            return response, reward, {**info, "outage": str(error)}
        text = render_passages(passages, template=self._template, max_chars=self._max_chars)
        info = _info(True, None, [asdict(passage) for passage in passages], start)
        return ToolResponse(text=text), 0.0, info


def _check_config(config: dict[str, Any]) -> tuple[int, int | None, str]:
    unknown = sorted(key for key in config if key not in _KEYS)
    if unknown:
        raise ConfigError(f"search tool: unknown setting {unknown[0]!r}; known are {', '.join(_KEYS)}")
    k = config.get("k", _DEFAULT_K)
    max_chars = config.get("max_chars", _DEFAULT_MAX_CHARS)
    template = config.get("template", DEFAULT_TEMPLATE)
    if not _is_count(k):
        raise ConfigError(f"search tool: k is {k!r}, expected a whole number of at least 1")
    if max_chars is not None and not _is_count(max_chars):
        raise ConfigError(
            f"search tool: max_chars is {max_chars!r}, expected a whole number of at least 1, or null for no limit"
        )
    check_template(template)
    return k, max_chars, template


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _open_index(path: Any) -> BM25Index:
    if not path:
        raise ConfigError(
            "the search tool has no index: set the environment variable MTGRPO_INDEX to an index folder "
            "before the training (and before `ray start`, if Ray runs already), or write the path as `index:` "
            "in a copy of search_tool.yaml; build an index with: mtgrpo index CORPUS --out DIR"
        )
    try:
        return BM25Index.open(path)
    except IndexFormatError as error:
        hint = "" if Path(path).is_absolute() else f" (the path {path!r} is relative; workers need an absolute one)"
        raise IndexFormatError(f"search tool: {error}{hint}") from error


def _default_schema() -> OpenAIFunctionToolSchema:
    """The schema of a tool YAML that gives none."""
    query = {"type": "string", "description": "A few words that a passage with the answer would contain."}
    function = {
        "name": "search",
        "description": "Searches an encyclopedia and returns the passages that match the query best.",
        "parameters": {"type": "object", "properties": {"query": query}, "required": ["query"]},
    }
    return OpenAIFunctionToolSchema.model_validate({"type": "function", "function": function})


def _info(ok: bool, error_kind: str | None, documents: list[dict[str, Any]], start: float) -> dict[str, Any]:
    latency_s = time.perf_counter() - start
    return {"ok": ok, "error_kind": error_kind, "documents": documents, "latency_s": latency_s}


def _failed(text: str, kind: str, start: float) -> tuple[ToolResponse, float, dict[str, Any]]:
    return ToolResponse(text=text), 0.0, _info(False, kind, [], start)
