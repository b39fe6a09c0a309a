"""Get passages from a search service over HTTP, retry for a while, and say why if it fails in the end.

All requests of a process are made on one thread with one event loop, whichever thread or event
loop calls. So sync and async callers share connections and their limit, and nothing breaks when a loop ends.

Why not tenacity: the timeout of a try, the pause after it and the error to raise all depend on earlier answers and
on how much of the patience is left, so the loop would be just as long with it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import random
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from verl_mtgrpo.errors import (
    ConfigError,
    RetrievalBadAnswer,
    RetrievalBusy,
    RetrievalError,
    RetrievalRejected,
    RetrievalServerError,
    RetrievalTimeout,
    RetrievalUnreachable,
)
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.retrieval import addresses, background, wire
from verl_mtgrpo.retry_after import parse_retry_after

if TYPE_CHECKING:
    import aiohttp

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_MAX_ANSWER_BYTES = 256_000_000
_PARSED_AT_ONCE_BYTES = 200_000
# Shorter than the servers' (uvicorn: 5 s), so that no request goes out on a connection that is being closed.
_KEEP_ALIVE_S = 4.0

# Session -> the process that opened it.
_sessions: weakref.WeakKeyDictionary[aiohttp.ClientSession, int] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Answer:
    """The result of one call.

    Attributes:
        results: One list of passages for each query.
        faults: The kind of failure of each failed try, in order; one more try succeeded.
        seconds: Time the call took, including all waiting.
    """

    results: list[list[Passage]]
    faults: tuple[str, ...]
    seconds: float


class HTTPRetriever:
    """A search service that speaks Search-R1's wire format (see :mod:`verl_mtgrpo.retrieval.wire`).

    A call is retried after time-outs, broken connections, HTTP 429 and 5xx and broken answers, with growing
    random pauses (or as long as the service's Retry-After asks), until it succeeds or ``patience_s`` is over.
    Then it raises the error of the last try, whose class tells the kind of failure. Other 4xx are not retried.

    Threads and event loops may share one object. It pickles as its settings. Proxies from the environment
    (``HTTPS_PROXY``, ``NO_PROXY``) are used, but never for a service on this machine.

    Args:
        url: Address of the service, ``http://host:port``, with or without ``/retrieve``.
        patience_s: Longest time in seconds that one call may take, including waiting and retries.
        request_timeout_s: Longest time in seconds to wait for one connection and for one answer.
        concurrency: Requests in flight at once from this object in this process; others wait their turn.
        token_env: Environment variable that holds the service's bearer token; None for no token.

    Raises:
        ConfigError: A setting is out of range, or the token's variable is not set.
    """

    def __init__(
        self,
        url: str,
        *,
        patience_s: float = 20.0,
        request_timeout_s: float = 10.0,
        concurrency: int = 64,
        token_env: str | None = None,
    ) -> None:
        self._base = addresses.base_url(url)
        for name, value in (("patience_s", patience_s), ("request_timeout_s", request_timeout_s)):
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} is {value}", expected="a number of seconds above 0")
        if concurrency < 1:
            raise ConfigError(f"concurrency is {concurrency}", expected="at least 1")
        self._patience_s = patience_s
        self._request_timeout_s = request_timeout_s
        self._concurrency = concurrency
        self._token_env = token_env
        addresses.read_token(token_env)  # a missing one is found now, not at the first search
        self._session: aiohttp.ClientSession | None = None
        self._session_loop: asyncio.AbstractEventLoop | None = None
        self._fingerprint: str | None = None
        self.counts: Counter[str] = Counter()
        """Count since the start: ``calls``, ``tries``, ``failed_calls``, and failed tries by kind (``busy`` …)."""

    @property
    def url(self) -> str:
        """The URL that queries are sent to."""
        return self._base + wire.PATH

    @property
    def fingerprint(self) -> str:
        """The service's own fingerprint of its index (asked once); empty if it has none, like the reference server.

        Raises:
            RetrievalError: The service cannot be reached.
        """
        if self._fingerprint is None:
            self._fingerprint = str(self.ping().get("fingerprint") or "")
        return self._fingerprint

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query in order, up to ``k`` passages, best first.

        Raises:
            RetrievalError: The search failed for ``patience_s``; the class names the kind of failure.
        """
        return background.wait_for(self._ask(queries, k)).results

    async def asearch(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Search as :meth:`search` does, without blocking the event loop."""
        return (await self.ask(queries, k)).results

    async def ask(self, queries: Sequence[str], k: int) -> Answer:
        """Search as :meth:`asearch` does, and also return which tries failed and how long the call took."""
        return await asyncio.wrap_future(background.submit(self._ask(queries, k)))

    def ping(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """Return what the service's ``/health`` says, asked once and without retries.

        A service without ``/health`` is sent a query instead, and the result is ``{"status": "ready"}`` if it answers.

        Raises:
            RetrievalError: It cannot be reached, is not ready, or does not answer in ``timeout_s`` seconds.
        """
        return background.wait_for(self._ping(timeout_s))

    def close(self) -> None:
        """Close all connections. The next search opens new ones."""
        session, self._session = self._session, None
        if session is not None and _sessions.get(session) == os.getpid():
            background.wait_for(session.close())

    # ---- on the thread of requests

    async def _ask(self, queries: Sequence[str], k: int) -> Answer:
        start = time.monotonic()
        body = wire.encode_request(queries, k)
        if not queries:
            return Answer([], (), 0.0)
        self.counts["calls"] += 1
        failure: RetrievalError | None = None
        faults: list[str] = []
        while True:
            left = self._patience_s - (time.monotonic() - start)
            try:
                results = await self._try_once(body, len(queries), k, left)
                return Answer(results, tuple(faults), time.monotonic() - start)
            except RetrievalTimeout as error:
                # A try cut short by the end of the patience says less than the complete one before it.
                failure = failure if failure and left < self._request_timeout_s else error
                faults.append(error.kind)
            except RetrievalError as error:
                failure = error
                faults.append(error.kind)
            pause = _pause_s(failure, len(faults))
            if isinstance(failure, RetrievalRejected) or time.monotonic() - start + pause >= self._patience_s:
                raise self._final(failure, faults, start) from failure
            await asyncio.sleep(pause)

    async def _try_once(self, body: bytes, queries: int, k: int, left_s: float) -> list[list[Passage]]:
        self.counts["tries"] += 1
        try:
            answer = await self._request("POST", wire.PATH, max(left_s, 0.001), body)
            if len(answer) <= _PARSED_AT_ONCE_BYTES:
                return wire.decode_answer(answer, queries=queries, k=k)
            return await asyncio.to_thread(wire.decode_answer, answer, queries=queries, k=k)
        except RetrievalError as error:
            self.counts[error.kind] += 1
            raise

    async def _request(self, method: str, path: str, limit_s: float, body: bytes | None = None) -> bytes:
        """Return the body of one answer with status 200; raise any failure as the error of its kind."""
        import aiohttp

        session = self._open_session()
        each_s = min(limit_s, self._request_timeout_s)
        # ``total`` has to include the wait for a free connection; the others do not.
        timeout = aiohttp.ClientTimeout(total=limit_s, sock_connect=each_s, sock_read=each_s)
        headers = {"Content-Type": "application/json", **_authorization(self._token_env)}
        try:
            async with session.request(
                method, self._base + path, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                content = await _read_limited(response)
                if response.status != 200:
                    raise _refusal(response, content)
                return content
        # The order matters: some of aiohttp's time-outs are connection errors too.
        except (asyncio.TimeoutError, TimeoutError) as error:
            if isinstance(error, aiohttp.ServerTimeoutError):
                raise RetrievalTimeout(f"no answer within {each_s:.3g} s") from error
            raise RetrievalTimeout(f"no free connection or no complete answer within {limit_s:.3g} s") from error
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as error:
            raise RetrievalBadAnswer(f"its answer is broken or ends too early ({error})") from error
        except (aiohttp.ClientError, OSError) as error:
            raise RetrievalUnreachable(f"{type(error).__name__}: {error}") from error

    def _open_session(self) -> aiohttp.ClientSession:
        """Return the session of this thread. Only called on the thread of requests, so no lock is needed."""
        import aiohttp

        # Another loop: this is a forked child, and the session belongs to its parent.
        if self._session is None or self._session.closed or self._session_loop is not asyncio.get_running_loop():
            self._session_loop = asyncio.get_running_loop()
            connector = aiohttp.TCPConnector(limit=self._concurrency, keepalive_timeout=_KEEP_ALIVE_S)
            self._session = aiohttp.ClientSession(
                connector=connector, trust_env=not addresses.is_this_machine(self._base)
            )
            _sessions[self._session] = os.getpid()
            weakref.finalize(self, _forget_session, self._session, os.getpid()).atexit = False
        return self._session

    def _final(self, error: RetrievalError, faults: Sequence[str], start: float) -> RetrievalError:
        self.counts["failed_calls"] += 1
        seconds = time.monotonic() - start
        tried = f"{len(faults)} {'try' if len(faults) == 1 else 'tries'} in {seconds:.1f} s"
        fix = "; ".join(advice for advice in (error.fix, _ADVICE[type(error)]) if advice)
        final = type(error)(f"search at {self.url} failed ({tried}): {error.found}", fix=fix)
        final.faults, final.status, final.retry_after_s = tuple(faults), error.status, error.retry_after_s
        return final

    async def _ping(self, timeout_s: float) -> dict[str, Any]:
        start = time.monotonic()
        try:
            try:
                answer = await self._request("GET", "/health", timeout_s)
            except RetrievalRejected as error:
                if error.status not in (404, 405):
                    raise
                await self._try_once(wire.encode_request(["test"], 1), 1, 1, timeout_s)
                return {"status": "ready", "detail": "the service has no /health, but it answers queries"}
            health = json.loads(answer)
            if not isinstance(health, dict):
                raise ValueError("no object")
            return cast("dict[str, Any]", health)
        except ValueError as error:
            final = RetrievalBadAnswer(f"/health did not send a JSON object ({error})")
            raise self._final(final, [final.kind], start) from error
        except RetrievalError as error:
            raise self._final(error, [error.kind], start) from error

    def __getstate__(self) -> dict[str, Any]:
        return {
            "url": self._base,
            "patience_s": self._patience_s,
            "request_timeout_s": self._request_timeout_s,
            "concurrency": self._concurrency,
            "token_env": self._token_env,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __repr__(self) -> str:
        return f"HTTPRetriever({self._base!r})"


_ADVICE: dict[type[RetrievalError], str] = {
    RetrievalTimeout: "the service is overloaded or stuck: look at its log and its /metrics, give it more replicas, "
    "or allow more time (patience_s, request_timeout_s)",
    RetrievalUnreachable: "check that the service is running, host and port are right and that no firewall or proxy "
    "is in between (start one with: mtgrpo serve INDEX_DIR)",
    RetrievalBusy: "start more replicas, give the service a longer --queue, or lower the client's concurrency",
    RetrievalServerError: "look at the service's log",
    RetrievalRejected: "retrying does not help: check the address, the token and the request",
    RetrievalBadAnswer: "check that the address is a Search-R1 compatible service and that no proxy cuts its answers",
}


def _authorization(token_env: str | None) -> dict[str, str]:
    token = addresses.read_token(token_env)
    return {"Authorization": f"Bearer {token}"} if token else {}


def _pause_s(failure: RetrievalError, tries: int) -> float:
    """Return the seconds until the next try: random, so that callers that failed together do not retry together."""
    back_off = min(_FIRST_PAUSE_S * 2 ** min(tries - 1, 10), _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
    return max(back_off, failure.retry_after_s * random.uniform(1.0, 1.2))


async def _read_limited(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > _MAX_ANSWER_BYTES:
            raise RetrievalBadAnswer(f"its answer is longer than {_MAX_ANSWER_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def _refusal(response: aiohttp.ClientResponse, content: bytes) -> RetrievalError:
    """Return the error that a status other than 200 means."""
    status = response.status
    text = " ".join(content[:2000].decode("utf-8", "replace").split())[:300]
    message = f"HTTP {status}" + (f" ({text})" if text else "")
    if 300 <= status < 400:
        message = f"HTTP {status}, a redirect to {response.headers.get('Location')!r}; give that address"
    if status == 429:
        error = RetrievalBusy(message)
    elif status >= 500:
        error = RetrievalServerError(message)
    elif status >= 300:
        error = RetrievalRejected(message)
    else:
        error = RetrievalBadAnswer(message)
    error.status = status
    error.retry_after_s = parse_retry_after(response.headers.get("Retry-After"))
    return error


def _forget_session(session: aiohttp.ClientSession, pid: int) -> None:
    """Close the session of a client that has been garbage-collected.

    Never waits: garbage collection may run at any line of any thread, even one that holds a lock that the thread of
    requests needs. In a forked child the session is not ours to close.
    """
    if pid == os.getpid() and not session.closed:
        background.submit(session.close())


@atexit.register
def _close_sessions() -> None:
    """Close all sessions, or aiohttp complains about open ones when the process ends."""
    for session, pid in list(_sessions.items()):
        if pid == os.getpid():
            with contextlib.suppress(Exception):  # nobody is left to report to
                background.wait_for(session.close(), timeout_s=1.0)
