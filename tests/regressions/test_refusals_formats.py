"""Issue 21, D22, review 17: verl's formats for which this package has no rules."""

from __future__ import annotations

import pytest

pytest.importorskip("verl")

from verl.experimental.agent_loop.tool_parser import ToolParser

from tests.doctor.setups import TURNS, Healthy
from tests.regressions.refusals import look, status
from verl_mtgrpo.rewards import ToolCall, Transcript, Turn, paper_v1
from verl_mtgrpo.rewards.formats import FORMATS

pytestmark = [pytest.mark.usefixtures("surroundings"), pytest.mark.compose]

VERLS = sorted(set(ToolParser._registry) - set(FORMATS))
"""qwen3_coder, gpt-oss, glm, kimi, gemma4 and what else the installed verl has."""
OWN = "verl_mtgrpo.rewards.paper_v1:paper_v1"  # any function that is not called by the name of a preset


@pytest.mark.parametrize(("preset", "expected"), [("paper_v1", "ok"), (OWN, "ok"), ("paper_v2", "fail")])
@pytest.mark.parametrize("spoken", VERLS)
def test_review_17_what_a_preset_pays_decides_which_formats_it_takes(spoken, preset, expected, healthy: Healthy):
    """paper_v2 pays -0.2, 0.1 and -1.0 for being (mal)formed; the other two can do without."""
    found = look(healthy, f"{TURNS}.format={spoken}", f"reward.turn.preset={preset}", checks=["rewards"])
    assert status(found, "rewards") == expected
    assert expected == "ok" or "reward.turn.preset=paper_v1" in found[0].fix


def test_review_17_paper_v1_without_rules_for_the_format():
    """By hand, from the docstring's table: 0.2 executed + 0.5 first hit; 0.5 contained + 1.0 equal, no format share."""
    call = (
        "<tool_call>\n<function=search>\n<parameter=query>\ncapital of France\n</parameter>\n</function>\n</tool_call>"
    )
    transcript = Transcript(
        turns=(
            Turn(call, (0, 9), (ToolCall("search", '{"query": "capital of France"}', result="Paris is the capital."),)),
            Turn("It is <answer>Paris</answer>", (20, 27)),
        ),
        end_reason="answered",
        format="qwen3_coder",
    )
    rewards = paper_v1(transcript, {"target": ["Paris"]})
    assert rewards.turns == pytest.approx((0.7, 0.0))
    assert rewards.outcome == pytest.approx(1.5)
    assert rewards.components["outcome/format"] is None and rewards.components["outcome/tags"] is None
    assert rewards.components["outcome/em"] == 1.0
