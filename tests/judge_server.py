"""An OpenAI-compatible endpoint over real HTTP whose answers a test decides."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Says:
    """An answer with a given status, body and headers."""

    status: int
    body: str
    headers: dict[str, str] = field(default_factory=dict[str, str])


class JudgeServer:
    """An OpenAI-compatible endpoint; ``answer(body, n)`` is called for the n-th request of a completion.

    ``tokenize(body)``, if there is one, answers what engines answer under ``/tokenize``; else there is no such page.
    """

    def __init__(self) -> None:
        self.tokenize: Callable[[dict[str, Any]], dict[str, Any]] | None = None
        self.answer: Callable[[dict[str, Any], int], Any] = lambda body, n: '{"reason": "fine", "score": 0.5}'
        self.bodies: list[dict[str, Any]] = []
        self.at_a_time = self.most_at_a_time = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not self.path.endswith("/chat/completions"):
                    known = outer.tokenize if self.path == "/tokenize" else None
                    outer.reply(self, Says(200, json.dumps(known(body))) if known else 404)
                    return
                with outer.lock:
                    outer.bodies.append(body)
                    number = len(outer.bodies)
                    outer.at_a_time += 1
                    outer.most_at_a_time = max(outer.most_at_a_time, outer.at_a_time)
                try:
                    outer.reply(self, outer.answer(body, number))
                except OSError:
                    pass  # the client hung up
                finally:
                    with outer.lock:
                        outer.at_a_time -= 1

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def scoring(self, *scores: float, outcome: float) -> None:
        """Answer as the preset ``judge`` expects: these scores for the turns, that for the final answer."""
        replies = {False: json.dumps({"scores": scores}), True: json.dumps({"score": outcome})}
        self.answer = lambda body, n: replies["final answer" in body["messages"][0]["content"]]

    def reply(self, handler: BaseHTTPRequestHandler, said: Any) -> None:
        status = said if isinstance(said, int) else 200
        message = {"role": "assistant", "content": said if isinstance(said, str) else ""}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
        whole = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        body = json.dumps(whole if status == 200 else {"error": {"message": "no"}}).encode()
        headers = {"Retry-After-Ms": "10"} if status == 429 else {}
        if isinstance(said, Says):
            status, body, headers = said.status, said.body.encode(), said.headers
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if said is None else body)  # None: half an answer
        if said is None:
            handler.close_connection = True
