"""Serve a tiny policy on the CPU as an OpenAI-compatible endpoint: chat completions, with log-probs and stop strings.

    python examples/mixtures/server.py runs/mixtures/assets-seed0/reads --port 8002

It answers with the generator of this package's rollouts on the CPU. Its chat template is told of the tool `search`, as
in the rollouts of `mtgrpo demo`. For models of a usual size, use vLLM's server instead.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from verl_mtgrpo.cpu.generation import TokenGenerator
from verl_mtgrpo.cpu.sampling import SamplingParams, end_token_ids
from verl_mtgrpo.cpu.serving import GenerationThread
from verl_mtgrpo.demo.assets import TOOLS
from verl_mtgrpo.demo.policy import load_policy


class Asked(BaseModel):
    """A request. Anything else is refused, or it would silently be sampled in another way than requested."""

    model_config = ConfigDict(extra="forbid")

    messages: list[dict[str, Any]]
    model: str = ""
    max_tokens: int = 64
    temperature: float = 1.0
    stop: str | list[str] | None = None
    include_stop_str_in_output: bool = True
    seed: int | None = None
    logprobs: bool = False


class Policy:
    """A policy folder that writes turns.

    Args:
        folder: Model, tokenizer and chat template.
        seed: Seed of what is sampled.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        model, self.tokenizer = load_policy(folder)
        model.eval().requires_grad_(False)
        ends = end_token_ids(model.config, model.generation_config, self.tokenizer)
        generator = TokenGenerator(model, end_ids=ends, decode=self.tokenizer.decode)  # pyright: ignore[reportArgumentType]
        self.thread = GenerationThread(generator, seed=seed)

    def prompt(self, messages: list[dict[str, Any]]) -> list[int]:
        """Return a chat as tokens, up to where the next turn begins."""
        tools: list[Any] = list(TOOLS)
        chat = self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
        return self.tokenizer.encode(str(chat), add_special_tokens=False)

    async def complete(self, asked: Asked) -> dict[str, Any]:
        """Answer a request."""
        stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        params = SamplingParams(asked.max_tokens, asked.temperature, stop=tuple(stop), seed=asked.seed)
        written = await asyncio.wrap_future(self.thread.submit(self.prompt(asked.messages), params))
        text = str(self.tokenizer.decode(written.token_ids, skip_special_tokens=True))
        for end in stop if not asked.include_stop_str_in_output else []:
            text = text.partition(end)[0]
        told = [
            {"token": self.tokenizer.decode([token]), "logprob": log_prob, "bytes": None, "top_logprobs": []}
            for token, log_prob in zip(written.token_ids, written.log_probs, strict=True)
        ]
        return {
            "id": "turn",
            "object": "chat.completion",
            "created": 0,
            "model": asked.model,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": written.finish,
                    "message": {"role": "assistant", "content": text},
                    "logprobs": {"content": told} if asked.logprobs else None,
                }
            ],
        }


def app_of(policy: Policy) -> FastAPI:
    """Return the endpoint as an ASGI application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/v1/chat/completions", policy.complete, methods=["POST"], response_model=None)
    return app


class _Server(uvicorn.Server):
    def __init__(self, policy: Policy, port: int) -> None:
        # As many requests come at once as a validation has rollouts.
        options: dict[str, Any] = {"port": port, "log_level": "warning", "access_log": False, "backlog": 2048}
        super().__init__(uvicorn.Config(app_of(policy), host="127.0.0.1", **options))
        self.ready = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@contextmanager
def serve(folder: Path, *, seed: int = 0, port: int = 0) -> Generator[str]:
    """Serve a policy inside the block; yield the address.

    Args:
        folder: Model, tokenizer and chat template.
        seed: Seed of what is sampled.
        port: 0 for any that is free.
    """
    policy = Policy(folder, seed)
    server = _Server(policy, port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.ready.wait(0.1):
            if not thread.is_alive():
                raise RuntimeError(f"the server of {folder} did not start; see above")
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()
        policy.thread.close()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path)
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with serve(args.policy, seed=args.seed, port=args.port) as address:
        print(address, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
