"""Issue 21, A5 to A7: what the agent loop records of a turn's calls, with verl's own loop and parsers.

Right values are worked out by hand; which calls verl carries out is verl 0.9.1's own choice (tool_agent_loop.py,
tool_parser.py).
"""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("verl")

from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
from verl.experimental.agent_loop.tool_parser import ToolParser
from verl.tools.base_tool import BaseTool
from verl.tools.function_tool import FUNCTION_TOOL_REGISTRY, function_tool
from verl.tools.schemas import OpenAIFunctionToolSchema, ToolResponse

from tests.agent_loops import BAD_JSON, GOOD, UNKNOWN, final_answer, run, transcript_of
from verl_mtgrpo.errors import MTGRPOError, ToolError
from verl_mtgrpo.integration.rollout.agent_loop import TurnToolAgentLoop
from verl_mtgrpo.integration.rollout.calls import written_calls
from verl_mtgrpo.rewards import paper_v1, paper_v2
from verl_mtgrpo.rewards.measures import tool_trouble

pytestmark = pytest.mark.compose

NO_NAME = '<tool_call>{"arguments": {"query": "x"}}</tool_call>'
LOST, DROPPED = "not_carried_out", "bad_arguments"


# item, the turn, max_parallel_calls, error_kind of each call in its order, why the rollout ended if that was the turn
TURNS = [
    ("A5", GOOD + GOOD, 1, [None, LOST], "answered"),
    ("A5", GOOD + GOOD, 2, [None, None], "answered"),
    ("A5", GOOD + UNKNOWN + GOOD, 2, [None, "unknown_tool", LOST], "answered"),
    ("A6", BAD_JSON, 1, [DROPPED], "malformed_call"),
    ("A6", NO_NAME, 1, [DROPPED], "malformed_call"),
    ("A6", BAD_JSON + BAD_JSON, 1, [DROPPED, DROPPED], "malformed_call"),
    ("A6", BAD_JSON + GOOD, 1, [DROPPED, None], "answered"),
    ("A6", GOOD + BAD_JSON + GOOD, 2, [None, DROPPED, None], "answered"),
    ("A6", "<tool_call></tool_call>", 1, [DROPPED], "malformed_call"),
    # a thought that talks about calls, and a start without an end, are no calls
    ("A6", "I use <tool_call></tool_call>.</think>" + final_answer("x"), 1, [], "answered"),
    ("A6", "I use <tool_call></tool_call>.</think>" + GOOD, 1, [None], "answered"),
    ("A6", "<tool_call>no end", 1, [], "answered"),
    # verl reads from the first start to the first end, so the call behind the thought is lost with it
    ("A6", "I write <tool_call> now.</think>" + GOOD, 1, [DROPPED], "malformed_call"),
]


@pytest.mark.parametrize(("item", "text", "limit", "kinds", "end"), TURNS)
def test_what_is_recorded_of_a_turn(config, tokenizer, tools, item, text, limit, kinds, end):
    settings = {"max_parallel_calls": limit, "response_length": 400}
    script = [text, final_answer("Oslo")]
    output = run(TurnToolAgentLoop, config, tokenizer, tools, script=script, **settings)
    transcript = transcript_of(output)
    calls = transcript.turns[0].tool_calls
    assert [call.error_kind for call in calls] == kinds, item
    assert [(call.ok, call.seen) for call in calls if call.error_kind in (None, LOST, DROPPED)] == [
        (kind is None, kind is None) for kind in kinds if kind in (None, LOST, DROPPED)
    ]
    assert (transcript.end_reason, transcript.max_parallel_calls) == (end, limit)
    theirs = run(ToolAgentLoop, config, tokenizer, tools, script=script, **settings)
    assert (output.response_ids, output.response_mask) == (theirs.response_ids, theirs.response_mask)


def test_a5_half_of_the_calls_pays_half(config, tokenizer, tools):
    """0.2 · 1/2 + 0.5 for the hit; two answers of a model that calls twice where one call is carried out."""
    script = [GOOD + GOOD, final_answer("Oslo")]
    one = transcript_of(run(TurnToolAgentLoop, config, tokenizer, tools, script=script, response_length=400))
    two = run(TurnToolAgentLoop, config, tokenizer, tools, script=script, response_length=400, max_parallel_calls=2)
    assert paper_v1(one, "Oslo").turns == pytest.approx((0.6, 0.0))
    assert paper_v1(transcript_of(two), "Oslo").turns == pytest.approx((0.7, 0.0))
    assert paper_v1(transcript_of(two), "Oslo").components["outcome/format"] == 1.0
    assert paper_v2(transcript_of(two), "Oslo").turns == pytest.approx((0.3 + 0.1 - 0.2, 0.0))
    assert tool_trouble(one)["tool/errors/not_carried_out"] == 1.0


def test_a6_a_broken_call_is_a_failure_and_no_answer(config, tokenizer, tools):
    transcript = transcript_of(run(TurnToolAgentLoop, config, tokenizer, tools, script=[GOOD, BAD_JSON]))
    assert transcript.end_reason == "malformed_call"
    (call,) = transcript.turns[1].tool_calls
    assert (call.name, call.arguments) == ("search", '{"name": "search", "arguments": {oops')
    assert tool_trouble(transcript)["tool/errors/bad_arguments"] == 1.0
    assert paper_v2(transcript, "Oslo").outcome == -1.0


@pytest.mark.parametrize(
    ("limits", "end"), [({"max_assistant_turns": 1}, "max_turns"), ({"response_length": 12}, "response_length")]
)
def test_a_turn_that_verl_did_not_read_has_no_calls(config, tokenizer, tools, limits, end):
    transcript = transcript_of(run(TurnToolAgentLoop, config, tokenizer, tools, script=[BAD_JSON + GOOD], **limits))
    assert (transcript.end_reason, transcript.turns[0].tool_calls) == (end, ())


# ---- A6 with verl's other parsers


class Characters:
    """A tokenizer whose tokens are characters."""

    pad_token, eos_token = None, "</s>"

    def decode(self, ids, **_):
        return "".join(map(chr, ids))

    def convert_tokens_to_ids(self, token):
        return 0


CODER = "<tool_call>\n<function=search>\n<parameter=query>\nx\n</parameter>\n</function>\n</tool_call>"
SEED = "<seed:tool_call><function=search><parameter=query>x</parameter></function></seed:tool_call>"
MINIMAX = '<minimax:tool_call><invoke name="search"><parameter name="query">x</parameter></invoke></minimax:tool_call>'
GLM = "<tool_call>search<arg_key>query</arg_key><arg_value>x</arg_value></tool_call>"
GEMMA = '<|tool_call>call:search{query:<|"|>x<|"|>}<tool_call|>'
DEEPSEEK = '<｜DSML｜tool_calls><｜DSML｜invoke name="s"></｜DSML｜invoke></｜DSML｜tool_calls>'
KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>s<|tool_call_argument_begin|>{}<|tool_call_end|>"
    "<|tool_calls_section_end|>"
)


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        # the names of what is found, in order; "!" marks a record of a dropped call
        ("qwen3_coder", CODER, ["search"]),
        ("qwen3_coder", '<tool_call>{"name": "search"}</tool_call>', ["!search"]),  # hermes in a coder's tags
        ("qwen3_coder", "<tool_call><function=search</tool_call>" + CODER, ["!search", "search"]),
        ("qwen3_coder", "<tool_call><function=search><parameter=query>x", ["search"]),  # verl takes it without its end
        ("seed", SEED, ["search"]),
        ("seed", "<seed:tool_call>x</seed:tool_call>" + SEED, ["!", "search"]),
        ("minimax", MINIMAX, ["search"]),
        ("minimax", MINIMAX + "<minimax:tool_call>x</minimax:tool_call>", ["search", "!"]),
        ("glm", GLM + GLM, ["search", "search"]),
        ("gemma4", GEMMA, ["search"]),
        ("gemma4", "<|tool_call>call:search(x)<tool_call|>", ["!search"]),
        # nothing is certain of these, so nothing is added
        ("deepseek_v4", DEEPSEEK + "<｜DSML｜tool_calls>x</｜DSML｜tool_calls>", ["s"]),
        ("kimi", KIMI + "<|tool_call_begin|>x<|tool_call_end|>", ["s"]),
    ],
)
def test_a6_what_other_parsers_drop(name, text, names):
    async def go():
        parser = ToolParser.get_tool_parser(name, Characters())
        _, calls = await parser.extract_tool_calls([ord(one) for one in text], [])
        return await written_calls(parser, text, calls, [])

    written = asyncio.run(go())
    shown = [("!" if getattr(call, "error_kind", None) == DROPPED else "") + call.name for call in written]
    assert shown == names


# ---- A7


class Judging(BaseTool):
    """Returns the given info about its calls."""

    def __init__(self, reward):
        parameters = {"type": "object", "properties": {}, "required": []}
        function = {"name": "search", "description": "Search.", "parameters": parameters}
        super().__init__({}, OpenAIFunctionToolSchema.model_validate({"type": "function", "function": function}))
        self.reward = reward

    async def execute(self, instance_id, parameters, **kwargs):
        return ToolResponse(text="found"), self.reward, {}


def judging(kind, reward):
    if kind == "class":
        return Judging(reward)

    @function_tool
    def search(query: str):
        """Search.

        Args:
            query: What to look for.
        """
        return "found", reward

    return FUNCTION_TOOL_REGISTRY.pop("search")


@pytest.mark.parametrize("kind", ["class", "function"])
@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ([0.5], r"returned \[0.5\] \(list\)"),
        ({"score": 1}, r"returned {'score': 1} \(dict\)"),
        (float("nan"), r"returned nan \(float\)"),
        (float("inf"), r"returned inf \(float\)"),
        (True, r"returned True \(bool\)"),
        ("0.5", r"returned '0.5' \(str\)"),
    ],
)
def test_a7_a_reward_that_is_no_number(config, tokenizer, kind, reward, said):
    with pytest.raises(
        ToolError, match=f"the tool 'search' {said} as the reward of its call.*expected a finite"
    ) as caught:
        run(TurnToolAgentLoop, config, tokenizer, [judging(kind, reward)], script=[GOOD, final_answer("x")])
    assert isinstance(caught.value, MTGRPOError)


def numbers():
    import numpy as np
    import torch

    return [(0, 0.0), (2, 2.0), (-0.5, -0.5), (np.float32(0.5), 0.5), (torch.tensor(0.25), 0.25)]


@pytest.mark.parametrize("kind", ["class", "function"])
@pytest.mark.parametrize(("reward", "right"), [(None, 0.0), *numbers()])
def test_a7_numbers_are_taken_and_none_is_no_reward(config, tokenizer, kind, reward, right):
    """verl, tools/function_tool.py: "``reward`` may be ``None`` (treated as ``0.0``)"."""
    output = run(TurnToolAgentLoop, config, tokenizer, [judging(kind, reward)], script=[GOOD, final_answer("x")])
    (call,) = transcript_of(output).turns[0].tool_calls
    assert (call.reward, call.ok, call.result) == (right, True, "found")


def test_a7_one_tools_reward_is_not_anothers(config, tokenizer):
    """The tool that failed gives none, although the one before it did."""
    tool = judging("function", 0.5)
    output = run(TurnToolAgentLoop, config, tokenizer, [tool], script=[GOOD, UNKNOWN, final_answer("x")])
    rewards = [call.reward for turn in transcript_of(output).turns for call in turn.tool_calls]
    assert rewards == [0.5, 0.0]
