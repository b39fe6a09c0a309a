"""Run our formats through verl's agent loop: calls, the cut at the closing tag, the exact tokens of both modes."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

pytest.importorskip("verl")

from verl.experimental.agent_loop.tool_parser import ToolParser
from verl.workers.rollout.replica import TokenOutput

from tests.agent_loops import PROMPT, SeededServer, run, transcript_of
from tests.composed import SEARCHPATH, composed
from verl_mtgrpo.data.rows import SYSTEM_PROMPTS
from verl_mtgrpo.demo.policy import build_tokenizer
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.rollout.agent_loop import (
    RawContinuationAgentLoop,
    TurnToolAgentLoop,
    turn_spans,
)
from verl_mtgrpo.integration.rollout.cutting import tokens_to_keep
from verl_mtgrpo.integration.rollout.loop_setup import knows_stop_strings
from verl_mtgrpo.rewards.formats import CUT_FORMATS, FORMATS

pytestmark = pytest.mark.compose

THINK = "<think>where?</think>"
SEARCH, ANSWER = f"{THINK}<search>tower of Pim</search>", f"{THINK}<answer>Oslo</answer>"
FOUND = "Doc 1 about tower of Pim: it is in Oslo."
XML_CALL = '<reasoning>where?</reasoning><tool>{"name": "search", "args": {"query": "tower of Pim"}}</tool>'
XML_ANSWER = "<reasoning>there</reasoning><answer>Oslo</answer>"


class BaseModel(SeededServer):
    """Generates on after the closing tag, as base models do, and remembers its arguments."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked = []
        BaseModel.last = self

    async def generate(self, request_id, prompt_ids, sampling_params, **_):
        self.asked.append((list(prompt_ids), sampling_params))
        ids = self.tokenizer.encode(self.script.pop(0) + "\nQuestion: what else? " * 3, add_special_tokens=False)
        return TokenOutput(token_ids=ids, log_probs=[-0.001 * n for n in range(len(ids))], stop_reason="completed")


@pytest.fixture(scope="module")
def tokenizer():
    # Trained on closing tags followed by a newline, so that one token may contain the end of the tag and more.
    return build_tokenizer([SEARCH + "\n", ANSWER + "\n", XML_CALL, XML_ANSWER, FOUND, "Question: what else?"], [])


def roll(cls, config, tokenizer, tools, script, *, format="search_r1", server=BaseModel, **rollout):
    return run(
        cls, config, tokenizer, tools, script=script, server=server, format=format, response_length=400, **rollout
    )


@pytest.mark.parametrize(
    ("name", "text", "calls"),
    [
        ("search_r1", SEARCH, [("search", {"query": "tower of Pim"})]),
        ("search_r1", "<search>\n two words \n</search>", [("search", {"query": "two words"})]),
        ("search_r1", ANSWER, []),
        ("search_r1", ANSWER + SEARCH, []),  # it answered first
        ("search_r1", "<search>never closed", []),
        ("search_r1", "closed</search>", []),
        ("search_r1", "<search>a<search>b</search>", [("search", {"query": "b"})]),
        ("search_r1", '<search>say "hi" \\ {}</search>', [("search", {"query": 'say "hi" \\ {}'})]),
        ("mtgrpo_xml", XML_CALL, [("search", {"query": "tower of Pim"})]),
        ("mtgrpo_xml", '<tool>{"name": "x", "arguments": {"a": 1}}</tool>', [("x", {"a": 1})]),
        ("mtgrpo_xml", '<tool>{"name": "search"}</tool>', [("search", {})]),
        ("mtgrpo_xml", XML_ANSWER, []),
    ],
)
def test_calls(tokenizer, tools, name, text, calls):
    parser = ToolParser.get_tool_parser(name, tokenizer)
    schemas = [tool.tool_schema for tool in tools]
    content, found = asyncio.run(parser.extract_tool_calls(tokenizer.encode(text), schemas))
    assert content == text
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls


@pytest.mark.parametrize("inside", ["{oops", "[1]", '"x"', ""])
def test_json_that_cannot_be_read_is_a_failed_call(config, tokenizer, tools, inside):
    script = [f"<reasoning>x</reasoning><tool>{inside}</tool>", XML_ANSWER]
    output = roll(TurnToolAgentLoop, config, tokenizer, tools, script, format="mtgrpo_xml")
    (call,) = transcript_of(output).turns[0].tool_calls
    assert (call.ok, call.name) == (False, "search")
    assert call.error_kind in ("bad_arguments", "tool_exception")


@pytest.mark.parametrize("cls", [TurnToolAgentLoop, RawContinuationAgentLoop])
def test_turns_end_with_the_closing_tag(config, tokenizer, tools, cls):
    output = roll(cls, config, tokenizer, tools, [SEARCH, ANSWER])
    transcript = transcript_of(output)
    assert [turn.text.strip() for turn in transcript.turns] == [SEARCH, ANSWER]
    assert transcript.format == "search_r1"
    (call,) = transcript.turns[0].tool_calls
    assert (call.result, call.ok) == (FOUND, True)  # without tags: those belong to the format
    assert [turn.span for turn in transcript.turns] == turn_spans(output.response_mask)
    # Log-probs were cut with the ids: each turn has its own 0, -.001, -.002, …
    for start, end in turn_spans(output.response_mask):
        assert output.response_logprobs[start:end] == pytest.approx([-0.001 * n for n in range(end - start)])
    assert len(output.response_ids) == len(output.response_mask) == len(output.response_logprobs)


def test_raw_continuation_is_exactly_the_reference_text(config, tokenizer, tools):
    output = roll(RawContinuationAgentLoop, config, tokenizer, tools, [SEARCH, ANSWER])
    pieces = [(SEARCH, 1), (f"\n\n<information>{FOUND}</information>\n\n", 0), (ANSWER, 1)]
    spans = turn_spans(output.response_mask)
    texts = [output.response_ids[slice(*spans[0])], output.response_ids[spans[0][1] : spans[1][0]]]
    texts.append(output.response_ids[slice(*spans[1])])
    for ids, (text, value) in zip(texts, pieces, strict=True):
        decoded = tokenizer.decode(ids)
        assert decoded.rstrip("\n") == text.rstrip("\n") if value else decoded == text
    observation = tokenizer.encode(pieces[1][0], add_special_tokens=False)
    assert texts[1] == observation
    assert output.response_logprobs[spans[0][1] : spans[1][0]] == [0.0] * len(observation)
    # The prompt of the second turn consists of the first prompt, the first turn and the tool result.
    second_prompt, _ = BaseModel.last.asked[1]
    assert second_prompt == output.prompt_ids + output.response_ids[: spans[1][0]]


def test_chat_mode_is_exactly_the_chat_template(config, tokenizer, tools):
    roll(TurnToolAgentLoop, config, tokenizer, tools, [SEARCH, ANSWER])
    chat = [*PROMPT, {"role": "assistant", "content": SEARCH}]
    chat += [{"role": "tool", "content": f"<information>{FOUND}</information>"}]
    expected = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    second_prompt, _ = BaseModel.last.asked[1]
    # A token that contains more than the end of the tag stays whole, so only its newline may differ.
    assert tokenizer.decode(second_prompt).replace("</search>\n<|im_end|>", "</search><|im_end|>") == expected
    assert "search:" not in expected.split("<|im_end|>")[0], "no tool schema: the prompt explains the format"


def test_engines_are_asked_to_stop_where_they_can(config, tokenizer, tools):
    for engine, stops in (("vllm", True), ("hf_cpu", True), ("sglang", False)):
        roll(TurnToolAgentLoop, config, tokenizer, tools, [ANSWER], name=engine)
        (_, asked), *_ = BaseModel.last.asked
        assert asked.get("stop") == (["</search>", "</answer>"] if stops else None)
        assert asked["temperature"] == 1.0


def test_raw_continuation_needs_a_format_with_tags(config, tokenizer, tools):
    with pytest.raises(ConfigError, match=r"needs a format with closing tags .*format=hermes"):
        roll(RawContinuationAgentLoop, config, tokenizer, tools, [ANSWER], format="hermes")


@pytest.mark.parametrize("seed", range(20))
def test_the_cut_is_the_shortest_prefix_that_closes(tokenizer, seed):
    rng = random.Random(seed)
    pieces = [SEARCH, ANSWER, "word ", "<", "</", "search>", "</search", ">\n", "é北", "\n"]
    ids = tokenizer.encode("".join(rng.choice(pieces) for _ in range(8)), add_special_tokens=False)
    closing = ("</search>", "</answer>")
    naive = next(
        (n for n in range(1, len(ids) + 1) if any(tag in tokenizer.decode(ids[:n]) for tag in closing)), len(ids)
    )
    assert tokens_to_keep(ids, closing, tokenizer.decode) == naive


def test_the_tokenizer_of_these_tests_has_tokens_that_run_over_the_end_of_a_tag(tokenizer):
    ids = tokenizer.encode(SEARCH + "\nQuestion")
    assert any("/search>" in tokenizer.decode(ids[:n]) for n in range(len(ids)))


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_examples_in_the_prompts_are_well_formed(name):
    rules = FORMATS[name]
    prompt = SYSTEM_PROMPTS[name]
    answer = "<answer>Paris</answer>"
    thought = f"<{rules.thought}>" if rules.thought else "<answer>"
    example = prompt[prompt.rfind(thought) : prompt.rfind(answer) + len(answer)]
    assert rules.well_formed_answer(example), example
    if rules.thought:
        start = prompt.index(thought, prompt.index("For example"))
        example = prompt[start : prompt.index(f"</{rules.call}>", start) + len(rules.call) + 3]
        assert rules.well_formed_call(example), example


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_with_a_preset_every_engine_that_can_is_asked_to_stop_at_the_tag(engine):
    def rollout(*groups):
        return composed(SEARCHPATH, *groups, f"actor_rollout_ref.rollout.name={engine}").actor_rollout_ref.rollout

    for spoken in CUT_FORMATS:
        assert knows_stop_strings(rollout("+mtgrpo=mt_grpo", f"actor_rollout_ref.rollout.multi_turn.format={spoken}"))
    # Formats that are not cut keep verl's default.
    assert rollout("+mtgrpo=mt_grpo").skip_tokenizer_init is True
    # Without the preset verl starts SGLang without a tokenizer; its vLLM server always has one.
    assert knows_stop_strings(rollout()) == (engine == "vllm")
