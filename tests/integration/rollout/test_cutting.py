"""Cut turns at a closing tag: keep the right tokens, and do not delay other rollouts."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("verl")

from verl.workers.rollout.replica import TokenOutput

from verl_mtgrpo.integration.rollout.cutting import CuttingServer, tokens_to_keep
from verl_mtgrpo.rewards.formats import CUT_FORMATS

QWEN3 = Path(__file__).resolve().parents[4] / "shared" / "data" / "tokenizers" / "qwen3"
pytestmark = [pytest.mark.skipif(not QWEN3.exists(), reason="no shared/data"), pytest.mark.imports_verl]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(QWEN3)


class Engine:
    """Returns the next of some token lists; a real engine that knows stop strings would stop at the first tag."""

    def __init__(self, *said: list[int]) -> None:
        self.said = list(said)

    async def generate(self, **_: Any) -> TokenOutput:
        ids = self.said.pop(0)
        return TokenOutput(token_ids=ids, log_probs=[0.0] * len(ids), stop_reason="completed")


def kept(tokenizer: Any, ids: list[int], *, spoken: str, stop: bool) -> list[int]:
    server = CuttingServer(Engine(ids), CUT_FORMATS[spoken], tokenizer.decode, stop=stop)
    return asyncio.run(server.generate(sampling_params={})).token_ids


def stopped(tokenizer: Any, text: str, closing: tuple[str, ...]) -> list[int]:
    """Return the tokens up to the one that completes the first closing tag, checked one by one."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    for count in range(1, len(ids) + 1):
        if any(tag in tokenizer.decode(ids[:count]) for tag in closing):
            return ids[:count]
    return ids


WORDS = [
    "</",
    "search",
    ">",
    "<search>",
    "</search>",
    "</answer>",
    "<answer>",
    " Åsa",
    "東京",
    "🙂",
    " tower",
    "\n",
    ".</",
    "x",
]


@pytest.mark.parametrize("spoken", CUT_FORMATS)
@pytest.mark.parametrize("seed", range(40))
def test_an_engine_that_stops_and_one_that_does_not_end_at_the_same_token(tokenizer: Any, spoken: str, seed: int):
    rng = random.Random(seed)
    rules = CUT_FORMATS[spoken]
    text = "".join(rng.choice([*WORDS, f"</{rules.call}>"]) for _ in range(rng.randint(1, 60)))
    closing = (f"</{rules.call}>", "</answer>")
    expected = stopped(tokenizer, text, closing)
    whole = tokenizer.encode(text, add_special_tokens=False)
    assert kept(tokenizer, whole, spoken=spoken, stop=False) == expected
    assert kept(tokenizer, expected, spoken=spoken, stop=True) == expected, "what the engine stopped at"
    if not any(tag in tokenizer.decode(expected) for tag in closing):
        return
    beyond = [*expected, *tokenizer.encode(" and on", add_special_tokens=False)[:2]]
    assert kept(tokenizer, beyond, spoken=spoken, stop=True) == expected, "an engine may give a token or two more"


@pytest.mark.clock
def test_a_long_turn_that_the_engine_stopped_costs_less_than_a_millisecond(tokenizer: Any):
    ids = tokenizer.encode("The tower of Oslo is by the harbour. " * 1400, add_special_tokens=False)[:12000]
    ids += tokenizer.encode("<search>tower</search>", add_special_tokens=False)
    assert len(ids) > 12000
    server = CuttingServer(Engine(*[ids] * 50), CUT_FORMATS["search_r1"], tokenizer.decode, stop=True)

    async def turns() -> list[float]:
        spent = []
        for _ in range(50):
            start = time.perf_counter()
            keep = await server._tokens_to_keep(ids)
            spent.append(time.perf_counter() - start)
            assert keep == len(ids)
        return spent

    spent = asyncio.run(turns())
    start = time.perf_counter()
    tokens_to_keep(ids, server.closing, tokenizer.decode)
    whole, median = time.perf_counter() - start, statistics.median(spent)
    print(f"\ncut of a turn of {len(ids)} tokens: {1e3 * median:.3f} ms, from its start {1e3 * whole:.1f} ms")
    assert median < 1e-3


@pytest.mark.clock
def test_turns_without_a_tag_do_not_hold_up_the_event_loop(tokenizer: Any):
    ids = tokenizer.encode("The tower of Oslo is by the harbour. " * 1400, add_special_tokens=False)[:12000]
    server = CuttingServer(Engine(*[ids] * 64), CUT_FORMATS["search_r1"], tokenizer.decode, stop=False)
    late: list[float] = []

    async def heartbeat(state: SimpleNamespace) -> None:
        while not state.over:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append(time.perf_counter() - start - 0.001)

    async def many() -> None:
        state = SimpleNamespace(over=False)
        beat = asyncio.create_task(heartbeat(state))
        await asyncio.gather(*(server.generate(sampling_params={}) for _ in range(64)))
        state.over = True
        await beat

    asyncio.run(many())
    late.sort()
    p99 = late[int(0.99 * (len(late) - 1))]
    print(f"\n64 turns of 12,000 tokens without a tag: event loop late by {1e3 * p99:.1f} ms (p99 of {len(late)})")
    assert p99 < 0.02
