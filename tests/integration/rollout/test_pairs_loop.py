"""``mtgrpo_pairs_agent`` on a scripted server: the expert's action and the policy's own, at the same state."""

from __future__ import annotations

import pytest

pytest.importorskip("verl")

from tests.agent_loops import GOOD, final_answer, run, scored, transcript_of
from verl_mtgrpo.errors import DataError
from verl_mtgrpo.integration.rollout.pairs_loop import PairsAgentLoop
from verl_mtgrpo.integration.several import with_entries

pytestmark = pytest.mark.compose

OWN, EXPERT = GOOD, final_answer("Oslo")


def pair(config, tokenizer, tools, expert=EXPERT, script=(OWN,), **rollout):
    return run(PairsAgentLoop, config, tokenizer, tools, script=script, row={"expert": expert}, **rollout)


def test_both_actions_token_for_token(config, tokenizer, tools):
    expert, own = pair(config, tokenizer, tools)
    end = [tokenizer.eos_token_id]
    assert expert.response_ids == tokenizer.encode(EXPERT, add_special_tokens=False) + end
    assert own.response_ids == tokenizer.encode(OWN, add_special_tokens=False) + end
    assert expert.prompt_ids == own.prompt_ids
    for output, text in ((expert, EXPERT), (own, OWN)):
        assert output.response_mask == [1] * len(output.response_ids)
        assert len(output.response_logprobs) == len(output.response_ids)
        (turn,) = transcript_of(output).turns
        assert (turn.text, turn.span) == (text, (0, len(output.response_ids)))
    assert [one.extra_fields["pair_side"] for one in (expert, own)] == ["expert", "own"]
    assert expert.extra_fields["pair_id"] == own.extra_fields["pair_id"]


def test_what_the_expert_wrote_as_well_is_no_pair(config, tokenizer, tools):
    output = pair(config, tokenizer, tools, expert=OWN)
    assert output.extra_fields["pair_side"] == "equal" and output.extra_fields["pair_id"]
    assert scored(output, [0.5]).as_dict()["rm_scores"].sum() == 0.5


def test_no_tool_is_called_and_nothing_else_is_generated(config, tokenizer, tools):
    _, own = pair(config, tokenizer, tools, script=(OWN, "never asked"))
    (turn,) = transcript_of(own).turns
    assert turn.tool_calls == () and own.num_turns == 2


def test_two_sessions_of_a_prompt_are_two_pairs(config, tokenizer, tools):
    names = {pair(config, tokenizer, tools)[0].extra_fields["pair_id"] for _ in range(2)}
    assert len(names) == 2


def test_each_row_keeps_its_own_score(config, tokenizer, tools):
    outputs = pair(config, tokenizer, tools)
    entries = [{"reward_score": r, "reward_extra_info": {"turn_rewards": f"[{r}]"}} for r in (1.0, 0.25)]
    told = with_entries(entries)
    for output, reward in zip(outputs, (1.0, 0.25), strict=True):
        output.reward_score = told["reward_score"]
        output.extra_fields["reward_extra_info"] = told["reward_extra_info"]
        row = output.as_dict()
        assert row["rm_scores"].tolist() == [0.0] * (len(output.response_ids) - 1) + [reward]
        assert row["extra_fields"]["pair_side"] in ("expert", "own")


def test_without_an_expert_it_is_one_rollout_of_one_turn(config, tokenizer, tools):
    output = run(PairsAgentLoop, config, tokenizer, tools, script=[OWN])
    assert "pair_id" not in output.extra_fields
    assert scored(output, [0.5]).as_dict()["rm_scores"].sum() == 0.5


@pytest.mark.parametrize(("expert", "says"), [("", "''"), (7, "7"), (EXPERT * 40, "max_response_length is 120")])
def test_an_experts_action_that_cannot_be_used(expert, says, config, tokenizer, tools):
    with pytest.raises(DataError, match=says):
        pair(config, tokenizer, tools, expert=expert)
