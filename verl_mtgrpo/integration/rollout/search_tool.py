"""Give verl the tool ``search``, which finds passages in an index in the worker's process or by a search service."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from verl.tools.base_tool import BaseTool
from verl.tools.schemas import OpenAIFunctionToolSchema, ToolResponse
from verl.utils.rollout_trace import rollout_trace_op

from verl_mtgrpo.cache import JsonCache
from verl_mtgrpo.errors import ConfigError, RetrievalError, RetrievalTimeout
from verl_mtgrpo.integration.rollout.record import RolloutRecord, record_of
from verl_mtgrpo.integration.rollout.search_settings import open_index, search_settings
from verl_mtgrpo.integration.rollout.tool_outcome import ToolOutcome
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.retrieval import Retriever, render_passages
from verl_mtgrpo.retrieval.query import clean_query, same_search
from verl_mtgrpo.rewards.measures import NO_HITS

logger = logging.getLogger(__name__)

_GRACE_S = 2.0
"""Added to ``patience_s`` for retrievers without a time limit; one that has a limit gives up first and says why."""


class SearchTool(BaseTool):
    """Search with one argument, ``query``; see ``config/tools/search_tool.yaml`` for the settings.

    verl makes one tool per agent loop worker, and all its rollouts share it. The index is opened in the constructor, so
    that a missing one stops the run before anything is generated. The earlier queries of a rollout are kept in its
    :class:`~.record.RolloutRecord`, and disappear with it.
    """

    def __init__(self, config: Mapping[str, Any], tool_schema: OpenAIFunctionToolSchema | None) -> None:
        config = dict(config)
        self._settings = search_settings(config)
        self._index = open_index(self._settings)
        self._fingerprint = fingerprint_for(self._settings.cache, self._index)
        self._cache = JsonCache(self._settings.cache) if self._settings.cache else None
        self._slots = asyncio.Semaphore(self._settings.concurrency)
        super().__init__(config, tool_schema or default_schema(self._settings.max_queries))

    @rollout_trace_op
    async def execute(
        self, instance_id: str, parameters: dict[str, Any], **kwargs: Any
    ) -> tuple[ToolResponse, float, dict[str, Any]]:
        """Search and return ``(response, 0.0, info)``: ``info`` is a :class:`~.tool_outcome.ToolOutcome` as a dict.

        ``query`` has to be a string (or, with ``max_queries`` above 1, a list of strings). Anything else counts as bad
        arguments, so that no reward takes a malformed call for a success. Further arguments are ignored.

        ``error_kind`` is None, ``no_hits`` (with ``ok``), ``bad_arguments``, ``no_query`` or ``search_limit``, or the
        kind of a :class:`~verl_mtgrpo.errors.RetrievalError`. If the search itself fails, ``outage`` says why, and
        ``on_outage`` what the agent loop has to do. It is reported and not raised, because verl turns every exception
        of a tool into an answer, for which the model would be blamed.
        """
        start = time.perf_counter()
        text, outcome = await self._search(parameters, record_of(kwargs.get("agent_data")))
        return ToolResponse(text=text), 0.0, replace(outcome, latency_s=time.perf_counter() - start).to_info()

    async def _search(self, parameters: Any, record: RolloutRecord) -> tuple[str, ToolOutcome]:
        """Return the text for the model, and the outcome of the call."""
        queries, wrong = self._queries(parameters)
        if wrong:
            return wrong[1], ToolOutcome(ok=False, error_kind=wrong[0])
        limit = self._settings.max_searches
        if limit and record.searches >= limit:
            text = f"Error: this was search {record.searches + 1} of {limit} allowed; answer with what you have."
            return text, ToolOutcome(ok=False, error_kind="search_limit")
        record.searches += 1
        asked = {same_search(query) for query in queries}
        repeat = asked <= record.asked
        record.asked |= asked
        try:
            found, faults = await self._find(queries)
        except RetrievalError as error:
            logger.error("search tool: %s", error)
            return "Error: the search engine is down.", ToolOutcome(
                ok=False,
                error_kind=error.kind,
                repeat=repeat,
                faults=tuple(error.faults),
                outage=str(error),
                on_outage=self._settings.on_outage,
            )
        documents = [passage for passages in found for passage in passages]
        kind = None if documents else NO_HITS
        outcome = ToolOutcome(error_kind=kind, documents=documents, repeat=repeat, faults=tuple(faults))
        return self._render(queries, found), outcome

    def _queries(self, parameters: Any) -> tuple[list[str], tuple[str, str] | None]:
        """Return the clean queries of a call, or the kind and text of its error."""
        query = parameters.get("query") if isinstance(parameters, dict) else None
        most = self._settings.max_queries
        given = query if isinstance(query, list) and most > 1 else [query]
        texts = [one for one in given if isinstance(one, str)]
        if not given or len(given) > most or len(texts) < len(given):
            got = "query is missing" if query is None else f"query is a {type(query).__name__}"
            got += f" of {len(given)}" if isinstance(query, list) and most > 1 else ""
            wanted = '"some words"' if most == 1 else f'["some words", ...] (at most {most})'
            return [], ("bad_arguments", f'Error: {got}; the arguments must be {{"query": {wanted}}}.')
        queries = [clean_query(one) for one in texts]
        if not all(queries):
            return [], ("no_query", "Error: query is empty; write the words to search for.")
        return queries, None

    async def _find(self, queries: Sequence[str]) -> tuple[list[list[Passage]], tuple[str, ...]]:
        """Return the passages for each query, from the cache if possible, and the kinds of failed tries."""
        if self._cache is None:
            return await self._ask(queries)
        keys = {query: JsonCache.key(self._fingerprint, self._settings.k, query) for query in queries}
        kept = {query: await self._cache.aget(key) for query, key in keys.items()}
        found = {query: [Passage(**one) for one in value] for query, value in kept.items() if value is not None}
        missing = [query for query in keys if query not in found]
        results, faults = await self._ask(missing) if missing else ([], ())
        for query, passages in zip(missing, results, strict=True):
            await self._cache.aput(keys[query], [asdict(passage) for passage in passages])
            found[query] = passages
        return [found[query] for query in queries], faults

    async def _ask(self, queries: Sequence[str]) -> tuple[list[list[Passage]], tuple[str, ...]]:
        patience = self._settings.patience_s
        try:
            return await asyncio.wait_for(self._wait_and_ask(queries), patience + _GRACE_S)
        except RetrievalTimeout:  # also a TimeoutError, but its message knows the cause
            raise
        except asyncio.TimeoutError:
            raise RetrievalTimeout(
                f"no answer of {self._index!r} within {patience + _GRACE_S:g} s, including waiting for a free slot",
                fix=(
                    f"raise patience_s or concurrency ({self._settings.concurrency}) of the search tool, or make the "
                    "search faster"
                ),
            ) from None

    async def _wait_and_ask(self, queries: Sequence[str]) -> tuple[list[list[Passage]], tuple[str, ...]]:
        async with self._slots:
            ask = getattr(self._index, "ask", None)  # a search service also tells which tries failed
            if ask is None:
                return await self._index.asearch(queries, self._settings.k), ()
            answer = await ask(queries, self._settings.k)
            return answer.results, answer.faults

    def _render(self, queries: Sequence[str], found: Sequence[Sequence[Passage]]) -> str:
        template, room = self._settings.template, self._settings.max_chars
        if len(queries) == 1:
            return render_passages(found[0], template=template, max_chars=room)
        each = None if room is None else max(1, room // len(queries) - max(map(len, queries)) - 9)
        blocks = [render_passages(passages, template=template, max_chars=each) for passages in found]
        return "\n\n".join(f"Query: {query}\n{block}" for query, block in zip(queries, blocks, strict=True))


def fingerprint_for(cache: str, index: Retriever) -> str:
    """Return what tells this index from others in the cache; empty without a cache, since a service has to be asked."""
    fingerprint = index.fingerprint if cache else ""
    if cache and not fingerprint:
        raise ConfigError(f"search tool: {index!r} cannot tell when its answers change", fix=f"remove cache={cache}")
    return fingerprint


def default_schema(max_queries: int) -> OpenAIFunctionToolSchema:
    """Return the default schema, for a tool YAML without one."""
    words = "A few words that a passage with the answer would contain."
    several = {"type": "array", "description": f"Up to {max_queries} queries. {words}"}
    query = {"type": "string", "description": words} if max_queries == 1 else several
    function = {
        "name": "search",
        "description": "Searches an encyclopedia and returns the passages that match the query best.",
        "parameters": {"type": "object", "properties": {"query": query}, "required": ["query"]},
    }
    return OpenAIFunctionToolSchema.model_validate({"type": "function", "function": function})
