"""A search service: any retriever behind Search-R1's wire format (see :mod:`verl_mtgrpo.retrieval.wire`).

``POST /retrieve``, ``GET /health``, ``GET /metrics`` (Prometheus). Every error is JSON, ``{"error": "what was
got, what was expected, what to do"}``:

* 400 the body is not a request, 401 the token is missing or wrong, 408 the body does not arrive;
* 413 the body is too large, or holds too many queries;
* 429 with Retry-After: the service already has as many requests as it takes at once;
* 500 the search failed, 503 it is starting or stopping, 504 it took too long.

Imports FastAPI and prometheus_client, so modules that must load fast may not import it.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, is_dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from verl_mtgrpo.errors import RetrievalError, RetrievalRejected
from verl_mtgrpo.retrieval import wire
from verl_mtgrpo.retrieval.addresses import read_token
from verl_mtgrpo.retrieval.types import Retriever
from verl_mtgrpo.settings import Number, Settings
from verl_mtgrpo.threads import search_threads

logger = logging.getLogger(__name__)

_RETRY_AFTER = {"Retry-After": "1"}
# A sender reads its 413 only after sending its body: up to this many times the limit is read and discarded.
_DRAINED_BODIES = 8
_LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class ServerSettings(Settings):
    """Limits of a service."""

    default_k: int = Field(default=3, ge=1)
    """Passages per query if a request says ``topk: null``."""
    max_k: int = Field(default=100, ge=1)
    """Largest ``topk``; a larger one is refused (400)."""
    max_queries: int = Field(default=512, ge=1)
    """Most queries in one request (413)."""
    max_query_chars: int = Field(default=20_000, ge=1)
    """A longer query is cut to this many characters, not refused: it comes from a model, and what it is about has been
    said by then."""
    max_body_bytes: int = Field(default=8_000_000, ge=1)
    """Largest body of a request (413)."""
    threads: int = Field(default=0, ge=0)
    """Searches that run at once; 0 for one per core that the process may use, 32 at most."""
    queue: int = Field(default=512, ge=0)
    """Requests that may wait for a thread; one more gets 429."""
    timeout_s: Number = Field(default=10.0, gt=0)
    """Longest time in seconds a request may take, waiting included (504)."""
    token_env: str | None = None
    """Environment variable with the bearer token to ask for; None to ask for none."""

    @property
    def thread_count(self) -> int:
        """Searches that run at once."""
        return self.threads or search_threads()


def create_app(retriever: Retriever, settings: ServerSettings | None = None) -> FastAPI:
    """Return the service as an ASGI application, for uvicorn, Ray Serve or any other server.

    Raises:
        ConfigError: ``token_env`` names a variable that is not set.
    """
    service = _Service(retriever, settings or ServerSettings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        service.start()
        yield
        service.stop()

    # No pages of documentation: they would load scripts from the internet.
    app = FastAPI(title="verl-mtgrpo search", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route(wire.PATH, service.retrieve, methods=["POST"], response_model=None)
    app.add_api_route("/health", service.health, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", service.metrics, methods=["GET"], response_model=None)
    app.add_exception_handler(HTTPException, _unknown_path)
    return app


class _Refused(Exception):
    """An error answer to a request."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.response = _json(status, {"error": message}, headers)


class _Service:
    """Runs the searches of one app, and limits and counts its requests."""

    def __init__(self, retriever: Retriever, settings: ServerSettings) -> None:
        self._retriever = retriever
        self._settings = settings
        token = read_token(settings.token_env)
        self._token = token.encode() if token else None
        self._pool = ThreadPoolExecutor(settings.thread_count, thread_name_prefix="search")
        # Held from a request's acceptance until its search has really ended, even if the client no longer waits.
        self._places = threading.BoundedSemaphore(settings.thread_count + settings.queue)
        self._metrics = _Metrics()
        self._state = "starting"
        self._problem = ""

    # ---- life

    def start(self) -> None:
        """Search once in the background: this loads the index into memory and shows that it works."""
        self._pool.submit(self._warm_up)

    def _warm_up(self) -> None:
        try:
            self._retriever.search(["test"], 1)
        except Exception as error:
            logger.exception("the first search failed")
            self._state, self._problem = "failed", str(error)
        else:
            self._state = "ready"

    def stop(self) -> None:
        """Stop the pool. Running searches finish; waiting ones have been answered or abandoned by now."""
        self._state = "stopping"
        self._pool.shutdown(wait=False, cancel_futures=True)

    # ---- routes

    async def health(self) -> Response:
        """Answer 200 if searches work, 503 otherwise; no token is needed, so that load balancers can ask."""
        manifest = getattr(self._retriever, "manifest", None)
        index = asdict(manifest) if is_dataclass(manifest) and not isinstance(manifest, type) else None
        if index is not None:
            # What identifies the index; folders and versions of this machine are not disclosed.
            index = {key: index[key] for key in ("count", "checksum", "source", "analyser") if key in index}
        fingerprint = getattr(self._retriever, "fingerprint", "")
        report: dict[str, Any] = {"status": self._state, "index": index, "fingerprint": fingerprint}
        if self._state == "ready":
            return _json(200, report)
        advice = self._problem or "wait until it is ready"
        return _json(503, {**report, "error": f"the service is not ready ({self._state}): {advice}"}, _RETRY_AFTER)

    async def metrics(self, request: Request) -> Response:
        """Answer with the counters and timings of this process."""
        try:
            self._check_token(request)
        except _Refused as refused:
            return refused.response
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def retrieve(self, request: Request) -> Response:
        """Answer with the passages for the queries of one request."""
        start = time.perf_counter()
        try:
            self._check_token(request)
            response = await self._answer(request)
        except _Refused as refused:
            response = refused.response
        except ClientDisconnect:  # the client is gone
            response = _json(400, {"error": "the body ended too early"})
        except Exception:
            logger.exception("a request failed")
            response = _json(500, {"error": "the service failed; its log says why"})
        self._metrics.requests.labels(str(response.status_code)).inc()
        self._metrics.seconds.observe(time.perf_counter() - start)
        return response

    async def _answer(self, request: Request) -> Response:
        try:
            body = await asyncio.wait_for(self._read_body(request), self._settings.timeout_s)
        except (asyncio.TimeoutError, TimeoutError):
            raise _Refused(408, f"the body did not arrive within {self._settings.timeout_s:g} s") from None
        if not self._places.acquire(blocking=False):
            message = "the service already has as many requests as it takes at once; retry later"
            raise _Refused(429, message, _RETRY_AFTER)
        try:
            job = self._pool.submit(self._carry_out, body)
        except RuntimeError:  # the pool is shut down
            self._places.release()
            raise _Refused(503, "the service is stopping; retry later", _RETRY_AFTER) from None
        self._metrics.accepted.inc()
        job.add_done_callback(self._leave)
        try:
            # Cancels the job if it has not begun; a running one finishes and keeps its place.
            answer = await asyncio.wait_for(asyncio.wrap_future(job), self._settings.timeout_s)
        except (asyncio.TimeoutError, TimeoutError):
            message = f"the search took longer than {self._settings.timeout_s:g} s; retry later or ask for less"
            raise _Refused(504, message) from None
        return Response(answer, media_type="application/json")

    def _leave(self, _: Future[bytes]) -> None:
        self._metrics.accepted.dec()
        self._places.release()

    # ---- parts

    def _check_token(self, request: Request) -> None:
        if self._token is None:
            return
        sent = request.headers.get("Authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(sent, b"Bearer " + self._token):
            message = "the token is missing or wrong; send the header 'Authorization: Bearer <token>'"
            raise _Refused(401, message, {"WWW-Authenticate": "Bearer"})

    async def _read_body(self, request: Request) -> bytes:
        limit = self._settings.max_body_bytes
        size = 0
        parts: list[bytes] = []
        async for part in request.stream():
            size += len(part)
            if size <= limit:
                parts.append(part)
            elif size > _DRAINED_BODIES * limit:
                break
        if size > limit:
            raise _Refused(413, f"the body has more than {limit} bytes; send fewer or shorter queries in one request")
        return b"".join(parts)

    def _carry_out(self, body: bytes) -> bytes:
        """Carry out one request in a thread of the pool: reading and writing JSON takes time too."""
        settings = self._settings
        with self._metrics.running.track_inprogress():
            try:
                asked = wire.decode_request(body)
            except RetrievalRejected as error:
                raise _Refused(400, str(error)) from error
            k = asked.topk or settings.default_k
            if k > settings.max_k:
                raise _Refused(400, f"topk is {str(k)[:40]}, this service gives at most {settings.max_k}; ask for less")
            if len(asked.queries) > settings.max_queries:
                message = f"{len(asked.queries)} queries in one request, at most {settings.max_queries}; send several"
                raise _Refused(413, message)
            self._metrics.queries.inc(len(asked.queries))
            try:
                results = self._retriever.search([query[: settings.max_query_chars] for query in asked.queries], k)
            except RetrievalError as error:
                logger.exception("a search failed")
                raise _Refused(500, f"the search failed: {error}") from error
            return wire.encode_answer(results, return_scores=asked.return_scores)


class _Metrics:
    """Counters and timings, in one registry per app, so that several apps in one process do not clash."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mtgrpo_search_requests", "Requests answered, by HTTP status", ["status"], registry=self.registry
        )
        self.queries = Counter("mtgrpo_search_queries", "Queries searched for", registry=self.registry)
        self.seconds = Histogram(
            "mtgrpo_search_seconds", "Time to answer a request", buckets=_LATENCIES_S, registry=self.registry
        )
        self.accepted = Gauge("mtgrpo_search_accepted", "Requests being worked on or waiting", registry=self.registry)
        self.running = Gauge("mtgrpo_search_in_flight", "Requests being worked on", registry=self.registry)
        waiting = Gauge("mtgrpo_search_queue", "Requests waiting for a thread", registry=self.registry)
        waiting.set_function(self._waiting)

    def _waiting(self) -> float:
        return max(0.0, _value(self.accepted.collect) - _value(self.running.collect))


def _value(collect: Callable[[], Any]) -> float:
    return next(iter(collect())).samples[0].value


async def _unknown_path(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = f"there is no {request.method} {request.url.path[:200]}; there are POST {wire.PATH}, GET /health and "
    return _json(status, {"error": message + "GET /metrics"})


def _json(status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status, headers, media_type="application/json")
