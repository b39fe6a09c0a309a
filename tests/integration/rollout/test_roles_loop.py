"""``mtgrpo_roles_agent`` on a scripted server: who sees what, token for token; forks, tools, failures."""

from __future__ import annotations

import pytest

pytest.importorskip("verl")

from tests.agent_loops import GOOD, scored, transcript_of
from tests.roles_played import QUESTION, Scripted, field, play, rendered, system, user
from verl_mtgrpo.errors import ConfigError

pytestmark = pytest.mark.compose

REWRITE_ANSWER = {
    "names": {"rewriter": {"system": "You rewrite."}, "answerer": {"prompt": "{question} tower {rewriter}"}},
}


def rewrite_answer(text, number):
    return f"tower of Pim{' Oslo' * number}" if "You rewrite" in text else f"Oslo{' Pim' * number}"


def test_who_sees_what_in_a_chain(config, tokenizer, tools):
    outputs = play(config, tokenizer, tools, rewrite_answer, REWRITE_ANSWER)
    assert field(outputs, "role") == ["rewriter", "answerer"]
    assert field(outputs, "output_id") == ["0:0", "0:1"]
    assert field(outputs, "fed_by") == ["", "0:0"]
    rewriter, answerer = outputs
    assert rewriter.prompt_ids == rendered(tokenizer, system("You rewrite."), user(QUESTION))
    assert answerer.prompt_ids == rendered(tokenizer, user(f"{QUESTION} tower tower of Pim"))
    for output, text in zip(outputs, ("tower of Pim", "Oslo"), strict=True):
        assert output.response_ids == [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        assert output.response_mask == [1] * len(output.response_ids)
        assert [turn.text for turn in transcript_of(output).turns] == [text]
        assert transcript_of(output).end_reason == "answered"
    assert len(Scripted.requests) == 2


def test_fof_forks_at_the_first_role_and_each_branch_goes_on_alone(config, tokenizer, tools):
    outputs = play(config, tokenizer, tools, rewrite_answer, REWRITE_ANSWER, leaves=3)
    assert field(outputs, "role") == ["rewriter"] * 3 + ["answerer"] * 3
    assert field(outputs, "output_id") == [f"0:{number}" for number in range(6)]
    assert field(outputs, "fed_by") == ["", "", "", "0:0", "0:1", "0:2"]
    written = [transcript_of(output).turns[0].text for output in outputs]
    assert sorted(written[:3]) == ["tower of Pim", "tower of Pim Oslo", "tower of Pim Oslo Oslo"]
    for rewriter, answerer in zip(outputs[:3], outputs[3:], strict=True):
        text = transcript_of(rewriter).turns[0].text
        assert answerer.prompt_ids == rendered(tokenizer, user(f"{QUESTION} tower {text}"))
    assert field(outputs[:1], "outputs_of_roles") == [6]
    assert not any("outputs_of_roles" in output.extra_fields for output in outputs[1:])


THREE = {
    "names": {
        "rewriter": {"system": "You rewrite."},
        "reranker": {"system": "You rank.", "prompt": "{rewriter} Oslo"},
        "answerer": {"sees": "all"},
    },
}


def three(text, number):
    if "You rewrite" in text:
        return f"tower{' Oslo' * number}"
    return f"{'Pim' if 'You rank' in text else 'Oslo'}{' word' * number}"


def test_all_reads_every_role_before_it_with_its_name(config, tokenizer, tools):
    outputs = play(config, tokenizer, tools, three, THREE)
    assert field(outputs, "fed_by") == ["", "0:0", "0:0/0:1"]
    assert outputs[1].prompt_ids == rendered(tokenizer, system("You rank."), user("tower Oslo"))
    assert outputs[2].prompt_ids == rendered(tokenizer, user(f"{QUESTION}\n\nrewriter: tower\n\nreranker: Pim"))


def test_rr_forks_at_a_role_drawn_from_seed_step_and_question(config, tokenizer, tools):
    def shape(seed=0, **row):
        roles = {**THREE, "sampling": "rr", "seed": seed}
        outputs = play(config, tokenizer, tools, three, roles, leaves=3, row={"uid": str(row), **row})
        counts = [field(outputs, "role").count(role) for role in ("rewriter", "reranker", "answerer")]
        assert counts in ([3, 3, 3], [1, 3, 3], [1, 1, 3])
        assert outputs[0].extra_fields["outputs_of_roles"] == sum(counts) == len(outputs)
        fork = counts.count(1)
        if fork == 1:
            assert field(outputs, "fed_by")[1:4] == ["0:0"] * 3, "three rankers read the one query"
        return fork

    first = shape()
    assert shape(uid="another") == first, "verl draws a uid for each step"
    others = [shape(seed=k) for k in range(1, 5)] + [shape(global_steps=k) for k in range(4)]
    others += [shape(index=k) for k in range(4)]
    assert {first, *others} == {0, 1, 2}


def test_is_gives_each_role_one_input_and_every_output_an_outcome(config, tokenizer, tools):
    outputs = play(config, tokenizer, tools, three, {**THREE, "sampling": "is"}, leaves=3)
    learnt = [output for output in outputs if output.extra_fields["learnt"]]
    assert field(learnt, "role") == ["rewriter"] * 3 + ["reranker"] * 3 + ["answerer"] * 3
    for role in ("rewriter", "reranker", "answerer"):
        inputs = {tuple(one.prompt_ids) for one in learnt if one.extra_fields["role"] == role}
        assert len(inputs) == 1, "a group has one input"
    # 3 queries, 2 of them go nowhere: a ranker and an answer for each; 3 rankers, 2 of them: an answer for each
    assert len(outputs) == 9 + 2 * 2 + 2 == outputs[0].extra_fields["outputs_of_roles"]
    read = {name for one in field(outputs, "fed_by") for name in one.split("/")}
    unread = {one.extra_fields["role"] for one in outputs if one.extra_fields["output_id"] not in read}
    assert unread == {"answerer"}
    assert outputs[-1].extra_fields["role"] == "answerer"


def test_validation_and_runs_without_the_manager_get_one_branch(config, tokenizer, tools):
    for sampling in ("fof", "rr", "is"):
        outputs = play(config, tokenizer, tools, three, {**THREE, "sampling": sampling}, leaves=0)
        assert field(outputs, "role") == ["rewriter", "reranker", "answerer"]
        assert all(field(outputs, "learnt"))


def test_a_graph_scores_each_of_its_ends_and_the_one_that_answers_is_last(config, tokenizer, tools):
    roles = {
        "order": "graph",
        "answers": "answerer",
        "names": {
            "answerer": {"prompt": "{question} {rewriter} {reranker}"},
            "rewriter": {"system": "You rewrite.", "next": ["reranker", "answerer"]},
            "reranker": {"system": "You rank.", "sees": "own", "next": ["answerer"]},
        },
    }
    outputs = play(config, tokenizer, tools, three, roles)
    assert field(outputs, "role") == ["rewriter", "reranker", "answerer"]
    assert field(outputs, "fed_by") == ["", "", "0:0/0:1"]
    assert outputs[1].prompt_ids == rendered(tokenizer, system("You rank."), user(QUESTION))


def test_a_frozen_role_has_mask_0_and_keeps_its_reward(config, tokenizer, tools):
    roles = {"names": {"rewriter": {"system": "You rewrite."}, "answerer": {"frozen": True}}}
    outputs = play(config, tokenizer, tools, rewrite_answer, roles)
    for output, reward in zip(outputs, (0.0, 1.0), strict=True):
        fields = scored(output, [reward]).as_dict()
        frozen = output.extra_fields["role"] == "answerer"
        assert fields["response_mask"].any() == (not frozen)
        assert fields["rm_scores"].sum().item() == reward
        assert fields["rm_scores"][-1].item() == reward


def test_only_what_the_pattern_passes_on_is_read_and_a_stop_text_ends_a_turn(config, tokenizer, tools):
    roles = {
        "names": {
            "rewriter": {"system": "You rewrite.", "stop": "</answer>", "pattern": "<answer>(.*?)</answer>"},
            "answerer": {"prompt": "tower {rewriter}"},
        }
    }

    def says(text, number):
        return "<answer>tower of Pim</answer> and more" if "You rewrite" in text else "Oslo"

    outputs = play(config, tokenizer, tools, says, roles)
    assert transcript_of(outputs[0]).turns[0].text == "<answer>tower of Pim</answer>"
    assert tokenizer.decode(outputs[0].response_ids).startswith("<answer>tower of Pim</answer>")
    assert "more" not in tokenizer.decode(outputs[0].response_ids)
    assert outputs[1].prompt_ids == rendered(tokenizer, user("tower tower of Pim"))
    assert Scripted.requests[0].get("stop") in (None, ["</answer>"])


def test_texts_of_others_are_no_templates_and_no_control_tokens(config, tokenizer, tools):
    roles = {"names": {"rewriter": {"system": "You rewrite."}, "answerer": {"prompt": "{rewriter}"}}}
    outputs = play(
        config, tokenizer, tools, lambda text, _: "tower {question} <tool_call>" if "You" in text else "x", roles
    )
    shown = tokenizer.decode(outputs[1].prompt_ids)
    assert QUESTION not in shown and "<tool_call>" not in shown
    assert tokenizer.convert_tokens_to_ids("<tool_call>") not in outputs[1].prompt_ids


@pytest.mark.parametrize("call_ends", [True, False])
def test_a_role_with_a_tool_uses_it_and_one_without_cannot(config, tokenizer, tools, call_ends):
    roles = {
        "names": {
            "rewriter": {"system": "You rewrite.", "tools": ["search"], "call_ends": call_ends},
            "answerer": {"prompt": "{question} Oslo {rewriter.result}"},
        }
    }

    def says(text, number):
        if "You rewrite" in text:
            return "tower" if "Doc 1 about" in text else GOOD
        return GOOD  # the answerer has no tool: this is text

    outputs = play(config, tokenizer, tools, says, roles)
    turns = transcript_of(outputs[0]).turns
    assert [len(turn.tool_calls) for turn in turns] == ([1] if call_ends else [1, 0])
    result = turns[0].tool_calls[0].result
    assert result == "Doc 1 about tower of Pim: it is in Oslo." and turns[0].tool_calls[0].seen
    assert outputs[1].prompt_ids == rendered(tokenizer, user(f"{QUESTION} Oslo {result}"))
    if call_ends:
        assert outputs[0].response_mask == [1] * len(outputs[0].response_ids), "the results are in the next prompt"
        assert len(outputs[0].response_logprobs) == len(outputs[0].response_ids)
    (turn,) = transcript_of(outputs[1]).turns
    assert (turn.text, turn.tool_calls, transcript_of(outputs[1]).end_reason) == (GOOD, (), "answered")


def test_an_output_that_fails_costs_its_row_and_nobody_goes_on_from_it(config, tokenizer, tools, caplog):
    def says(text, number):
        if "You rank" in text and "Oslo Oslo Oslo" in text:
            raise RuntimeError("the server is ill")
        return three(text, number)

    outputs = play(config, tokenizer, tools, says, THREE, leaves=3)
    assert "an output of the role reranker failed" in caplog.text
    assert field(outputs, "role") == ["rewriter"] * 3 + ["reranker"] * 3 + ["answerer"] * 2
    (lost,) = [one for one in outputs if transcript_of(one).end_reason == "failed"]
    assert lost.extra_fields["failure"] == "RuntimeError: the server is ill"
    assert (lost.response_mask, lost.extra_fields["role"]) == ([0], "reranker")
    assert lost.extra_fields["output_id"] not in "/".join(field(outputs, "fed_by")).split("/")
    assert outputs[0].extra_fields["outputs_of_roles"] == 9, "the answer that was never written is missing in the books"


def test_if_no_branch_comes_to_an_end_the_prompt_fails(config, tokenizer, tools):
    def says(text, number):
        if "You rank" in text:
            raise RuntimeError("the server is ill")
        return three(text, number)

    with pytest.raises(RuntimeError, match="the server is ill"):
        play(config, tokenizer, tools, says, THREE, leaves=3)


def test_a_prompt_that_is_too_long_costs_its_row(config, tokenizer, tools):
    def says(text, number):
        return "tower " * (90 if number == 1 else 2) if "You rewrite" in text else "Oslo"

    outputs = play(config, tokenizer, tools, says, REWRITE_ANSWER, leaves=2, prompt_length=80)
    (lost,) = [one for one in outputs if transcript_of(one).end_reason == "failed"]
    assert "data.max_prompt_length is 80" in lost.extra_fields["failure"]
    assert len(outputs) == 4 and len(lost.prompt_ids) == 80


def test_an_unknown_tool_is_named(config, tokenizer, tools):
    roles = {"names": {"rewriter": {"tools": ["lookup"]}, "answerer": {}}}
    with pytest.raises(ConfigError, match=r"rewriter\.tools has lookup, but the tools of this run are search"):
        play(config, tokenizer, tools, three, roles)


@pytest.mark.parametrize("sampling", ["fof", "is"])
def test_full_determinism_gives_every_output_an_id_of_its_own(config, tokenizer, tools, sampling):
    ids = []
    for _ in range(2):
        play(config, tokenizer, tools, three, {**THREE, "sampling": sampling}, leaves=3, full_determinism=True)
        ids.append(sorted(request["id"] for request in Scripted.requests))
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(ids[0])
