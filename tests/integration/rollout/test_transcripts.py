"""Transport transcripts: packed without loss, small, and in the place where they are read."""

from __future__ import annotations

import json
import random
from string import ascii_letters

import pytest

pytest.importorskip("verl")

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.composed import composed
from verl_mtgrpo.integration.rollout.agent_loop import TurnAgentLoopOutput
from verl_mtgrpo.integration.rollout.transcripts import COLUMN, destination, pack, text_of_messages, unpack
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.rewards import ToolCall, Transcript, Turn

pytestmark = pytest.mark.compose

DUMP = "trainer.rollout_data_dir=/tmp/none"
SAMPLER = "trainer.v1.sampler.custom_sampler"
PASSAGE = "The tower of Oslo stands by the harbour. " * 12


def transcript(turns: int = 4, passages: int = 3, words: random.Random | None = None) -> Transcript:
    """Make a rollout; with ``words`` every passage and thought has different, hardly compressible words."""

    def passage() -> str:
        return " ".join("".join(words.choices(ascii_letters, k=5)) for _ in range(12)) if words else PASSAGE

    searching = []
    for k in range(turns - 1):
        documents = tuple(Passage(f"p{n}", f"Tower {n}", f"{n}: {passage()}", 1.5) for n in range(passages))
        result = "\n".join(f"Doc {n} (Title: {one.title}) {one.text}" for n, one in enumerate(documents, 1))
        call = ToolCall("search", '{"query": "tower"}', result=result, documents=documents)
        searching.append(Turn(f"<think>{passage()}</think><search>tower</search>", (9 * k, 9 * k + 4), (call,)))
    return Transcript(
        (*searching, Turn("<answer>Oslo</answer>", (99, 102))), "answered", ({"role": "user", "content": "Where?"},)
    )


@pytest.mark.parametrize(
    ("case", "overrides", "expected"),
    [
        ("nothing is written down", (), "nowhere"),
        ("training dump", (DUMP,), "column"),
        ("validation dump", ("trainer.validation_data_dir=/tmp/none",), "column"),
        ("verl's own trainer", (DUMP, "trainer.v1.trainer_mode=sync"), "info"),
        ("another sampler", (DUMP, f"{SAMPLER}.path=pkg://mine", f"{SAMPLER}.name=Mine"), "info"),
    ],
)
def test_where_they_go(case, overrides, expected):
    assert destination(composed(*overrides, preset="mt_grpo")) == expected, case


def output(where: str) -> dict:
    fields = {"transcript": transcript(2), "reward_extra_info": {"turn_rewards": "[0.5, 1.0]", "uid": "u"}}
    made = TurnAgentLoopOutput(
        prompt_ids=[1, 2],
        response_ids=[3, 4, 5, 6],
        response_mask=[1, 1, 0, 1],
        reward_score=1.5,
        extra_fields=fields,
        num_turns=2,
        metrics={},
    )
    made._destination = where
    first, second = made.as_dict(), made.as_dict()
    assert json.dumps(first["extra_fields"], default=str) == json.dumps(second["extra_fields"], default=str)
    assert first["rm_scores"].tolist() == [0.0, 0.5, 0.0, 1.0]
    assert "transcript" not in first["extra_fields"], "not a second time"
    return first


def test_what_the_queue_gets():
    wanted = json.loads(json.dumps(transcript(2).to_dict()))
    column = output("column")
    assert json.loads(unpack(column[COLUMN])) == wanted
    assert "transcript" not in column["extra_fields"]["reward_extra_info"]
    info = output("info")
    assert COLUMN not in info and json.loads(info["extra_fields"]["reward_extra_info"]["transcript"]) == wanted
    nowhere = output("nowhere")
    assert COLUMN not in nowhere and "transcript" not in nowhere["extra_fields"]["reward_extra_info"]
    assert torch.equal(column["rm_scores"], nowhere["rm_scores"])


@given(
    texts=st.lists(st.text(max_size=30), min_size=1, max_size=4),
    result=st.text(max_size=60),
    said=st.text(alphabet=st.characters(codec=None, categories=["L", "Cs", "P"]), max_size=30),
)
@settings(max_examples=200)
def test_packing_loses_nothing(texts, result, said):
    documents = tuple(Passage(str(n), "t", text) for n, text in enumerate(texts))
    call = ToolCall("search", "{}", result=result + "".join(texts), documents=documents)
    whole = Transcript((Turn(said, (0, 2), (call,)),), "answered")
    assert json.loads(unpack(pack(whole))) == json.loads(json.dumps(whole.to_dict()))
    assert Transcript.from_dict(json.loads(unpack(pack(whole)))) == whole


@pytest.mark.parametrize("turns", [4, 16])
def test_a_rollout_takes_no_more_than_its_text(turns):
    whole = transcript(turns, words=random.Random(0))
    text = sum(len(turn.text) + sum(len(call.result) for call in turn.tool_calls) for turn in whole.turns)
    packed, plain = len(pack(whole)), len(json.dumps(whole.to_dict()).encode())
    print(f"\n{turns} turns: {text} bytes of text, {packed} packed, {plain} as it was (and that twice)")
    assert packed < text


@pytest.mark.parametrize("listed", [list, tuple, lambda parts: np.array(parts, dtype=object)])
def test_images_stay_out(listed):
    image = {"type": "image", "image": object()}
    messages = [
        {"role": "system", "content": "See."},
        {
            "role": "user",
            "content": listed([image, {"type": "text", "text": "What?"}, {"type": "image_url", "image_url": "data:"}]),
        },
    ]
    assert text_of_messages(messages) == (
        {"role": "system", "content": "See."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}, {"type": "image_url"}]},
    )
