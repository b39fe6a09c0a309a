"""Run the real service with faults on purpose: ``python -m tests.retrieval.faulty INDEX --port N``.

Below ``/<fault>/<n>/<name>`` every n-th request, beginning with the first, gets the fault and all others the
service's own answer. ``name`` only keeps the counts of tests apart. ``no-health`` is a service without
``/health``, like the reference server.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
from collections import defaultdict
from email.utils import formatdate
from time import time
from typing import Any

import uvicorn

from verl_mtgrpo.retrieval import BM25Index
from verl_mtgrpo.retrieval.server import create_app


class Faulty:
    def __init__(self, app: Any) -> None:
        self._app = app
        self._counts: dict[str, itertools.count[int]] = defaultdict(itertools.count)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"].count("/") < 4:
            return await self._app(scope, receive, send)
        _, fault, every, _, path = scope["path"].split("/", 4)
        if fault == "no-health":
            whole, fault = path != "health", "404"
        else:
            whole = next(self._counts[scope["path"]]) % int(every) != 0
        if whole:
            return await self._app({**scope, "path": "/" + path, "raw_path": b"/" + path.encode()}, receive, send)
        await _spoil(fault, send)


async def _spoil(fault: str, send: Any) -> None:
    if fault == "never":
        await asyncio.sleep(3600)
    elif fault == "half":
        # uvicorn closes the connection on an application that promises more than it sends.
        await _send(send, 200, b'{"result": [[{"docu', {"Content-Length": "1000"})
    elif fault == "garbage":
        await _send(send, 200, b"<html>please log in</html>\xff\xfe")
    elif fault == "other-layout":
        await _send(send, 200, b'{"passages": []}')
    elif fault == "too-few":
        await _send(send, 200, b'{"result": []}')
    elif fault == "empty":
        await _send(send, 204, b"")
    elif fault == "redirect":
        await _send(send, 307, b"", {"Location": "http://search.invalid/retrieve"})
    elif fault == "429-date":
        await _send(send, 429, b"", {"Retry-After": formatdate(time() + 2, usegmt=True)})
    elif fault.endswith(("-after", "-long")):
        await _send(send, int(fault[:3]), b"busy", {"Retry-After": "1" if fault.endswith("-after") else "3600"})
    else:
        await _send(send, int(fault), b'{"error": "spoilt"}')


async def _send(send: Any, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("index")
    parser.add_argument("--port", type=int)
    args = parser.parse_args()

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            print(f"ready at http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}: spoilt", flush=True)

    app = Faulty(create_app(BM25Index.open(args.index)))
    Server(uvicorn.Config(app, port=args.port, log_level="critical")).run()


if __name__ == "__main__":
    sys.exit(main())
