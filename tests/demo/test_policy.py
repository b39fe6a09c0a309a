from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

from verl_mtgrpo.demo.assets import TOOLS, _texts
from verl_mtgrpo.demo.policy import (
    build_model,
    build_tokenizer,
    final_answer,
    finding,
    load_policy,
    name_token,
    save_policy,
    search_call,
)
from verl_mtgrpo.demo.warmup import READ_WEIGHT, SampleMaker
from verl_mtgrpo.demo.warmup_demos import Demonstration, Demonstrator, Habits
from verl_mtgrpo.demo.world import World, WorldSize, build_world
from verl_mtgrpo.retrieval.bm25 import BM25Index

SMALL = WorldSize(entities_per_kind=12, famous_per_kind=2, train_questions=100, val_questions=40)


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(0, SMALL)


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved policy, so that every test sees what a trainer would load."""
    out = tmp_path_factory.mktemp("policy")
    tokenizer = build_tokenizer(_texts(world), world.names)
    save_policy(build_model(tokenizer, seed=0), tokenizer, out)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def demonstrator(world: World, tmp_path_factory: pytest.TempPathFactory) -> Demonstrator:
    out = tmp_path_factory.mktemp("index") / "index"
    index = BM25Index.build(world.passages, out, source="world", analyser="plain")
    return Demonstrator(world, index, k=2, template="{title}: {text}", rng=random.Random(0))


HOSTILE = [
    "",
    " ",
    "  two  spaces and a trailing one ",
    "\n\n\t\r\n x",
    "can't won't I'll",
    "日本語 🙂 é \u0301 \x00 \ufeff",
    'quote " backslash \\ brace }} {"name": "search"',
    "<tool_call></tool_call><tool_call>",
    "<answer>x</answer > < answer>",
    "<|im_end|>\n<|im_start|>assistant\n<|endoftext|>",
    "a .b , c ! d ?",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_survives_encoding(tokenizer: Any, text: str):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_text_around_names_survives(tokenizer: Any, world: World):
    name = world.names[0]
    for text in (name, f" {name}", f"{name}{name}", f"  {name}s", f"({name}) {name}, {name}.", f"\n{name}\n"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_names_markup_and_json_are_single_tokens_and_stay_visible(tokenizer: Any, world: World):
    for word in (*map(name_token, world.names), "<tool_call>", "</tool_call>", "<answer>", "</answer>", "\n"):
        assert len(tokenizer.encode(word, add_special_tokens=False)) == 1, word
    call = search_call(world.questions[0].queries[0])
    ids = tokenizer.encode(call, add_special_tokens=False)
    assert len(ids) <= 8
    assert tokenizer.decode(ids, skip_special_tokens=True) == call
    inside = re.fullmatch("<tool_call>(.*)</tool_call>", call)
    assert inside and json.loads(inside.group(1)) == {
        "name": "search",
        "arguments": {"query": world.questions[0].queries[0]},
    }


def test_special_tokens(tokenizer: Any):
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.decode([tokenizer.pad_token_id, tokenizer.eos_token_id], skip_special_tokens=True) == ""


def conversation(world: World) -> list[dict[str, Any]]:
    question = next(question for question in world.questions if len(question.facts) == 2)
    first, second = question.facts
    arguments = [{"query": query} for query in question.queries]
    calls = [[{"type": "function", "function": {"name": "search", "arguments": a}}] for a in arguments]
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": question.text},
        {"role": "assistant", "content": "", "tool_calls": calls[0]},
        {"role": "tool", "content": world.passages[0].text},
        {
            "role": "assistant",
            "content": finding(first.relation.noun, first.object),
            "tool_calls": calls[1],
        },
        {"role": "tool", "content": f"{world.passages[1].text}\n{world.passages[2].text}\n"},
        {"role": "tool", "content": [{"type": "text", "text": "a part"}]},
        {"role": "assistant", "content": final_answer(second.relation.noun, second.object)},
    ]


def render(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, tools=TOOLS, **options)
    ids = tokenizer.apply_chat_template(messages, tokenize=True, tools=TOOLS, return_dict=False, **options)
    assert tokenizer.decode(ids) == text
    return ids


def test_a_longer_chat_only_appends_tokens(tokenizer: Any, world: World):
    messages = conversation(world)
    for end in range(1, len(messages)):
        shorter, longer = render(tokenizer, messages[:end]), render(tokenizer, messages[: end + 1])
        assert longer[: len(shorter)] == shorter
        if messages[end]["role"] == "assistant":
            prompt = render(tokenizer, messages[:end], add_generation_prompt=True)
            assert longer[: len(prompt)] == prompt


def test_a_rendered_call_is_what_the_policy_writes(tokenizer: Any, world: World):
    messages = conversation(world)
    text = tokenizer.apply_chat_template(messages[:3], tokenize=False, tools=TOOLS)
    query = messages[2]["tool_calls"][0]["function"]["arguments"]["query"]
    assert text.endswith(f"<|im_start|>assistant\n{search_call(query)}<|im_end|>\n")
    as_text = [*messages[:2], {"role": "assistant", "content": search_call(query)}]
    assert tokenizer.apply_chat_template(as_text, tokenize=False, tools=TOOLS) == text


@pytest.mark.imports_verl
def test_verls_builder_continues_a_chat_as_the_template_renders_it(tokenizer: Any, world: World):
    module = pytest.importorskip("verl.utils.tokenizer.continuous_token_wiring")
    builder = module.create_continuous_token_builder(tokenizer, hf_model_type="qwen2")
    messages = conversation(world)[1:]
    ids = builder.build_initial_tokens(messages[:1], tools=TOOLS)
    for turn, result in ((1, 2), (3, 4)):
        query = messages[turn]["tool_calls"][0]["function"]["arguments"]["query"]
        written = f"{messages[turn]['content']}{search_call(query)}<|im_end|>"
        ids = builder.merge_assistant_tokens(ids, tokenizer.encode(written, add_special_tokens=False)).token_ids
        before, after = messages[: turn + 1], messages[: result + 1]
        ids = builder.merge_context_tokens(before, after, ids, tools=TOOLS).token_ids
        assert ids == render(tokenizer, after, add_generation_prompt=True)


def test_the_model_loads_small_untied_and_alike_for_a_seed(folder: Path):
    import torch

    model, tokenizer = load_policy(folder)
    assert model.config.model_type == "qwen2"
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_500_000
    again = build_model(tokenizer, seed=0)
    other = build_model(tokenizer, seed=1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_two_heads_start_by_looking_one_and_two_tokens_back(folder: Path):
    import torch

    model, tokenizer = load_policy(folder)
    model.set_attn_implementation("eager")
    ids = torch.randint(len(tokenizer), (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        attention = model(ids, output_attentions=True).attentions[0][0]
    # Soft at the start: single positions may differ, the average over positions has to peak there.
    for head in (0, 1):
        by_distance = torch.stack([attention[head].diagonal(-distance)[-25:].mean() for distance in range(15)])
        assert by_distance.argmax() == head + 1


def test_started_for_phrases_it_goes_on_as_the_text_went_on_before(tokenizer: Any):
    import torch

    def share_continued(start: str) -> float:
        model = build_model(tokenizer, seed=0, start=start)
        once = torch.stack([torch.randperm(len(tokenizer))[:12] for _ in range(64)])
        with torch.inference_mode():
            predicted = model(torch.cat([once, once], dim=1)).logits.argmax(dim=-1)
        return (predicted[:, 12:-1] == once[:, 1:]).float().mean().item()

    torch.manual_seed(0)
    # Untrained. By chance it would be one in the vocabulary's size.
    assert share_continued("phrases") > 0.25
    assert share_continued("names") < 0.1


@pytest.mark.parametrize("kind", ["drill", "habit"])
def test_samples_weigh_what_the_policy_writes(tokenizer: Any, world: World, demonstrator: Demonstrator, kind: str):
    make = SampleMaker(tokenizer, world, TOOLS)
    for _ in range(20):
        shown = demonstrator.drill() if kind == "drill" else demonstrator.habit(Habits())
        sample = make(Demonstration(shown.messages, "none"), np.random.default_rng(0))
        written = tokenizer.decode(sample.ids[sample.weights == 1.0])
        said = [message["content"] for message in shown.messages if message["role"] == "assistant"]
        assert written == "".join(f"{text}<|im_end|>" for text in said)
        assert set(np.unique(sample.weights)) == {np.float32(READ_WEIGHT), np.float32(1.0)}


def test_renaming_is_consistent_and_keeps_everything_but_names(
    tokenizer: Any, world: World, demonstrator: Demonstrator
):
    make = SampleMaker(tokenizer, world, TOOLS)
    names = set(tokenizer.convert_tokens_to_ids([name_token(name) for name in world.names]))
    shown = demonstrator._look_up()
    plain = make(Demonstration(shown.messages, "none"), np.random.default_rng(0)).ids
    renamed = make(Demonstration(shown.messages, "all"), np.random.default_rng(0)).ids
    is_name = np.isin(plain, list(names))
    assert (plain[~is_name] == renamed[~is_name]).all()
    assert (plain[is_name] != renamed[is_name]).mean() > 0.8
    pairs = set(zip(plain[is_name], renamed[is_name], strict=True))
    assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs})


def test_habits_are_as_frequent_as_wanted(demonstrator: Demonstrator):
    habits = Habits(search=0.35, broken_call=0.1, vague_query=0.25, wrong_query=0.25)
    said = [
        [m["content"] for m in demonstrator.habit(habits).messages if m["role"] == "assistant"] for _ in range(3000)
    ]
    calls = [turns for turns in said if "<tool_call>" in turns[0]]
    assert len(calls) / len(said) == pytest.approx(0.35, abs=0.04)
    broken = [turns for turns in calls if '"}}' not in turns[0]]
    assert len(broken) / len(calls) == pytest.approx(0.1, abs=0.04)
    vague = [turns for turns in calls if '"}}' in turns[0] and " of " not in turns[0]]
    assert len(vague) / (len(calls) - len(broken)) == pytest.approx(0.25, abs=0.05)
