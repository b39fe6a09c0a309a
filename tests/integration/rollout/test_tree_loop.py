"""``mtgrpo_tree_agent`` on a scripted server: rows, paths, masks, rewards, limits and failures."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from typing import ClassVar

import pytest
import torch
from omegaconf import OmegaConf

pytest.importorskip("verl")

from verl.workers.rollout.replica import TokenOutput

from tests.agent_loops import BOOM, GOOD, SeededServer, final_answer, run, transcript_of
from verl_mtgrpo.integration.rollout.agent_loop import RawContinuationAgentLoop, TurnToolAgentLoop
from verl_mtgrpo.integration.rollout.branches import running_leaf
from verl_mtgrpo.integration.rollout.tree_loop import RawTreeAgentLoop, TreeAgentLoop
from verl_mtgrpo.integration.rollout.turn_spans import turn_spans
from verl_mtgrpo.integration.several import with_entries

pytestmark = pytest.mark.compose

ROW = {"global_steps": 3, "index": 7}


class Asked:
    """Stands where verl's LLM client stands: says what ``say(turn, number)`` gives for a turn, and remembers requests.

    ``number`` is the turn's own among its siblings, or without a tree counts the requests with that very prompt.
    It depends on no order of time: templates and tools run in threads, so leaves ask in any order.
    """

    requests: ClassVar[list[dict]] = []

    def __init__(self, seed, tokenizer, script=None):
        self.tokenizer, self.seen = tokenizer, Counter()
        Asked.requests = []

    def say(self, turn: int, number: int) -> str:
        raise NotImplementedError

    async def generate(self, request_id, prompt_ids, sampling_params, **_):
        Asked.requests.append({"id": request_id, "prompt": list(prompt_ids), **sampling_params})
        text = self.tokenizer.decode(prompt_ids)
        turn = 1 + text.count("Doc 1 about") + text.count("Error executing")
        leaf = running_leaf.get()
        number = self.seen[text] if leaf is None else int(leaf.node.name.rpartition(".")[2])
        self.seen[text] += 1
        await asyncio.sleep(0)
        ids = self.tokenizer.encode(self.say(turn, number), add_special_tokens=False)
        ids = [*ids, self.tokenizer.eos_token_id] if ids else []
        # a log-prob of its own for each token of each turn, so that a copy of a wrong one is seen
        digest = hashlib.sha256(f"{prompt_ids} {number}".encode()).digest()
        log_probs = [-(1 + digest[k % 32]) / 128 for k in range(len(ids))]
        return TokenOutput(
            token_ids=ids, log_probs=log_probs, stop_reason="completed", extra_fields={"global_steps": 3}
        )


class ThreeTurns(Asked):
    """Searches twice, then answers; every answer is another one."""

    def say(self, turn, number):
        return GOOD if turn < 3 else final_answer(["Oslo", "Pim"][number % 2])


def grow(config, tokenizer, tools, *, leaves, server=ThreeTurns, cls=TreeAgentLoop, row=None, branch=None, **rollout):
    whole = config.copy()
    OmegaConf.set_struct(whole, False)
    whole.trainer = {"turn": {"branch": branch or {}}}
    row = {**ROW, "mtgrpo_leaves": leaves, **(row or {})}
    return run(cls, whole, tokenizer, tools, server=server, row=row, response_length=400, **rollout)


def path(output):
    return output.extra_fields["node_path"]


def rows_of(outputs):
    names = ("prompt_ids", "response_ids", "response_mask", "response_logprobs", "num_turns")
    return [tuple(getattr(output, name) for name in names) for output in outputs]


def assert_shared_turns_are_equal(outputs):
    """Equal id, equal node: tokens, mask and log-probs are the same to the end of the node, bit for bit."""
    seen = {}
    for output in outputs:
        nodes = path(output).split("/") if path(output) else []
        spans = turn_spans(output.response_mask)
        assert len(nodes) == len(spans) == len(output.extra_fields["transcript"].turns)
        for node, (_, end) in zip(nodes, spans, strict=True):
            here = (output.response_ids[:end], output.response_mask[:end], output.response_logprobs[:end])
            assert seen.setdefault(node, here) == here, node
    return seen


def test_a_full_tree(config, tokenizer, tools):
    branch = {"grow": "full", "width": 2, "turns": 2}
    outputs = grow(config, tokenizer, tools, leaves=4, branch=branch)
    assert sorted(map(path, outputs)) == ["0/0.0/0.0.0", "0/0.1/0.1.0", "1/1.0/1.0.0", "1/1.1/1.1.0"]
    assert len(assert_shared_turns_are_equal(outputs)) == 2 + 4 + 4 == len(Asked.requests)
    assert len({output.response_logprobs[0] for output in outputs}) == 2, "two first turns"
    assert len({request["id"] for request in Asked.requests}) == 1, "one server has the prefixes of a tree"
    for output in outputs:
        transcript = transcript_of(output)
        assert [len(turn.tool_calls) for turn in transcript.turns] == [1, 1, 0]
        assert [call.result for turn in transcript.turns for call in turn.tool_calls] == [
            "Doc 1 about tower of Pim: it is in Oslo."
        ] * 2
        assert transcript.end_reason == "answered"
    (said,) = [output.extra_fields["branch"] for output in outputs if "branch" in output.extra_fields]
    lengths = {
        node: end - start
        for output in outputs
        for node, (start, end) in zip(path(output).split("/"), turn_spans(output.response_mask), strict=True)
    }
    assert said["branch/generated_tokens"] == sum(lengths.values())
    in_rows = sum(sum(output.response_mask) for output in outputs)
    assert said["branch/saved_tokens"] == pytest.approx((lengths["0"] + lengths["1"]) / in_rows)


@pytest.mark.parametrize("limits", [{}, {"max_assistant_turns": 2}, {"max_user_turns": 1}, {"max_parallel_calls": 2}])
@pytest.mark.parametrize("cls", [TreeAgentLoop, RawTreeAgentLoop])
def test_growth_off_is_todays_loop_token_for_token(config, tokenizer, tools, cls, limits):
    spoken = {"format": "mtgrpo_xml"} if cls is RawTreeAgentLoop else {}
    plain = RawContinuationAgentLoop if cls is RawTreeAgentLoop else TurnToolAgentLoop
    for seed in range(8):
        theirs = run(plain, config, tokenizer, tools, seed=seed, **limits, **spoken)
        ours = run(cls, config, tokenizer, tools, seed=seed, row=ROW, **limits, **spoken)
        assert rows_of([ours]) == rows_of([theirs])
        assert without_times(ours) == without_times(theirs)


def without_times(output):
    known = output.extra_fields["transcript"].to_dict()
    for turn in known["turns"]:
        for call in turn["tool_calls"]:
            call["latency_s"] = 0.0
    return {**output.extra_fields, "transcript": known}


@pytest.mark.parametrize("grow_how", ["none", "arpo", "at2po", "random"])
def test_without_branches_every_leaf_is_a_rollout_of_todays_loop(config, tokenizer, tools, grow_how):
    """The server's texts depend on what was said alone, so each of n chains is what the plain loop gives."""
    branch = {"grow": grow_how, "probability": 0.0, "weight": 0.0, "rounds": 1, "initial": 5}
    found = set()
    for seed in range(8):

        class Seeded(SeededServer):
            def __init__(self, _, tokenizer, script=None, seed=seed):
                super().__init__(seed, tokenizer)

        theirs = run(TurnToolAgentLoop, config, tokenizer, tools, seed=seed, response_length=400)
        outputs = grow(config, tokenizer, tools, leaves=5, server=Seeded, branch=branch)
        assert rows_of(outputs) == rows_of([theirs] * 5)
        turns = len(theirs.extra_fields["transcript"].turns)
        assert list(map(path, outputs)) == ["/".join(f"{k}" + ".0" * turn for turn in range(turns)) for k in range(5)]
        found.add(turns)
    assert len(found) > 2


class Branchy(Asked):
    """Its second turn is as surprising as its first, always: P is α."""

    def say(self, turn, number):
        return GOOD if turn == 1 else final_answer("Oslo")

    async def generate(self, *args, **kwargs):
        output = await super().generate(*args, **kwargs)
        return output.model_copy(update={"log_probs": [-1.0] * len(output.token_ids)})


def test_coins_depend_on_seed_step_question_and_node_alone(config, tokenizer, tools):
    def shape(seed=0, **row):
        branch = {"grow": "arpo", "probability": 0.5, "seed": seed}
        outputs = grow(config, tokenizer, tools, leaves=8, server=Branchy, branch=branch, row={"uid": str(row), **row})
        assert len(outputs) == len({path(output) for output in outputs}) == 8
        assert_shared_turns_are_equal(outputs)
        return sorted(map(path, outputs))

    first = shape()
    assert shape(uid="another") == first, "verl draws a uid for each step"
    others = [shape(seed=k) for k in (1, 2, 3)] + [shape(index=k) for k in range(3)] + [shape(global_steps=9)]
    assert len({tuple(one) for one in [first, *others]}) > 3


class Boom(Asked):
    """Of the second turns of one state the second is a request that fails."""

    def say(self, turn, number):
        if turn == 2 and number == 1:
            raise RuntimeError("the server is ill")
        return GOOD if turn < 3 else final_answer("Oslo")


def test_a_leaf_that_fails_is_a_row_to_drop_and_the_others_go_on(config, tokenizer, tools, caplog):
    branch = {"grow": "full", "width": 2, "turns": 2}
    outputs = grow(config, tokenizer, tools, leaves=4, server=Boom, branch=branch)
    assert "a branch of a tree of rollouts failed" in caplog.text
    lost = [output for output in outputs if output.extra_fields["transcript"].end_reason == "failed"]
    assert [len(output.extra_fields["transcript"].turns) for output in outputs] == [1] * len(lost) + [3] * (
        4 - len(lost)
    )
    assert lost and len(lost) < 4
    for output in lost:
        assert output.extra_fields["failure"] == "RuntimeError: the server is ill"
        assert path(output) in ("0", "1")
    assert_shared_turns_are_equal(outputs)


class Ill(Asked):
    def say(self, turn, number):
        raise RuntimeError("the server is ill")


def test_if_every_leaf_fails_the_prompt_does(config, tokenizer, tools):
    with pytest.raises(RuntimeError, match="the server is ill"):
        grow(config, tokenizer, tools, leaves=4, server=Ill, branch={"grow": "arpo"})


class FirstRequestFails(Asked):
    def say(self, turn, number):
        if turn == 1 and number == 0:
            raise RuntimeError("the server is ill")
        return final_answer("Oslo")


def test_a_leaf_that_fails_before_its_first_token_has_a_row_of_one_token(config, tokenizer, tools):
    outputs = grow(config, tokenizer, tools, leaves=3, server=FirstRequestFails, branch={"grow": "none"})
    first, *others = outputs
    assert (first.response_mask, path(first), first.extra_fields["transcript"].end_reason) == ([0], "", "failed")
    assert sorted(map(path, others)) == ["1", "2"]


def test_early_ends_leave_a_full_tree_short(config, tokenizer, tools):
    class Impatient(Asked):
        def say(self, turn, number):
            return GOOD if number == 0 and turn < 3 else final_answer("Oslo")

    branch = {"grow": "full", "width": 3, "turns": 2}
    outputs = grow(config, tokenizer, tools, leaves=9, server=Impatient, branch=branch)
    assert sorted(map(path, outputs)) == ["0/0.0/0.0.0", "0/0.1", "0/0.2", "1", "2"]
    (said,) = [output.extra_fields["branch"] for output in outputs if "branch" in output.extra_fields]
    assert said["branch/shortfall"] == 4.0


CALL_LENGTH = 30


@pytest.mark.parametrize(
    ("limits", "reasons"),
    [
        ({"prompt_length": 4}, {"answered"}),  # verl cuts no prompt here: the loop takes it as it is
        ({"max_assistant_turns": 2}, {"max_turns"}),
        ({"max_user_turns": 1}, {"max_turns"}),
        ({"response": 12}, {"response_length"}),  # in the middle of the first call
        ({"response": "call + 6"}, {"response_length"}),  # in the first result
        ({"response": "call + result + 5"}, {"response_length"}),  # in the second call, after the branch
    ],
    ids=str,
)
def test_trees_whose_rollouts_are_cut(config, tokenizer, tools, limits, reasons):
    call = len(tokenizer.encode(GOOD)) + 1
    whole = run(TurnToolAgentLoop, config, tokenizer, tools, script=[GOOD, "x"], response_length=400)
    result = whole.response_mask.index(0, call), turn_spans(whole.response_mask)[1][0]
    limits = dict(limits)
    names = {"call": call, "result": result[1] - result[0]}
    length = eval(str(limits.pop("response", 400)), names)
    whole = config.copy()
    OmegaConf.set_struct(whole, False)
    whole.trainer = {"turn": {"branch": {"grow": "arpo", "probability": 1.0, "initial": 2}}}
    row = {**ROW, "mtgrpo_leaves": 4}
    outputs = run(
        TreeAgentLoop, whole, tokenizer, tools, server=ThreeTurns, row=row, **{"response_length": length, **limits}
    )
    assert len(outputs) == len({path(output) for output in outputs}) == 4
    assert {transcript_of(output).end_reason for output in outputs} == reasons
    assert all(len(output.response_ids) <= length for output in outputs)
    assert_shared_turns_are_equal(outputs)
    branched = {"0/0.1", "1/1.1"} <= {path(output)[:5] for output in outputs}
    assert branched == (max(len(output.extra_fields["transcript"].turns) for output in outputs) > 1)


def test_each_row_has_its_own_rewards_on_the_last_tokens_of_its_turns(config, tokenizer, tools):
    outputs = grow(config, tokenizer, tools, leaves=4, branch={"grow": "full", "width": 2, "turns": 2})
    outputs.sort(key=path)
    for number, output in enumerate(outputs):
        output.number_among_outputs(number)
    rewards = [[0.5, 0.25, 1.0], [0.5, 0.125, 0.0], [0.0, 0.5, 2.0], [0.0, 0.0, 0.0]]
    results = [
        {"reward_score": sum(one), "reward_extra_info": {"turn_rewards": json.dumps(one), "outcome/mine": float(k)}}
        for k, one in enumerate(rewards)
    ]
    results[3]["reward_extra_info"]["outcome/dropped"] = 1.0
    verls = with_entries(results)
    for output in outputs:  # verl copies score and info of the last output to all
        output.reward_score, output.extra_fields["reward_extra_info"] = (
            verls["reward_score"],
            verls["reward_extra_info"],
        )
    for k, (output, expected) in enumerate(zip(outputs, rewards, strict=True)):
        fields = output.as_dict()
        ends = [end - 1 for _, end in turn_spans(output.response_mask)]
        assert fields["rm_scores"][ends].tolist() == expected
        assert fields["rm_scores"].sum().item() == sum(expected)
        assert fields["extra_fields"]["reward_extra_info"]["outcome/mine"] == float(k)
        assert "outputs" not in fields["extra_fields"]["reward_extra_info"]
        assert fields["response_mask"].any() == (k < 3)
        assert ("node_path" in fields["extra_fields"]) == (k < 3), "a row without turns has no path"
        assert torch.equal(fields["responses"], torch.tensor(output.response_ids))


def test_a_tool_that_raises_fails_its_leaf_alone(config, tokenizer, tools, monkeypatch):
    class Down(Asked):
        def say(self, turn, number):
            return (BOOM if number == 1 else GOOD) if turn == 1 else final_answer("Oslo")

    original = TreeAgentLoop._call_tool

    async def call(self, tool_call, *args):
        if "boom" in tool_call.arguments:
            raise RuntimeError("tool 'search' is down")
        return await original(self, tool_call, *args)

    monkeypatch.setattr(TreeAgentLoop, "_call_tool", call)
    outputs = grow(config, tokenizer, tools, leaves=3, server=Down, branch={"grow": "none"})
    assert [output.extra_fields["transcript"].end_reason for output in outputs] == ["failed", "answered", "answered"]
    assert [path(output) for output in outputs] == ["", "0/0.0", "2/2.0"]


def test_full_determinism_gives_every_leaf_an_id_of_its_own(config, tokenizer, tools):
    branch = {"grow": "full", "width": 2, "turns": 2}
    ids = []
    for _ in range(2):
        grow(config, tokenizer, tools, leaves=4, branch=branch, full_determinism=True)
        ids.append(sorted(request["id"] for request in Asked.requests))
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 4
