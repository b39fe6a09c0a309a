"""Dense rewards and pairs: a run that asks for them has all parts for it, and says what it adds."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("verl")

from tests.doctor.setups import ROLLOUT, doctor
from verl_mtgrpo.doctor.start_check import StartCheck

pytestmark = [pytest.mark.usefixtures("surroundings"), pytest.mark.process, pytest.mark.network, pytest.mark.compose]

DENSE = "+trainer.turn.dense"
REFERENCE = ("actor_rollout_ref.actor.use_kl_loss=True", "actor_rollout_ref.actor.kl_loss_coef=0")
BOTH = (*REFERENCE, f"{DENSE}.implicit.beta=0.1", f"{DENSE}.information_gain.weight=2")


def lines(findings):
    return [one for one in findings if one["check"] == "dense"]


def test_a_healthy_run_says_what_is_added(healthy, configs, capsys):
    code, findings = doctor(capsys, healthy, *BOTH, preset="turn_rloo")
    (said,) = lines(findings)
    assert (code, said["status"]) == (0, "ok"), findings
    assert said["message"] == "added to what turns are paid: implicit times 1, information_gain times 2"
    StartCheck().on_job_start(config=configs[-1])


def test_without_any_there_is_no_line(healthy, capsys):
    assert not lines(doctor(capsys, healthy, preset="turn_rloo")[1])


PAIRS = f"{ROLLOUT}.agent.default_agent_loop=mtgrpo_pairs_agent"
REFUSED = [
    ((f"{DENSE}.implicit.beta=0.1",), r"implicit needs ref_log_prob.*use_kl_loss=True \(with .*kl_loss_coef=0"),
    ((f"{DENSE}.information_gain.of=probability", "trainer.turn.probe.by=reference"), r"needs a reference policy"),
    ((*REFERENCE, f"{DENSE}.implicits.beta=0.1"), r"unknown names \['implicits'\].*did you mean implicit"),
    ((*REFERENCE, f"{DENSE}.implicit.betta=0.1"), r"dense\.implicit.* unknown keys \['betta'\].*did you mean beta"),
    ((*REFERENCE, f"{DENSE}.implicit.clip=much"), r"dense\.implicit\.clip is 'much', expected a number"),
    ((*BOTH, "trainer.v1.trainer_mode=sync"), r"verl's own trainers do not compute.*trainer_mode=mtgrpo_sync"),
    ((f"{DENSE}.discriminator.form=log",), r"discriminator needs values_after.*critic\.enable=True"),
    (
        ("critic.enable=True", f"{DENSE}.discriminator.form=log"),
        r"has none of an expert.*\+mtgrpo=pair_rloo",
    ),
    ((PAIRS,), r"default_agent_loop=mtgrpo_pairs_agent returns an expert's action.*\(pair_dpo, pair_rloo\)"),
]


@pytest.mark.parametrize(("overrides", "says"), REFUSED, ids=[one[0][-1] for one in REFUSED])
def test_what_is_refused(overrides, says, healthy, configs, capsys):
    code, findings = doctor(capsys, healthy, *overrides, preset="turn_rloo")
    failed = [one for one in findings if one["status"] == "fail"]
    assert code == 1 and all(one["fix"] for one in failed)
    assert any(re.search(says, f"{one['message']}; {one['fix']}") for one in failed), failed
    with pytest.raises(SystemExit):
        StartCheck().on_job_start(config=configs[-1])


def test_corrections_by_the_rollouts_log_probs_are_refused_with_pairs(healthy, capsys):
    code, findings = doctor(capsys, healthy, "algorithm.rollout_correction.bypass_mode=True", preset="pair_dpo")
    assert code == 1 and any("has none of the expert's action" in one["message"] for one in findings)


def test_a_discriminator_leaves_no_critic_for_an_estimator(healthy, capsys):
    changed = ("algorithm.adv_estimator=gae", "trainer.turn.on_purpose=[algorithm.adv_estimator]", "~algorithm.turn")
    code, findings = doctor(capsys, healthy, *changed, preset="pair_rloo")
    assert code == 1 and any("makes the critic a classifier" in one["message"] for one in findings)


def test_a_teacher_is_refused_with_pairs(healthy, capsys):
    code, findings = doctor(capsys, healthy, "distillation.enabled=True", preset="pair_dpo")
    said = r"asks its teacher for the last output of a session only, and mtgrpo_pairs_agent has two"
    assert code == 1 and any(re.search(said, one["message"]) for one in findings)


WARNED = [
    ("mt_grpo", BOTH, r"mt_grpo divides by the standard deviation of a group.*implicit, information_gain"),
    ("grpo_mr", BOTH, r"adv_estimator=grpo divides"),
    ("turn_rloo", (*BOTH, "algorithm.use_kl_in_reward=True"), r"implicit pays the log ratio that .*takes away"),
    ("turn_rloo", ("trainer.turn.probe.by=reference",), r"trainer.turn.probe is not read"),
]


@pytest.mark.parametrize(("preset", "overrides", "says"), WARNED, ids=[one[2][:30] for one in WARNED])
def test_what_is_warned_of(preset, overrides, says, healthy, capsys):
    code, findings = doctor(capsys, healthy, *overrides, preset=preset)
    (said,) = lines(findings)
    assert (code, said["status"]) == (0, "warn") and re.search(says, said["message"]), findings
