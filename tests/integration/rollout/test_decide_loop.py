"""``mtgrpo_decide_agent`` on a scripted server: rows, masks, log-probs, what the update is told."""

from __future__ import annotations

import json
import math

import pytest
import torch
from omegaconf import OmegaConf

pytest.importorskip("verl")

from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights

from tests.agent_loops import GOOD, final_answer, run, transcript_of
from verl_mtgrpo.deciders import Decision
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.rollout.agent_loop import RawContinuationAgentLoop, TurnToolAgentLoop
from verl_mtgrpo.integration.rollout.decide_loop import DecideAgentLoop, RawDecideAgentLoop
from verl_mtgrpo.integration.rollout.turn_spans import turn_spans

pytestmark = pytest.mark.compose

HERE = "tests.integration.rollout.test_decide_loop"
ROW = {"global_steps": 3, "index": 7, "session_id": 0}
COLUMNS = ("prompt_ids", "response_ids", "response_mask", "response_logprobs", "num_turns")
seen: list = []


def searching_is_better(transcript, turn):
    """Score a proposal, and remember what was shown."""
    seen.append((transcript, turn))
    return 1.0 if turn.tool_calls else 0.0


def oslo_is_right(transcript, turn):
    return 1.0 if "Oslo" in turn.text or turn.tool_calls else -1.0


class SaysOslo:
    """A decider that lets somebody else answer."""

    async def decide(self, moment):
        (own,) = await moment.propose(1)
        written = await moment.write(final_answer("Oslo"))
        return Decision(written if moment.transcript.turns else own)


def decide(config, tokenizer, tools, *, cls=DecideAgentLoop, asks="validation", script=None, seed=0, by="best", **more):
    limits = {key: more.pop(key) for key in ("max_assistant_turns", "response_length", "format") if key in more}
    whole = config.copy()
    OmegaConf.set_struct(whole, False)
    whole.trainer = {"turn": {"decide": {"by": by, "score": f"{HERE}:searching_is_better", **more}}}
    seen.clear()
    row = {**ROW, "mtgrpo_decides": asks}
    return run(cls, whole, tokenizer, tools, script=script, seed=seed, row=row, **{"response_length": 400, **limits})


def rows_of(output):
    return [getattr(output, name) for name in COLUMNS]


def measures(output):
    return {name.removeprefix("decide/"): value for name, value in output.extra_fields["decide"].items()}


@pytest.mark.parametrize(
    "plain", [{"by": "best", "candidates": 1}, {"by": "retry", "threshold": None}, {"by": "retry", "threshold": -1e300}]
)
@pytest.mark.parametrize("cls", [DecideAgentLoop, RawDecideAgentLoop])
def test_nothing_to_decide_is_the_plain_loop_token_for_token(config, tokenizer, tools, cls, plain):
    raw = cls is RawDecideAgentLoop
    spoken = {"format": "mtgrpo_xml"} if raw else {}
    theirs = RawContinuationAgentLoop if raw else TurnToolAgentLoop
    for seed in range(8):
        expected = run(theirs, config, tokenizer, tools, seed=seed, response_length=120, **spoken)
        for asks in ("", "training"):
            got = decide(
                config, tokenizer, tools, cls=cls, seed=seed, asks=asks, response_length=120, **spoken, **plain
            )
            assert rows_of(got) == rows_of(expected)
            ours, known = (one.extra_fields["transcript"] for one in (got, expected))
            assert [turn.text for turn in ours.turns] == [turn.text for turn in known.turns]
            assert [len(turn.tool_calls) for turn in ours.turns] == [len(turn.tool_calls) for turn in known.turns]
            assert ours.end_reason == known.end_reason
        assert measures(got) == {
            "changed": 0.0,
            "candidates": 1.0,
            "extra_tokens": 0.0,
            "rejected": 0.0,
            "log_weight": 0.0,
        }


def test_best_takes_the_search_and_then_what_there_is(config, tokenizer, tools):
    script = [final_answer("Pim"), GOOD, final_answer("Oslo"), final_answer("Pim")]
    output = decide(config, tokenizer, tools, script=script, candidates=2)
    transcript = transcript_of(output)
    assert [turn.text for turn in transcript.turns] == [GOOD, final_answer("Oslo")]
    (call,) = transcript.turns[0].tool_calls
    assert call.ok and call.result == "Doc 1 about tower of Pim: it is in Oslo."
    assert len(seen) == 4
    (before, proposed), (later, _) = seen[1], seen[2]
    assert before.turns == () and proposed.text == GOOD and len(proposed.tool_calls) == 1
    assert [turn.text for turn in later.turns] == [GOOD] and later.turns[0].results == [call.result]
    lost = [len(tokenizer.encode(final_answer("Pim"), add_special_tokens=False)) + 1] * 2
    assert measures(output) == {
        "changed": 0.5,
        "candidates": 2.0,
        "extra_tokens": float(sum(lost)),
        "rejected": 0.0,
        "log_weight": 0.0,
    }


def test_verls_weight_of_a_rollout_is_that_of_its_decisions(config, tokenizer, tools):
    """The same rollout without the log weights is what the policy said; verl's own correction gives Π 1 / (k w)."""
    weights = {1.0: math.e / (math.e + 1), 0.0: 1 / (math.e + 1)}  # α = 1, scores 1 and 0, by hand
    for seed in range(6):
        script = [final_answer("Pim"), GOOD, final_answer("Oslo"), final_answer("Pim")]
        output = decide(
            config, tokenizer, tools, by="posterior", candidates=2, script=script, asks="training", seed=seed
        )
        again = decide(
            config, tokenizer, tools, by="posterior", candidates=2, script=list(script), asks="training", seed=seed
        )
        assert rows_of(again) == rows_of(output), "the draws depend on the seed of the run alone"
        first = transcript_of(output).turns[0]
        by_hand = 1 / (2 * weights[1.0 if first.tool_calls else 0.0])
        policy = torch.tensor(output.response_logprobs)
        ends = [end - 1 for _, end in turn_spans(output.response_mask)]
        policy[ends[0]] -= math.log(1 / by_hand)  # what the scripted model said
        assert float(policy.max()) <= 0.0 and float(policy[ends[0]]) > -1.0
        mask = torch.tensor(output.response_mask).float()[None]
        ratio = policy[None] - torch.tensor(output.response_logprobs)[None]
        corrected, _ = compute_rollout_correction_weights(
            ratio, mask, rollout_is="sequence", rollout_is_threshold=100.0
        )
        assert float(corrected[0, ends[0]]) == pytest.approx(by_hand, rel=1e-4)
        assert measures(output)["log_weight"] == pytest.approx(-math.log(by_hand))


@pytest.mark.parametrize("rejected", ["mask", "train"])
def test_a_rejected_attempt_is_masked_or_a_turn_of_its_own(config, tokenizer, tools, rejected):
    script = [final_answer("Pim"), GOOD, final_answer("Oslo")]
    output = decide(
        config,
        tokenizer,
        tools,
        script=script,
        by="retry",
        score=f"{HERE}:oslo_is_right",
        threshold=0.5,
        rejected=rejected,
        penalty=0.25,
        feedback="again",
        max_assistant_turns=2,
    )
    transcript = transcript_of(output)
    kept = [GOOD, final_answer("Oslo")]
    first = tokenizer.encode(final_answer("Pim"), add_special_tokens=False)
    assert output.response_ids[: len(first)] == first
    text = tokenizer.decode(output.response_ids)
    assert "again" in text and text.index(final_answer("Pim")) < text.index("again") < text.index(GOOD)
    if rejected == "mask":
        assert [turn.text for turn in transcript.turns] == kept
        assert set(output.response_mask[: len(first) + 1]) == {0}
        assert set(output.response_logprobs[: len(first) + 1]) == {0.0}
        assert "rejected_turns" not in output.extra_fields
    else:
        assert [turn.text for turn in transcript.turns] == [final_answer("Pim"), *kept]
        assert set(output.response_mask[: len(first) + 1]) == {1}
        assert output.extra_fields["rejected_turns"] == {0: 0.25}
    extra = len(first) + 1 if rejected == "mask" else 0
    said = measures(output)
    assert (said["rejected"], said["changed"], said["candidates"]) == (1.0, 0.5, 1.5)
    assert said["extra_tokens"] == float(extra)
    assert len(transcript.turns) == len(turn_spans(output.response_mask))


def test_a_decider_of_ones_own_may_take_somebody_elses_turn_but_not_in_training(config, tokenizer, tools):
    script = [GOOD, final_answer("Pim")]
    output = decide(config, tokenizer, tools, by=f"{HERE}:SaysOslo", score="", script=script)
    assert [turn.text for turn in transcript_of(output).turns] == [GOOD, final_answer("Oslo")]
    assert measures(output)["changed"] == 0.5
    with pytest.raises(ConfigError, match="that the policy did not write"):
        decide(config, tokenizer, tools, by=f"{HERE}:SaysOslo", score="", script=list(script), asks="training")


def test_an_error_of_the_scorer_ends_the_rollout(config, tokenizer, tools):
    with pytest.raises(ZeroDivisionError):
        decide(config, tokenizer, tools, script=[GOOD, GOOD], candidates=2, score=f"{HERE}:fails")


def fails(transcript, turn):
    return json.loads("1") / 0
