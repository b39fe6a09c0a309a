"""Roles that talk in turns, on a scripted server: each side of the conversation, the end of it, and what cuts it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("verl")

from tests.agent_loops import GOOD, scored, transcript_of
from tests.roles_played import QUESTION, Scripted, field, play, rendered, system, user
from verl_mtgrpo.integration.rollout.turn_spans import turn_spans

pytestmark = pytest.mark.compose

QWEN3 = Path(__file__).parents[4] / "shared/data/tokenizers/qwen3"
REMA = {
    "order": "alternate",
    "rounds": 5,
    "finish": "DONE",
    "names": {
        "meta": {"system": "You plan."},
        "reasoner": {"system": "You act.", "prompt": "{question} Plan: {meta}"},
    },
}


@pytest.fixture(scope="module")
def real():
    if not QWEN3.exists():
        pytest.skip("no shared/data")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(QWEN3)


def planned(rounds):
    """Return what is said: plans and steps with their numbers, and DONE in the plan of the last round."""

    def says(text, number):
        speaker, told = ("plan", text.count("step")) if "You plan" in text else ("step", text.count("plan") - 1)
        return f"{speaker} {told}{' DONE' if speaker == 'plan' and told == rounds - 1 else ''}"

    return says


def said_by(output):
    return [turn.text for turn in transcript_of(output).turns]


def spoken(tokenizer, *messages, last):
    """Return a chat as its template writes it, up to the last turn of the policy, and that turn's own tokens."""
    before = rendered(tokenizer, *messages)
    return [*before, *tokenizer.encode(last, add_special_tokens=False), tokenizer.eos_token_id]


def assistant(text):
    return {"role": "assistant", "content": text}


def test_each_side_token_for_token_and_the_word_that_finishes_it(config, real, tools):
    """The chat template renders each side's whole conversation to the tokens that grew turn by turn."""
    meta, reasoner = play(config, real, tools, planned(2), REMA)
    assert said_by(meta) == ["plan 0", "plan 1 DONE"]
    assert said_by(reasoner) == ["step 0", "step 1"], "the one who acts answers the last plan, too"
    assert [one.extra_fields["finished"] for one in (meta, reasoner)] == ["1", "1"]
    prompt = rendered(real, system("You plan."), user(QUESTION))
    assert meta.prompt_ids == prompt
    # Qwen3's template, asked for a generation prompt, leaves thoughts of earlier turns out; there are none here.
    told = [system("You plan."), user(QUESTION), assistant("plan 0"), user("step 0")]
    assert [*meta.prompt_ids, *meta.response_ids] == spoken(real, *told, last="plan 1 DONE")
    told = [system("You act."), user(f"{QUESTION} Plan: plan 0"), assistant("step 0"), user("plan 1 DONE")]
    assert reasoner.prompt_ids == rendered(real, *told[:2])
    assert [*reasoner.prompt_ids, *reasoner.response_ids] == spoken(real, *told, last="step 1")
    for output in (meta, reasoner):
        spans = turn_spans(output.response_mask)
        decoded = [real.decode(output.response_ids[start:end]) for start, end in spans]
        assert decoded == [f"{text}<|im_end|>" for text in said_by(output)], "mask 1 at what the role wrote, no more"
        assert transcript_of(output).end_reason == "answered"


def test_conversations_of_a_prompt_and_their_names(config, tokenizer, tools):
    outputs = play(config, tokenizer, tools, planned(1), REMA, leaves=2)
    assert field(outputs, "role") == ["meta", "meta", "reasoner", "reasoner"]
    assert field(outputs, "conversation") == ["0:0", "0:1"] * 2
    assert field(outputs, "fed_by") == [""] * 4
    assert field(outputs, "output_id") == ["0:0", "0:1", "0:2", "0:3"]
    assert outputs[0].extra_fields["outputs_of_roles"] == 4
    ids = {}
    for request in Scripted.requests:
        ids.setdefault(request["id"], set()).add("You plan" in request["text"])
    assert len(ids) == 4 and all(len(sides) == 1 for sides in ids.values()), "a side stays on its server"


def test_a_conversation_without_its_word_ends_after_its_rounds_and_is_not_finished(config, tokenizer, tools):
    for finish, finished in (("DONE", "0"), ("", "1")):
        roles = {**REMA, "rounds": 2, "finish": finish}
        meta, reasoner = play(config, tokenizer, tools, planned(9), roles)
        assert (len(said_by(meta)), len(said_by(reasoner))) == (2, 2)
        assert meta.extra_fields["finished"] == reasoner.extra_fields["finished"] == finished


def test_the_word_counts_only_from_the_role_that_has_to_write_it(config, tokenizer, tools):
    def says(text, number):
        return "plan" if "You plan" in text else "step DONE"

    meta, _ = play(config, tokenizer, tools, says, {**REMA, "rounds": 3})
    assert (len(said_by(meta)), meta.extra_fields["finished"]) == (3, "0")
    meta, _ = play(config, tokenizer, tools, says, {**REMA, "rounds": 3, "finish_role": "reasoner"})
    assert (len(said_by(meta)), meta.extra_fields["finished"]) == (1, "1")


def test_a_full_row_ends_the_conversation(config, tokenizer, tools):
    def says(text, number):
        return "plan" if "You plan" in text else "step " * 20

    meta, reasoner = play(config, tokenizer, tools, says, REMA, response_length=50)
    assert {transcript_of(one).end_reason for one in (meta, reasoner)} == {"answered", "response_length"}
    assert meta.extra_fields["finished"] == "0"
    assert all(len(one.response_ids) <= 50 for one in (meta, reasoner))
    assert all(len(transcript_of(one).turns) == len(turn_spans(one.response_mask)) for one in (meta, reasoner))


def test_a_side_that_fails_ends_its_conversation_alone(config, tokenizer, tools):
    def says(text, number):
        if "You act" in text and number == 1:
            raise RuntimeError("the server is ill")
        return planned(2)(text, number)

    outputs = play(config, tokenizer, tools, says, REMA, leaves=2)
    assert len(outputs) == 4
    (lost,) = [one for one in outputs if transcript_of(one).end_reason == "failed"]
    assert lost.extra_fields["role"] == "reasoner" and lost.response_mask == [0]
    other = next(one for one in outputs if one.extra_fields["conversation"] != lost.extra_fields["conversation"])
    assert other.extra_fields["finished"] == "1"


def test_a_role_may_use_a_tool_before_it_says_something(config, tokenizer, tools):
    names = {"meta": {"system": "You plan."}, "reasoner": {"system": "You act.", "tools": ["search"]}}

    def says(text, number):
        if "You plan" in text:
            return "plan DONE" if "tower is in Oslo" in text else "plan"
        return GOOD if "Doc 1 about" not in text else "the tower is in Oslo"

    meta, reasoner = play(config, tokenizer, tools, says, {**REMA, "names": names})
    assert said_by(meta) == ["plan", "plan DONE"]
    assert said_by(reasoner) == [GOOD, "the tower is in Oslo", "the tower is in Oslo"]
    assert "tool_call" not in tokenizer.decode(meta.response_ids), "the partner reads what was said, not the call"


def test_a_frozen_side_has_mask_0_and_the_outcome(config, tokenizer, tools):
    names = {"meta": {"system": "You plan.", "frozen": True}, "reasoner": {"system": "You act."}}
    meta, reasoner = play(config, tokenizer, tools, planned(2), {**REMA, "names": names})
    for output in (meta, reasoner):
        fields = scored(output, [0.5, 1.0]).as_dict()
        assert fields["rm_scores"].sum().item() == 1.5
        assert bool(fields["response_mask"].any()) == (output is reasoner)


def test_three_roles_hear_what_was_said_since_they_spoke(config, tokenizer, tools):
    names = {
        "meta": {"system": "You plan.", "sees": "all"},
        "critic": {"system": "You judge.", "prompt": "{meta}"},
        "reasoner": {"system": "You act.", "prompt": "{critic}"},
    }

    def says(text, number):
        return "plan" if "You plan" in text else "word" if "You judge" in text else "step"

    outputs = play(config, tokenizer, tools, says, {**REMA, "rounds": 2, "names": names})
    meta, critic, reasoner = (tokenizer.decode(one.response_ids) for one in outputs)
    assert "critic: word\n\nreasoner: step" in meta
    assert "plan" in critic and "step" not in critic
    assert "word" in reasoner and "plan" not in reasoner
