from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.retrieval.services import (
    SLOW_CLI,
    Answered,
    Service,
    build_index,
    serving,
    wait_until_healthy,
)
from verl_mtgrpo.data.corpus import read_corpus
from verl_mtgrpo.errors import ConfigError, RetrievalRejected
from verl_mtgrpo.retrieval import BM25Index, HTTPRetriever
from verl_mtgrpo.retrieval.server import ServerSettings

pytestmark = [pytest.mark.process, pytest.mark.network]

TOKEN = "a secret for the test"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_index(tmp_path_factory.mktemp("server") / "index")


@pytest.fixture(scope="module")
def service(index: Path) -> Iterator[Service]:
    with serving("serve", index, "--max-body", 2_000_000) as service:
        wait_until_healthy(service)
        yield service


@pytest.fixture(scope="module")
def narrow(index: Path) -> Iterator[Service]:
    """One search at a time, one more may wait, each for a second and a half."""
    limits = ("--threads", 1, "--queue", 1, "--timeout", 1.5)
    with serving("serve", index, *limits, module=SLOW_CLI) as service:
        yield service


# ---- the format


def plain_client(url: str, queries: list[str], topk: int | None, scores: bool) -> list[list[tuple[str, str, str, Any]]]:
    """Written from the description of the format alone: (id, title, text, score) of each hit."""
    body = json.dumps({"queries": queries, "topk": topk, "return_scores": scores}).encode()
    request = urllib.request.Request(f"{url}/retrieve", body, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as response:
        result = json.load(response)["result"]
    found = []
    for hits in result:
        documents = [hit["document"] if scores else hit for hit in hits]
        lines = [document["contents"].split("\n", 1) for document in documents]
        rest = [hit["score"] if scores else None for hit in hits]
        found.append([(d["id"], t.strip('"'), text, s) for d, (t, text), s in zip(documents, lines, rest, strict=True)])
    return found


# Search-R1's layout of a corpus, with the odd things that occur in it.
CORPUS = [
    {"id": "0", "contents": '"Orsa Kint"\nOrsa Kint built the lighthouse of Velm in 1871.'},
    {"id": "1", "contents": '"Velm"\nVelm is a harbour town.\nIt has a lighthouse.'},
    {"id": "2", "contents": '"Café – Rösti"\nA café in Velm; “only rösti”, 5 €.'},
    {"id": "3", "contents": "Without quotes\nA title may stand without quotes, also in Velm."},
]


def test_an_independent_client_understands_our_answers(tmp_path: Path):
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in CORPUS))
    index = BM25Index.build(read_corpus(tmp_path / "corpus.jsonl"), tmp_path / "index", source="corpus.jsonl")
    queries = ["lighthouse", "nosuchword", "cafe", "title quotes"]
    expected = [
        [(hit.id, hit.title, hit.text, pytest.approx(hit.score)) for hit in hits] for hits in index.search(queries, 3)
    ]
    assert [sorted(hit[0] for hit in hits) for hits in expected] == [["0", "1"], [], ["2"], ["3"]]
    assert expected[3][0][1] == "Without quotes"
    with serving("serve", tmp_path / "index") as service:
        assert plain_client(service.url, queries, 3, True) == expected
        assert plain_client(service.url, queries, None, True) == expected
        bare = [[(*hit[:3], None) for hit in hits] for hits in expected]
        # The reference server fails here unless there are two queries, and then answers only the first.
        for count in (1, 2, 3, 4):
            assert plain_client(service.url, queries[:count], 3, False) == bare[:count]
        assert HTTPRetriever(service.url).search(queries, 3) == index.search(queries, 3)


# Search-R1's own example corpus, or any other in its layout, where a path is given.
CORPUS_FILES = [None, *filter(None, [os.environ.get("MTGRPO_SEARCH_R1_CORPUS")])]


@pytest.mark.parametrize("given", CORPUS_FILES)
def test_every_passage_of_a_corpus_comes_back_as_it_was(tmp_path: Path, given: str | None):
    file = Path(given) if given else tmp_path / "corpus.jsonl"
    if given is None:
        file.write_text("".join(json.dumps(line) + "\n" for line in CORPUS))
    BM25Index.build(read_corpus(file), tmp_path / "index", source="corpus")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    with serving("serve", tmp_path / "index") as service:
        results = HTTPRetriever(service.url).search([record["contents"] for record in records], 5)
    for record, hits in zip(records, results, strict=True):
        title, text = record["contents"].split("\n", 1)
        assert (record["id"], title.strip('"'), text) in [(hit.id, hit.title, hit.text) for hit in hits]


def test_topk(service: Service):
    def counts(topk: int | None) -> list[int]:
        return [len(hits) for hits in plain_client(service.url, ["town", "uid7"], topk, True)]

    assert counts(None) == [3, 1]
    assert counts(1) == [1, 1]
    assert counts(100) == [100, 1]
    refused = service.post({"queries": ["town"], "topk": 101})
    assert (refused.status, refused.json) == (
        400,
        {"error": "topk is 101, this service gives at most 100; ask for less"},
    )


# ---- hostile input


@pytest.mark.parametrize(
    "body, status, message",
    [
        (b"", 400, "not JSON in UTF-8, expected an object; send"),
        (b"queries=town", 400, "not JSON"),
        (b'{"queries": ["\xff\xfe"]}', 400, "not JSON in UTF-8"),
        (b"[" * 100_000, 400, "not JSON"),
        ({"queries": "town"}, 400, "queries is a string, expected a list of strings"),
        ({"queries": [["town"]]}, 400, r"queries\[0\] is a list"),
        ({"queries": ["town"], "topk": -1}, 400, "topk is '-1'"),
        ({"queries": ["town"], "topk": 1e300}, 400, "topk is '1e.300'"),
        ({"queries": ["town"], "topk": 10**30}, 400, "topk is 1000"),
        ({"queries": ["town"] * 10_000}, 413, "10000 queries in one request, at most 512; send several"),
        (b'{"queries": ["' + b"a" * 3_000_000 + b'"]}', 413, "more than 2000000 bytes; send fewer or shorter"),
    ],
)
def test_requests_that_are_refused(service: Service, body: Any, status: int, message: str):
    answered = service.post(body)
    assert answered.status == status
    assert re.search(message, answered.json["error"])
    assert list(answered.json) == ["error"]


@pytest.mark.parametrize(
    "query",
    [
        "town " * 200_000,
        "a" * 1_000_000,
        "😀 uid7 👩‍👩‍👧",
        "\x00uid7\x1b[31m\x7f",
        "\ud800 uid7",
        'uid7 AND ( title:"',
        "-uid7 /uid7/ uid7^9 [uid7 TO *]",
        "",
        "   ",
        "../../etc/passwd",
        "'; DROP TABLE passages; --",
    ],
)
def test_any_text_is_a_query(service: Service, query: str):
    answered = service.post({"queries": [query, "uid9"], "topk": 1})
    assert answered.status == 200
    first, last = answered.json["result"]
    assert [hit["id"] for hit in last] == ["p9"]
    if "uid7" in query:
        assert [hit["id"] for hit in first] == ["p7"]


def test_no_queries(service: Service):
    assert service.post({"queries": []}).json == {"result": []}


def test_a_query_longer_than_the_limit_is_cut(service: Service):
    early, late = "uid7 " + "x" * 20_000, "x" * 20_000 + " uid7"
    results = service.post({"queries": [early, late]}).json["result"]
    assert [[hit["id"] for hit in hits] for hits in results] == [["p7"], []]


def test_other_paths_and_methods(service: Service):
    for answered in (service.get("/"), service.get("/docs"), service.post({}, path="/retrieve/../../etc/passwd")):
        assert answered.status == 404
        assert "there are POST /retrieve, GET /health and GET /metrics" in answered.json["error"]
    assert service.get("/retrieve").status == 405


def test_a_client_that_leaves_in_the_middle(service: Service):
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b'{"queries')
    assert service.post({"queries": ["uid7"]}).status == 200


# ---- limits


def sleepers(service: Service, count: int, seconds: float) -> list[Answered]:
    """Answers to requests that were sent together and take ``seconds`` each."""
    with ThreadPoolExecutor(count) as pool:
        calls = [pool.submit(service.post, {"queries": [f"sleep {seconds} uid{n}"]}) for n in range(count)]
        return [call.result() for call in calls]


def test_a_full_queue(narrow: Service):
    answers = sleepers(narrow, 5, 0.4)
    assert sorted(answer.status for answer in answers) == [200, 200, 429, 429, 429]
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.headers["Retry-After"] == "1"
    assert refused.json == {"error": "the service already has as many requests as it takes at once; retry later"}
    assert 'mtgrpo_search_requests_total{status="429"} 3.0' in narrow.get("/metrics").body.decode()


def test_a_client_gets_through_a_full_queue(narrow: Service):
    client = HTTPRetriever(narrow.url)
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda n: client.search([f"sleep 0.1 uid{n}"], 1)[0][0].id, range(5)))
    assert found == [f"p{n}" for n in range(5)]


@pytest.mark.clock
def test_a_search_that_takes_too_long(narrow: Service):
    start = time.monotonic()
    answered = narrow.post({"queries": ["sleep 2 uid7"]})
    assert answered.status == 504
    assert answered.json == {"error": "the search took longer than 1.5 s; retry later or ask for less"}
    assert time.monotonic() - start < 1.9
    # It still runs and keeps its place, then gives it back.
    time.sleep(0.7)
    assert [answer.status for answer in sleepers(narrow, 2, 0)] == [200, 200]


@pytest.mark.clock
def test_the_event_loop_stays_free_during_a_search(narrow: Service):
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(narrow.post, {"queries": ["sleep 1 uid7"]})
        time.sleep(0.2)
        start = time.monotonic()
        assert narrow.get("/health").status == 200
        gauges = narrow.get("/metrics").body.decode()
        assert time.monotonic() - start < 0.5
        assert "mtgrpo_search_in_flight 1.0" in gauges and "mtgrpo_search_queue 0.0" in gauges
        assert call.result().status == 200


def test_a_search_that_fails(narrow: Service):
    answered = narrow.post({"queries": ["break"]})
    assert (answered.status, answered.json) == (500, {"error": "the search failed: the disk is gone"})
    assert narrow.post({"queries": ["uid7"]}).status == 200


def test_a_body_that_never_arrives(narrow: Service):
    host, port = narrow.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_tokens(index: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MTGRPO_TEST_TOKEN", TOKEN)
    body = {"queries": ["uid7"]}
    with serving("serve", index, "--token-env", "MTGRPO_TEST_TOKEN") as service:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "é"}):
            for refused in (service.post(body, headers=headers), service.get("/metrics", headers)):
                assert refused.status == 401
                assert refused.headers["WWW-Authenticate"] == "Bearer"
                assert refused.json["error"].startswith("the token is missing or wrong; send the header")
        assert service.post(body, headers={"Authorization": f"Bearer {TOKEN}"}).status == 200
        assert service.get("/health").status in (200, 503)
        client = HTTPRetriever(service.url, token_env="MTGRPO_TEST_TOKEN")
        assert client.search(["uid7"], 1)[0][0].id == "p7"
        with pytest.raises(RetrievalRejected, match=r"HTTP 401 .*the token is missing or wrong"):
            HTTPRetriever(service.url).search(["uid7"], 1)


@pytest.mark.parametrize("change", [{"max_k": 0}, {"timeout_s": 0}, {"queue": -1}, {"threads": -1}])
def test_limits_that_make_no_sense(change: dict[str, int]):
    with pytest.raises(ConfigError, match=rf"{next(iter(change))} of it is -?\d, expected"):
        ServerSettings.read(change, "", "it")


# ---- health and metrics


def test_health_names_the_index(service: Service, index: Path):
    answered = service.get("/health")
    assert answered.status == 200
    assert answered.json["status"] == "ready"
    manifest = json.loads((index / "manifest.json").read_text())
    assert answered.json["index"] == {key: manifest[key] for key in ("count", "checksum", "source", "analyser")}


def test_health_of_a_broken_index(index: Path):
    with serving("serve", index, module=SLOW_CLI, env={"MTGRPO_TEST_BROKEN": "1"}) as service:
        deadline = time.monotonic() + 5
        while (answered := service.get("/health")).json["status"] == "starting" and time.monotonic() < deadline:
            time.sleep(0.02)
    assert answered.status == 503
    assert answered.json["error"] == "the service is not ready (failed): the disk is gone"


def test_metrics_count(index: Path):
    with serving("serve", index) as service:
        for body in ({"queries": ["a", "b"]}, {"queries": ["c"]}, {"queries": 1}):
            service.post(body)
        answered = service.get("/metrics")
    assert answered.headers["Content-Type"].startswith("text/plain")
    lines = answered.body.decode().splitlines()
    assert 'mtgrpo_search_requests_total{status="200"} 2.0' in lines
    assert 'mtgrpo_search_requests_total{status="400"} 1.0' in lines
    assert "mtgrpo_search_queries_total 3.0" in lines
    assert "mtgrpo_search_seconds_count 3.0" in lines
    assert 'mtgrpo_search_seconds_bucket{le="+Inf"} 3.0' in lines


# ---- the end


def test_sigterm_lets_requests_finish(index: Path):
    with serving("serve", index, "--threads", 3, module=SLOW_CLI) as service, ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(service.post, {"queries": [f"sleep 1 uid{n}"], "topk": 1}) for n in range(3)]
        deadline = time.monotonic() + 10
        while b"mtgrpo_search_in_flight 3.0" not in service.get("/metrics").body:
            assert time.monotonic() < deadline
        service.process.send_signal(signal.SIGTERM)
        assert [call.result().json["result"][0][0]["id"] for call in calls] == ["p0", "p1", "p2"]
        assert service.process.wait(timeout=10) == 0


def test_sigterm_and_ctrl_c_when_idle(index: Path):
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):  # 130: as of any command
        with serving("serve", index) as service:
            service.process.send_signal(number)
            # Well under a second on a quiet machine. The service itself would give a connection 15 s.
            assert service.process.wait(timeout=14) == code
