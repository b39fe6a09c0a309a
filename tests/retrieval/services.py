"""Start real search services for tests: processes on free ports, ended with their ``with`` block."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_mtgrpo.retrieval import BM25Index, Passage

ROOT = Path(__file__).parents[2]
CLI = "verl_mtgrpo.cli.main"
SLOW_CLI = "tests.retrieval.slow_serve"
FAULTY = "tests.retrieval.faulty"
_START_S = 30.0

# No proxy may stand between a test and its service, whatever the environment says.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def passages(count: int = 300) -> list[Passage]:
    """Make passages that each have one unique word, ``uid7``, and share all others."""
    return [
        Passage(f"p{number}", f'The "{number}th" house', f"House uid{number} stands\nin the old town of Velm.")
        for number in range(count)
    ]


def build_index(folder: Path, count: int = 300) -> Path:
    BM25Index.build(passages(count), folder, source="made by the test", analyser="plain")
    return folder


@dataclass
class Service:
    url: str
    process: subprocess.Popen[str]

    def post(self, body: Any, *, path: str = "/retrieve", headers: Mapping[str, str] | None = None) -> Answered:
        """POST JSON, or bytes unchanged."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return fetch(self.url + path, data, headers)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answered:
        return fetch(self.url + path, None, headers)


@dataclass
class Answered:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def fetch(url: str, data: bytes | None, headers: Mapping[str, str] | None = None) -> Answered:
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with _direct.open(request, timeout=30) as response:
            return Answered(response.status, response.read(), response.headers)
    except urllib.error.HTTPError as error:
        return Answered(error.code, error.read(), error.headers)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(*arguments: object, module: str = CLI, env: Mapping[str, str] | None = None) -> Iterator[Service]:
    """Start a process and wait until it is ready, e.g. ``serving("serve", index)``."""
    port = () if "--port" in arguments else ("--port", 0)
    argv = [sys.executable, "-m", module, *map(str, [*arguments, *port])]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **(env or {})})
    try:
        yield Service(_url_when_ready(process), process)
    finally:
        process.kill()
        process.communicate()


def _url_when_ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()  # ends also when the process dies
    assert line.startswith("ready at http://127.0.0.1:"), f"the service said {line!r}"
    return line.removeprefix("ready at ").split(": ")[0]


def wait_until_healthy(service: Service) -> None:
    deadline = time.monotonic() + _START_S
    while service.get("/health").status != 200:
        assert time.monotonic() < deadline, service.get("/health").body
        time.sleep(0.02)
