"""Count the tokens of Qwen3 that a judge reads for a rollout of 16 turns: at most 1.5 times the rollout's text.

All messages of all requests count, rubric included, as if no server had a prefix cache. Before (6573151), with one
request a turn that showed all turns before it and with letters of other scripts escaped, the same rollout of 7,007
tokens cost `judge` 8.8 times its text, and 36.6 times in Chinese; `judge_paper` 1.1 and 4.6 times.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("transformers")

from transformers import AutoTokenizer

from tests.judge_server import JudgeServer
from verl_mtgrpo.rewards import ToolCall, Transcript, Turn
from verl_mtgrpo.rewards.judge import Judge
from verl_mtgrpo.rewards.judge_client import JudgeSettings
from verl_mtgrpo.rewards.judge_paper import PaperJudge

pytestmark = [pytest.mark.network, pytest.mark.heavy]

QWEN3 = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers" / "qwen3"
TURNS = 16
ENGLISH = (
    "the river Ourn rises in hills above Vel and runs north past old mills to a harbour at Pim where boats with "
    "salt, wool, and timber were counted by clerks of a guild until it was closed in 1874 ; its bridge stands"
)
CHINESE = "欧恩河发源于维尔山向北流经旧磨坊到皮姆港口装盐和木材的船由行会书记清点直到一八七四年关闭它的桥至今还在，。"
WORDS = {"English": ENGLISH.split(), "Chinese": list(CHINESE)}


def text_of(language: str, words: int, rng: random.Random) -> str:
    return ("" if language == "Chinese" else " ").join(rng.choices(WORDS[language], k=words))


def rollout(language: str, passages: int) -> tuple[Transcript, str]:
    """A rollout with a thought and passages of 100 words in each turn, and all its text."""
    rng, turns = random.Random(0), []
    for k in range(TURNS - 1):
        thought, query = text_of(language, 40, rng), text_of(language, 6, rng)
        found = [f"Doc {n} (Title: {text_of(language, 3, rng)}) {text_of(language, 100, rng)}" for n in range(passages)]
        call = ToolCall("search", "{}", result="\n".join(found))
        turns.append(Turn(f"<think>{thought}</think>\n<search>{query}</search>", (2 * k, 2 * k + 1), (call,)))
    turns.append(Turn(f"<think>{text_of(language, 40, rng)}</think>\n<answer>Pim</answer>", (90, 91)))
    question = text_of(language, 20, rng)
    made = Transcript(tuple(turns), "answered", ({"role": "user", "content": question},), format="search_r1")
    parts = [question, *(part for turn in turns for part in (turn.text, *turn.results))]
    return made, "\n".join(parts)


def asked(reward_of: Any, transcript: Transcript) -> list[dict[str, Any]]:
    server = JudgeServer()
    server.scoring(*[0.0] * (TURNS - 1), outcome=1)
    if reward_of is PaperJudge:
        server.answer = lambda body, n: f'{{"scores": {[0.0] * (TURNS - 1) + [1.0]}}}'
    settings = JudgeSettings(base_url=server.url, model="m")
    reward = Judge(settings) if reward_of is Judge else PaperJudge(settings, "turns")
    try:
        asyncio.run(reward(transcript, {"target": ["Pim"]}))
    finally:
        server.stop()
    return server.bodies


@pytest.mark.parametrize("passages", [1, 3])
@pytest.mark.parametrize("language", WORDS)
@pytest.mark.parametrize("reward_of", [Judge, PaperJudge])
def test_tokens_read_of_a_rollout(language, reward_of, passages):
    if not QWEN3.exists():
        pytest.skip("no shared/data")
    tokenizer = AutoTokenizer.from_pretrained(QWEN3)
    transcript, text = rollout(language, passages)
    read = same = 0
    for body in asked(reward_of, transcript):
        chat = tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        read += len(tokenizer.encode(chat))
        same += len(tokenizer.encode(body["messages"][0]["content"]))
    own = len(tokenizer.encode(text))
    print(
        f"{reward_of.__name__} {language}: {read} tokens read for {own} of the rollout, {read / own:.2f}; "
        f"{(read - same) / own:.2f} where a prefix cache holds the {same} that are the same for all rollouts"
    )
    assert own > 2000
    assert read <= 1.5 * own
