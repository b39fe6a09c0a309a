"""The preset tool_use from verl's agent loop to advantages: which tokens, which baseline, and rollouts without a call.

Four rollouts of one question with the weights succeeded 0.2 and changed 0.3: A calls and answers right, B fails and
answers wrong, C answers right without a call, D calls twice and answers wrong.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

pytest.importorskip("verl")

from verl.tools.function_tool import FUNCTION_TOOL_REGISTRY, function_tool

from tests.agent_loops import final_answer, loop_config, run
from tests.integration.reward_managers import TRANSCRIPT, config, manager, score
from verl_mtgrpo.demo.policy import build_tokenizer, search_call
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.preflight import check_run
from verl_mtgrpo.integration.rollout.agent_loop import TurnToolAgentLoop
from verl_mtgrpo.integration.rollout.turn_spans import turn_spans
from verl_mtgrpo.report.rollouts import turn_advantages

pytestmark = pytest.mark.compose

PRESET = "reward.turn.preset=tool_use"
TOWER, PIM, BOOM = (search_call(query) for query in ("tower of Pim", "Pim", "boom"))
RIGHT, WRONG = final_answer("Oslo"), final_answer("Bergen")
SCRIPTS = {"A": [TOWER, RIGHT], "B": [BOOM, WRONG], "C": [RIGHT], "D": [TOWER, PIM, WRONG]}
# By hand: 0.2 for a call that succeeded, 0.3 for a result that is new; the last turn is paid the outcome.
PAID = {"A": [0.5, 1.0], "B": [0.0, 0.0], "C": [1.0], "D": [0.5, 0.5, 0.0]}


@cache
def tokenizer():
    return build_tokenizer([TOWER, PIM, BOOM, RIGHT, WRONG, "Doc 1 about tower of Pim: it is there. Error"], [])


def lookup():
    """Return a tool that reports an ordinary failure as documented, and leave verl's global registry as it was."""

    @function_tool
    def search(query: str):
        """Look something up.

        Args:
            query: What to look for.
        """
        if query == "boom":
            return "Error", 0.0, {"ok": False, "why": "no such table"}
        return f"Doc 1 about {query}: it is there."

    return FUNCTION_TOOL_REGISTRY.pop("search")


@cache
def scored(name: str) -> tuple[Any, dict[str, Any]]:
    """Return a rollout of verl's agent loop as verl's worker holds it after scoring, and what the manager said."""
    output = run(TurnToolAgentLoop, loop_config(), tokenizer(), [lookup()], script=SCRIPTS[name], response_length=400)
    result = score(manager(PRESET), {"transcript": output.extra_fields["transcript"]})
    output.reward_score = result["reward_score"]
    output.extra_fields["reward_extra_info"] = result["reward_extra_info"]
    return output, result["reward_extra_info"]


@pytest.mark.parametrize("name", PAID)
def test_each_reward_lies_on_the_last_generated_token_of_its_turn(name):
    output, info = scored(name)
    assert json.loads(info["turn_rewards"]) == pytest.approx(PAID[name])
    scores = output.as_dict()["rm_scores"].tolist()
    ends = [end - 1 for _, end in turn_spans(output.response_mask)]
    assert [scores[end] for end in ends] == pytest.approx(PAID[name])
    assert sum(map(abs, scores)) == pytest.approx(sum(PAID[name])), "and nowhere else"
    assert all(output.response_mask[end] == 1 for end in ends)


def test_baselines_by_hand_and_a_rollout_without_a_call():
    """MT-GRPO without scaling: each turn's reward minus the mean of the rollouts that have this turn, plus outcomes.

    Turn 1: 0.5, 0, 0.5 and 0 for C, which ended there: mean 0.25. Turn 2: 0.5 for D, 0 for A and B, which ended there:
    mean 1/6. Outcomes 1, 0, 1, 0: mean 0.5, over all four.
    """
    paid = [json.loads(scored(name)[1]["turn_rewards"]) for name in "ABCD"]
    found = turn_advantages(paid, ["q"] * 4, dropped=[False] * 4, scale="none")
    sixth = 1 / 6
    assert found[0] == pytest.approx((0.25 - sixth + 0.5, -sixth + 0.5), abs=1e-5)
    assert found[1] == pytest.approx((-0.25 - sixth - 0.5, -sixth - 0.5), abs=1e-5)
    assert found[2] == pytest.approx((-0.25 + 0.5,), abs=1e-5), "it earns less than A's call, but more than B's"
    assert found[3] == pytest.approx((0.25 + 2 * sixth - 0.5, 2 * sixth - 0.5, -0.5), abs=1e-5)


def test_components_and_notes_go_to_metrics_and_dump():
    """D calls twice, and both results are new; a rollout without a call has no share of its calls."""
    _, info = scored("D")
    assert (info["tool/calls_succeeded"], info["tool/calls_changed"], info["tool/calls_repeated"]) == (1.0, 1.0, 0.0)
    assert json.loads(info["turn_notes"]) == {
        "turns": ["succeeded 1 of 1: +0.2; changed 1 of 1: +0.3"] * 2 + ["the last turn is paid the outcome alone"],
        "outcome": "not an accepted answer",
    }
    without = scored("C")[1]
    assert (without["tool/calls_succeeded"], without["tool/used"], without["turn/1/reward"]) == (None, 0.0, 1.0)
    failed = scored("B")[0].extra_fields["transcript"].turns[0].tool_calls[0]
    assert (failed.ok, failed.why, failed.result) == (False, "no such table", "Error")


def test_weights_and_prices_are_settings():
    weights = [f"reward.turn.tool_use.{one}" for one in ("succeeded=0", "changed=1", "call_price=0.25")]
    info = score(manager(PRESET, *weights), {"transcript": TRANSCRIPT})["reward_extra_info"]
    assert json.loads(info["turn_rewards"]) == pytest.approx([0.75, 1.0])
    assert "turn_notes" not in score(manager(), {"transcript": TRANSCRIPT})["reward_extra_info"]


def test_with_compute_score_the_ground_truth_may_be_anything(tmp_path):
    (tmp_path / "own.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    return 0.5\n"
    )
    scoring = manager(
        PRESET, "reward.turn.outcome=compute_score", f"reward.custom_reward_function.path={tmp_path}/own.py"
    )
    scoring.compute_score = lambda **_: 0.5
    info = score(scoring, {"transcript": TRANSCRIPT})["reward_extra_info"]
    assert json.loads(info["turn_rewards"]) == pytest.approx([0.5, 0.5])
    assert "outcome/em" not in info, "the preset compared nothing"
    assert json.loads(info["turn_notes"])["outcome"] == "what compute_score returned"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([PRESET, "reward.turn.tool_use.call_price=-0.1"], "tool_use.call_price is -0.1, expected at least 0"),
        ([PRESET, "+reward.turn.tool_use.cost=1"], r"reward.turn.tool_use has unknown keys \['cost'\]"),
        (
            ["reward.turn.tool_use.used=0.5"],
            "tool_use.used would not be used: .* preset paper_v1; set reward.turn.preset",
        ),
        (
            [PRESET, "reward.turn.repeat_penalty=0.1"],
            "repeat_penalty=0.1 counts repeated searches only, .*set reward.turn.tool_use.repeat_price instead",
        ),
        (
            ["reward.turn.preset=judge_paper", "+reward.turn.judge.call_price=0"],
            "judge.call_price=0.0 would not be used: judge_paper has the rules and prices of the paper",
        ),
        (
            ["reward.turn.preset=judge", "+reward.turn.judge.rubric=none.md"],
            "reward.turn.judge.rubric=none.md cannot be read: FileNotFoundError.*absolute",
        ),
    ],
)
def test_settings_that_would_do_nothing_or_harm_stop_the_run(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_run(config(*overrides))


def test_the_tool_may_say_everything_and_a_run_without_reports_goes_on():
    check_run(config(PRESET, "reward.turn.tool_use.used=0.2"))
