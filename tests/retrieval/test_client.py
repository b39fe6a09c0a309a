from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.retrieval.services import FAULTY, Service, build_index, free_port, passages, serving
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
from verl_mtgrpo.retrieval import HTTPRetriever, Passage, Retriever

pytestmark = [pytest.mark.process, pytest.mark.network]

PATIENCE_S = 1.0
# What a call may take beyond its patience: the machine may be busy.
SLACK_S = 1.0


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_index(tmp_path_factory.mktemp("client") / "index")


@pytest.fixture(scope="module")
def faulty(index: Path) -> Iterator[Service]:
    with serving(index, module=FAULTY) as service:
        yield service


def own_ids(results: list[list[Passage]]) -> list[str]:
    return [hits[0].id for hits in results]


async def ask_many(client: HTTPRetriever, numbers: range) -> list[list[list[Passage]]]:
    return await asyncio.gather(*(client.asearch([f"uid{n}", f"uid{n + 1} town"], 2) for n in numbers))


def check_answers(answers: list[list[list[Passage]]], numbers: range) -> None:
    """Every call got its own passages, in the order of its queries."""
    assert [own_ids(answer) for answer in answers] == [[f"p{n}", f"p{n + 1}"] for n in numbers]


# ---- it is a retriever


def test_searches_like_the_index_behind_it(faulty: Service):
    client = HTTPRetriever(faulty.url)
    assert isinstance(client, Retriever)
    ((hit,), none, town) = client.search(["uid7", "nosuchword", "town"], 3)
    assert replace(hit, score=0.0) == passages(8)[7]
    assert hit.score > 0 and none == [] and len(town) == 3
    assert asyncio.run(client.asearch(["uid7"], 3)) == [[hit]]
    assert (client.counts["calls"], client.counts["tries"]) == (2, 2)


@pytest.mark.parametrize("end", ["", "/", "/retrieve", "/retrieve/"])
def test_the_address_with_and_without_its_path(faulty: Service, end: str):
    client = HTTPRetriever(faulty.url + end)
    assert client.url == faulty.url + "/retrieve"
    assert own_ids(client.search(["uid7"], 1)) == ["p7"]


def test_no_queries_need_no_service():
    assert HTTPRetriever(f"http://127.0.0.1:{free_port()}").search([], 3) == []


def test_an_answer_says_what_it_took(faulty: Service):
    client = HTTPRetriever(faulty.url + "/500/2/took")
    start = time.monotonic()
    answer = asyncio.run(client.ask(["uid7"], 1))
    assert (own_ids(answer.results), answer.faults) == (["p7"], ("server_error",))
    assert 0.04 < answer.seconds <= time.monotonic() - start
    assert client.counts == {"calls": 1, "tries": 2, "server_error": 1}


def test_several_event_loops_and_threads_share_a_client(faulty: Service):
    client = HTTPRetriever(faulty.url, concurrency=8)
    for _ in range(2):
        check_answers(asyncio.run(ask_many(client, range(5))), range(5))
    with ThreadPoolExecutor(6) as pool:
        loops = [pool.submit(lambda n=n: asyncio.run(ask_many(client, range(n, n + 20)))) for n in range(3)]
        calls = [pool.submit(client.search, [f"uid{n}", f"uid{n + 1}"], 2) for n in range(100)]
        for n, loop in enumerate(loops):
            check_answers(loop.result(), range(n, n + 20))
        check_answers([call.result() for call in calls], range(100))


def test_a_pickled_client_and_one_in_a_forked_child(faulty: Service):
    client = HTTPRetriever(faulty.url, patience_s=5)
    assert own_ids(client.search(["uid7"], 1)) == ["p7"]  # so that it has a session, which cannot be pickled
    copy = pickle.loads(pickle.dumps(client))
    assert copy.url == client.url and own_ids(copy.search(["uid8"], 1)) == ["p8"]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert own_ids(pool.apply_async(client.search, (["uid9"], 1)).get(10)) == ["p9"]
    assert own_ids(client.search(["uid7"], 1)) == ["p7"]


def test_a_closed_client_opens_again(faulty: Service):
    client = HTTPRetriever(faulty.url)
    for _ in range(2):
        assert own_ids(client.search(["uid7"], 1)) == ["p7"]
        client.close()


def test_a_cancelled_call_ends_its_request(faulty: Service):
    async def cancelled(client: HTTPRetriever) -> list[list[Passage]]:
        stuck = asyncio.create_task(client.asearch(["uid7"], 1))
        await asyncio.sleep(0.2)
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck
        return await client.asearch(["uid7"], 1)

    # One connection only: had the first request kept it, the second would wait for 10 s.
    client = HTTPRetriever(faulty.url + "/never/2/cancel", concurrency=1, patience_s=3)
    assert own_ids(asyncio.run(cancelled(client))) == ["p7"]


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://host", "http://", "http://h:port", "http://h:99999", "http://h/?a=1", None, 3]
)
def test_what_is_no_address(url: str):
    with pytest.raises(ConfigError, match=r"address of the search service is .*expected an address such as"):
        HTTPRetriever(url)


def test_settings_that_make_no_sense(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="patience_s is 0, expected a number of seconds above 0"):
        HTTPRetriever("http://h", patience_s=0)
    with pytest.raises(ConfigError, match="request_timeout_s is nan"):
        HTTPRetriever("http://h", request_timeout_s=float("nan"))
    with pytest.raises(ConfigError, match="concurrency is 0"):
        HTTPRetriever("http://h", concurrency=0)
    with pytest.raises(ConfigError, match=r"user name or password.*token_env") as caught:
        HTTPRetriever("http://me:secret@h")
    assert "secret" not in str(caught.value)
    monkeypatch.delenv("MTGRPO_TEST_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="set the environment variable MTGRPO_TEST_TOKEN"):
        HTTPRetriever("http://h", token_env="MTGRPO_TEST_TOKEN")


def test_a_proxy_never_stands_before_this_machine(faulty: Service, monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert own_ids(HTTPRetriever(faulty.url).search(["uid7"], 1)) == ["p7"]
    # The proxy is there, and used for others: it is the proxy that cannot be reached.
    with pytest.raises(RetrievalUnreachable, match=r"127\.0\.0\.1"):
        HTTPRetriever("http://search.invalid", patience_s=0.3).search(["uid7"], 1)


# ---- faults that last


LASTING = {
    "500": (RetrievalServerError, r"HTTP 500 .*spoilt.*look at the service's log", True),
    "503-long": (RetrievalServerError, r"HTTP 503", False),
    "504": (RetrievalServerError, r"HTTP 504", True),
    "429": (RetrievalBusy, r"HTTP 429.*more replicas", True),
    "429-long": (RetrievalBusy, r"HTTP 429 \(busy\)", False),
    "never": (RetrievalTimeout, r"no answer within 0.2 s", True),
    "garbage": (RetrievalBadAnswer, r"not JSON: '<html>please log in", True),
    "other-layout": (RetrievalBadAnswer, r"without a list 'result'", True),
    "too-few": (RetrievalBadAnswer, r"0 result lists for 1 queries", True),
    "empty": (RetrievalBadAnswer, r"HTTP 204", True),
    "half": (RetrievalBadAnswer, r"broken or ends too early", True),
    "400": (RetrievalRejected, r"HTTP 400 .*retrying does not help", False),
    "401": (RetrievalRejected, r"HTTP 401", False),
    "404": (RetrievalRejected, r"HTTP 404", False),
    "redirect": (RetrievalRejected, r"redirect to 'http://search.invalid/retrieve'; give that address", False),
}


@dataclass
class Failed:
    """A call that failed."""

    client: HTTPRetriever
    error: RetrievalError
    seconds: float


@pytest.fixture(scope="module")
def failed(faulty: Service) -> dict[str, Failed]:
    """Return the outcome of each permanent fault; all run at once, as each takes its patience."""

    def call(fault: str) -> Failed:
        each_s = 0.2 if fault == "never" else 10.0  # a busy machine may answer late
        client = HTTPRetriever(f"{faulty.url}/{fault}/1/lasts", patience_s=PATIENCE_S, request_timeout_s=each_s)
        start = time.monotonic()
        with pytest.raises(RetrievalError) as caught:
            client.search(["uid7"], 1)
        return Failed(client, caught.value, time.monotonic() - start)

    with ThreadPoolExecutor(len(LASTING)) as pool:
        return dict(zip(LASTING, pool.map(call, LASTING), strict=True))


@pytest.mark.parametrize("fault", LASTING)
def test_a_fault_that_lasts_gives_its_own_error(failed: dict[str, Failed], fault: str):
    kind, message, tried_again = LASTING[fault]
    client, error = failed[fault].client, failed[fault].error
    assert type(error) is kind
    assert re.search(message, str(error))
    assert (len(error.faults) > 1) is tried_again
    tries = "1 try" if not tried_again else f"{len(error.faults)} tries"
    assert f"search at {client.url} failed ({tries} in " in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), len(copy.faults)) == (kind, str(error), len(error.faults))
    # The end of the patience may cut the last try short.
    assert set(error.faults[:-1] or error.faults) == {kind.kind} and {*error.faults} <= {kind.kind, "timeout"}
    assert client.counts == {"calls": 1, "failed_calls": 1, "tries": len(error.faults), **Counter(error.faults)}


@pytest.mark.clock
@pytest.mark.parametrize("fault", LASTING)
def test_a_fault_that_lasts_is_told_within_the_patience(failed: dict[str, Failed], fault: str):
    tried_again = LASTING[fault][2]
    assert failed[fault].seconds < (PATIENCE_S if tried_again else 0.0) + SLACK_S


@pytest.mark.clock
def test_nobody_listens():
    url = f"http://127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(RetrievalUnreachable, match=r"tries in 0\.\d s\).*mtgrpo serve INDEX_DIR") as caught:
        HTTPRetriever(url, patience_s=1).search(["uid7"], 1)
    assert time.monotonic() - start < 1 + SLACK_S
    assert len(caught.value.faults) > 2 and caught.value.status is None


@pytest.mark.clock
def test_patience_bounds_the_wait_for_a_connection_too(faulty: Service):
    """Ten calls share one connection that never answers: none of them hangs."""
    client = HTTPRetriever(faulty.url + "/never/1/wait", patience_s=1, request_timeout_s=30, concurrency=1)

    async def all_calls() -> list[object]:
        return await asyncio.gather(*(client.asearch(["uid7"], 1) for _ in range(10)), return_exceptions=True)

    start = time.monotonic()
    failures = asyncio.run(all_calls())
    assert time.monotonic() - start < 1 + SLACK_S
    assert {type(failure) for failure in failures} == {RetrievalTimeout}


# ---- faults that pass


PASSING = ["500", "429", "429-after", "garbage", "half", "never"]


@pytest.fixture(scope="module")
def survived(faulty: Service) -> dict[str, HTTPRetriever]:
    """A client for each fault that one request in ten meets, after 60 calls of each at once."""

    async def all_calls() -> list[list[list[list[Passage]]]]:
        return await asyncio.gather(*(ask_many(client, range(60)) for client in clients.values()))

    clients = {
        fault: HTTPRetriever(f"{faulty.url}/{fault}/10/passes", patience_s=15, request_timeout_s=1.0)
        for fault in PASSING
    }
    for answers in asyncio.run(all_calls()):
        check_answers(answers, range(60))
    return clients


@pytest.mark.parametrize("fault", PASSING)
def test_one_fault_in_ten_is_survived(survived: dict[str, HTTPRetriever], fault: str):
    # 60 calls and their retries: at least six of them, the first of every ten, met the fault.
    assert survived[fault].counts["tries"] >= 66
    assert survived[fault].counts["failed_calls"] == 0


@pytest.mark.clock
@pytest.mark.parametrize("fault, shortest", [("429-after", 1.0), ("429-date", 0.9), ("429", 0.0)])
def test_a_service_that_says_when_to_come_again(faulty: Service, fault: str, shortest: float):
    answer = asyncio.run(HTTPRetriever(f"{faulty.url}/{fault}/2/when").ask(["uid7"], 1))
    assert len(answer.faults) == 1
    assert shortest <= answer.seconds < (shortest or 0.2) * 2.5 + 0.5


def test_a_service_that_is_killed_and_started_again(index: Path):
    port = free_port()
    client = HTTPRetriever(f"http://127.0.0.1:{port}", patience_s=20, concurrency=4)
    done = 0
    killed = threading.Event()

    def call(number: int) -> list[list[Passage]]:
        nonlocal done
        if number == 100:
            assert killed.wait(20)
        answer = client.search([f"uid{number}", f"uid{number + 1}"], 2)
        done += 1
        return answer

    with ThreadPoolExecutor(4) as pool:
        with serving("serve", index, "--port", port) as service:
            calls = [pool.submit(call, number) for number in range(200)]
            while done < 50:
                time.sleep(0.005)
            service.process.send_signal(signal.SIGKILL)
            service.process.wait()
            killed.set()
        time.sleep(0.3)
        with serving("serve", index, "--port", port):
            check_answers([call.result() for call in calls], range(200))
    assert client.counts["unreachable"] > 0


def test_a_service_that_starts_late(index: Path):
    port = free_port()
    client = HTTPRetriever(f"http://127.0.0.1:{port}", patience_s=20)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(lambda: asyncio.run(client.ask(["uid7"], 1)))
        time.sleep(2)
        with serving("serve", index, "--port", port):
            answer = call.result()
    assert own_ids(answer.results) == ["p7"]
    assert answer.seconds >= 2 and len(answer.faults) > 2


# ---- is it there?


def test_ping(faulty: Service):
    health = HTTPRetriever(faulty.url).ping()
    assert health["status"] == "ready" and health["index"]["count"] == 300


def test_ping_of_a_service_without_health(faulty: Service):
    health = HTTPRetriever(faulty.url + "/no-health/1/ping").ping(2)
    assert health == {"status": "ready", "detail": "the service has no /health, but it answers queries"}


@pytest.mark.parametrize("fault, error", [("500", RetrievalServerError), ("never", RetrievalTimeout)])
def test_ping_says_what_is_wrong(faulty: Service, fault: str, error: type[RetrievalError]):
    with pytest.raises(error, match="1 try"):
        HTTPRetriever(f"{faulty.url}/{fault}/1/ping").ping(0.5)
    with pytest.raises(RetrievalBadAnswer, match="did not send a JSON object"):
        HTTPRetriever(f"{faulty.url}/garbage/1/ping").ping()


@pytest.mark.clock
def test_ping_waits_no_longer_than_it_is_told(faulty: Service):
    start = time.monotonic()
    with pytest.raises(RetrievalTimeout):
        HTTPRetriever(f"{faulty.url}/never/1/ping").ping(0.5)
    assert time.monotonic() - start < 0.5 + SLACK_S
