"""``mtgrpo_tool_agent`` against verl's own ``tool_agent`` on the same seeded server, and what it records."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("verl")

from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
from verl.tools.base_tool import BaseTool
from verl.tools.schemas import OpenAIFunctionToolSchema, ToolResponse

from tests.agent_loops import (
    BAD_JSON,
    BOOM,
    GOOD,
    NO_DICT,
    PROMPT,
    UNKNOWN,
    final_answer,
    run,
    scored,
    transcript_of,
)
from verl_mtgrpo.data.rows import make_row
from verl_mtgrpo.errors import TranscriptError
from verl_mtgrpo.integration.rollout.agent_loop import TurnAgentLoopOutput, TurnToolAgentLoop
from verl_mtgrpo.integration.rollout.turn_spans import place_rewards, turn_spans

pytestmark = pytest.mark.compose

LIMITS = [
    {},
    {"max_assistant_turns": 2},
    {"max_user_turns": 1},
    {"response_length": 30},
    {"response_length": 61},
    {"max_parallel_calls": 2, "max_tool_response_length": 10},
]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_tokens_masks_and_log_probs_are_verls(config, tokenizer, tools, limits):
    kinds = set()
    for seed in range(16):
        theirs = run(ToolAgentLoop, config, tokenizer, tools, seed=seed, **limits)
        ours = run(TurnToolAgentLoop, config, tokenizer, tools, seed=seed, **limits)
        if not theirs.response_mask:  # verl takes the whole prompt for the response then
            assert (ours.prompt_ids, ours.response_mask, ours.response_logprobs) == (theirs.prompt_ids, [0], [0.0])
            kinds.add((0, ours.extra_fields["transcript"].end_reason))
            continue
        for name in ("prompt_ids", "response_ids", "response_mask", "response_logprobs", "num_turns"):
            assert getattr(ours, name) == getattr(theirs, name), f"{name}, seed {seed}"
        extra = {key: value for key, value in ours.extra_fields.items() if key != "transcript"}
        assert extra == theirs.extra_fields
        transcript = ours.extra_fields["transcript"]
        assert [turn.span for turn in transcript.turns] == turn_spans(ours.response_mask)
        kinds.add((len(transcript.turns), transcript.end_reason))
    assert len(kinds) >= 3, f"the seeds explore too little: {kinds}"


class Notebook(BaseTool):
    """Writes down what it was created with."""

    def __init__(self):
        parameters = {"type": "object", "properties": {}, "required": []}
        function = {"name": "lookup", "description": "Look up.", "parameters": parameters}
        super().__init__({}, OpenAIFunctionToolSchema.model_validate({"type": "function", "function": function}))
        self.created = []

    async def create(self, instance_id=None, **kwargs):
        self.created.append(kwargs["create_kwargs"])
        return await super().create(instance_id, **kwargs)

    async def execute(self, instance_id, parameters, **kwargs):
        return ToolResponse(text="noted"), 0.0, {}


@pytest.mark.parametrize("selection", [[], ["lookup"]])
def test_a_row_tells_its_tools_the_truth_and_says_which_may_be_called(config, tokenizer, tools, selection):
    """``mtgrpo data`` writes both; RLHFDataset hands on ``extra_info`` and its ``tools_kwargs``."""
    made = make_row(
        "Where?",
        ["Oslo"],
        index=0,
        split="train",
        id="1",
        data_source="toy",
        tool_kwargs_for=["lookup"],
        tool_selection=selection,
    )["extra_info"]
    row = {"extra_info": made, "tools_kwargs": made["tools_kwargs"]}
    notebook, script = Notebook(), [UNKNOWN, GOOD, final_answer("Oslo")]
    output = run(TurnToolAgentLoop, config, tokenizer, [*tools, notebook], script=script, row=row)
    calls = [call for turn in transcript_of(output).turns for call in turn.tool_calls]
    assert [call.error_kind for call in calls] == [None, "unknown_tool" if selection else None]
    assert notebook.created == [
        {"ground_truth": {"target": ["Oslo"]}, "question": "Where?", "data_source": "toy"},
    ]


def test_a_two_turn_rollout(config, tokenizer, tools):
    output = run(TurnToolAgentLoop, config, tokenizer, tools, script=[GOOD, final_answer("Oslo")])
    transcript = transcript_of(output)
    assert [turn.text for turn in transcript.turns] == [GOOD, final_answer("Oslo")]
    (call,) = transcript.turns[0].tool_calls
    assert (call.name, json.loads(call.arguments)) == ("search", {"query": "tower of Pim"})
    assert (call.result, call.ok, call.seen) == ("Doc 1 about tower of Pim: it is in Oslo.", True, True)
    assert transcript.turns[1].tool_calls == ()
    assert (transcript.end_reason, transcript.prompt) == ("answered", tuple(PROMPT))
    start, end = transcript.turns[1].span
    assert tokenizer.decode(output.response_ids[start:end]) == final_answer("Oslo") + tokenizer.eos_token


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (UNKNOWN, ["unknown_tool"]),
        (BOOM, ["tool_exception"]),
        (NO_DICT, ["tool_exception"]),
        (GOOD, [None]),
        (BAD_JSON, ["bad_arguments"]),  # verl's parser drops what is no JSON, and ends the rollout
    ],
)
def test_what_came_of_each_call(config, tokenizer, tools, text, kinds):
    transcript = transcript_of(run(TurnToolAgentLoop, config, tokenizer, tools, script=[text, final_answer("x")]))
    assert [call.error_kind for call in transcript.turns[0].tool_calls] == kinds
    assert [call.ok for call in transcript.turns[0].tool_calls] == [kind is None for kind in kinds]


def test_parallel_calls_keep_their_order(config, tokenizer, tools):
    text = UNKNOWN + GOOD + BOOM
    output = run(TurnToolAgentLoop, config, tokenizer, tools, script=[text, "end"], max_parallel_calls=2)
    kinds = [call.error_kind for call in transcript_of(output).turns[0].tool_calls]
    assert kinds == ["unknown_tool", None, "not_carried_out"]


def test_a_result_that_does_not_fit_was_not_seen(config, tokenizer, tools):
    length = len(tokenizer.encode(GOOD)) + 6
    output = run(TurnToolAgentLoop, config, tokenizer, tools, script=[GOOD], response_length=length)
    transcript = transcript_of(output)
    assert transcript.end_reason == "response_length"
    assert [call.seen for call in transcript.turns[0].tool_calls] == [False]


@pytest.mark.parametrize(
    ("script", "limits", "reason"),
    [
        ([final_answer("x")], {}, "answered"),
        ([GOOD, GOOD], {"max_assistant_turns": 2}, "max_turns"),
        ([GOOD, GOOD], {"max_user_turns": 1}, "max_turns"),
        (["word " * 40], {"response_length": 20}, "response_length"),
    ],
)
def test_why_a_rollout_ended(config, tokenizer, tools, script, limits, reason):
    assert transcript_of(run(TurnToolAgentLoop, config, tokenizer, tools, script=script, **limits)).end_reason == reason


def test_each_turns_reward_lies_on_its_last_generated_token(config, tokenizer, tools):
    script = [GOOD, GOOD, final_answer("Oslo")]
    output = scored(run(TurnToolAgentLoop, config, tokenizer, tools, script=script), [0.7, 0.0, 1.7])
    fields = output.as_dict()
    ends = [end - 1 for _, end in turn_spans(output.response_mask)]
    assert fields["rm_scores"].nonzero().flatten().tolist() == [ends[0], ends[2]]
    assert fields["rm_scores"][ends].tolist() == pytest.approx([0.7, 0.0, 1.7])
    eos = tokenizer.eos_token_id
    assert [output.response_ids[end] for end in ends] == [eos] * 3


def test_a_dropped_rollout_has_no_generated_token_left(config, tokenizer, tools):
    output = scored(run(TurnToolAgentLoop, config, tokenizer, tools, script=[GOOD, "x"]), [0.0, 0.0])
    kept = output.as_dict()
    output.extra_fields["reward_extra_info"]["outcome/dropped"] = 1.0
    dropped = output.as_dict()
    assert kept["response_mask"].any()
    assert not dropped["response_mask"].any()
    assert not dropped["rm_scores"].any()
    assert torch.equal(dropped["responses"], kept["responses"])


def test_everything_else_of_as_dict_is_verls(config, tokenizer, tools):
    theirs = run(ToolAgentLoop, config, tokenizer, tools, script=[GOOD, "x"])
    theirs.reward_score = 1.0
    expected = theirs.as_dict()
    got = scored(run(TurnToolAgentLoop, config, tokenizer, tools, script=[GOOD, "x"]), [0.0, 1.0]).as_dict()
    assert got.keys() == expected.keys()
    for key in ("prompts", "responses", "response_mask", "rollout_log_probs", "rm_scores"):
        assert torch.equal(got[key], expected[key]), key


def test_without_turn_rewards_as_dict_is_verls(config, tokenizer, tools):
    output = run(TurnToolAgentLoop, config, tokenizer, tools, script=["x"])
    assert isinstance(output, TurnAgentLoopOutput)
    assert "rm_scores" not in output.as_dict()
    output.reward_score = 2.0
    assert output.as_dict()["rm_scores"][-1] == 2.0


def test_one_reward_per_turn_is_demanded():
    with pytest.raises(TranscriptError, match="got 2 turn rewards for 1 turns"):
        place_rewards([1.0, 2.0], [1, 1, 0])


def test_a_rollout_without_tokens(config, tokenizer, tools):
    output = scored(run(TurnToolAgentLoop, config, tokenizer, tools, script=[""]), [])
    transcript = transcript_of(output)
    assert (transcript.turns, transcript.end_reason) == ((), "no_tokens")
    fields = output.as_dict()  # one token that nothing is learnt from, in every column
    names = ("responses", "response_mask", "rollout_log_probs", "rm_scores")
    assert [fields[name].tolist() for name in names] == [[tokenizer.pad_token_id], [0], [0.0], [0.0]]
