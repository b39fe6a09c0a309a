"""What a run with deciders needs beyond the loop: rows that ask for decisions, refusals, penalties, the doctor."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("verl")

from verl.utils import tensordict_utils as tu

from tests.composed import composed
from verl_mtgrpo.doctor.deciders import deciders
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.decide import ask_for_decisions, check_decide

pytestmark = pytest.mark.compose

LOOP = "actor_rollout_ref.rollout.agent.default_agent_loop"
D = "trainer.turn.decide"
SCORE = f"{D}.score=tests.deciders.test_deciders:of_script"
SEQUENCE = "algorithm.rollout_correction.rollout_is=sequence"
LOG_PROBS = "actor_rollout_ref.rollout.calculate_log_probs=True"
WARM = "actor_rollout_ref.rollout.val_kwargs.temperature=1.0"


def config(*overrides: str):
    return composed(f"{LOOP}=mtgrpo_decide_agent", *overrides, preset="mt_grpo")


@pytest.mark.parametrize(
    ("when", "training", "validation"),
    [("always", "training", "validation"), ("training", "training", ""), ("validation", "", "validation")],
)
def test_rows_ask_for_decisions_where_they_are_to_be_made(when, training, validation):
    whole = config(f"{D}.by=best", SCORE, f"{D}.when={when}")
    for validating, said in ((False, training), (True, validation)):
        batch = tu.get_tensordict({"uid": np.array(["a", "b"], dtype=object)})
        ask_for_decisions(batch, whole, validating)
        assert [chunk["mtgrpo_decides"] for chunk in batch.chunk(2)] == [said] * 2
    batch = tu.get_tensordict({"uid": np.array(["a"], dtype=object)})
    ask_for_decisions(batch, config(), False)
    assert "mtgrpo_decides" not in batch


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            [f"{D}.by=best", SCORE, f"{LOOP}=mtgrpo_tool_agent"],
            "decides no turns; set it to mtgrpo_decide_agent, or set",
        ),
        ([f"{D}.by=best", SCORE, f"{LOOP}=mtgrpo_raw_agent"], "set it to mtgrpo_raw_decide_agent"),
        ([f"{D}.by=best", SCORE, f"{LOOP}=mtgrpo_roles_agent"], f"no turns; set {D}.by=none: the two do not go"),
        ([f"{D}.by=best", f"{D}.when=validation", WARM], "score is empty"),
        ([f"{D}.by=retry", f"{D}.threshold=0.5"], "score is empty"),
        ([f"{D}.by=bset", SCORE], "expected none, best, posterior, retry"),
        ([f"{D}.by=best", f"{D}.score=reward"], "expected judge, or a function"),
        ([f"{D}.by=best", f"{D}.score=judge"], "reward.turn.judge.base_url"),
        ([f"{D}.by=best", SCORE, f"{D}.when=validation"], r"are the same; set .*do_sample=True there$"),
        ([f"{D}.by=best", SCORE, f"{D}.when=training"], "never taken"),
        ([f"{D}.by=a.b:C", f"{D}.when=training"], "never taken"),
        ([f"{D}.by=posterior", SCORE, f"{D}.when=training"], "does not correct for it"),
        ([f"{D}.by=retry", SCORE, f"{D}.feedback='less than {{limit}}'"], "feedback"),
        ([f"{D}.by=retry", SCORE, f"{D}.feedback='less than {{score.value}}'"], "feedback is .*AttributeError"),
        ([f"{D}.by=retry", SCORE, f"{D}.feedback='less than {{score[0]}}'"], "feedback is .*TypeError"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(overrides, said):
    with pytest.raises(ConfigError, match=said):
        check_decide(config(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [f"{D}.by=best", SCORE, f"{D}.when=validation", WARM],
        [f"{D}.by=posterior", SCORE, WARM, SEQUENCE, LOG_PROBS],
        [f"{D}.by=posterior", SCORE, f"{D}.candidates=1"],
        [f"{D}.by=retry", SCORE, f"{D}.threshold=0.5", f"{D}.rejected=train"],
        [f"{D}.by=best", SCORE, WARM, "trainer.val_only=True"],
    ],
)
def test_what_fits_is_not_refused(overrides):
    check_decide(config(*overrides))


def test_the_doctor_names_unread_settings_and_the_bias_of_masked_attempts():
    class Of:
        def __init__(self, *overrides):
            self.config = config(*overrides)

    found = [*deciders(Of(f"{D}.by=retry", SCORE, f"{D}.threshold=0.5", f"{D}.alpha=2.0"))]
    assert [(one.status, D in one.message) for one in found] == [("warn", True), ("warn", True), ("ok", False)]
    assert f"{D}.alpha=2.0 is not read with {D}.by=retry" in found[0].message and "mask" in found[1].message
    assert [*deciders(Of())] == []
    with pytest.raises(ConfigError, match="no function 'nothing'"):
        [*deciders(Of(f"{D}.by=retry", f"{D}.score=tests.deciders.test_deciders:nothing", f"{D}.threshold=0.5"))]


def test_the_doctor_refuses_a_scorer_that_takes_other_arguments(tmp_path):
    (tmp_path / "own.py").write_text("def score(turn):\n    return 1.0\n")
    made = config(f"{D}.by=best", f"{D}.score={tmp_path}/own.py:score", f"{D}.when=validation", WARM)
    found = [*deciders(SimpleNamespace(config=made))]
    assert found[0].status == "fail" and "own.py:score takes (turn), which does not fit" in found[0].message
