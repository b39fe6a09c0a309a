"""Trees of rollouts: a run that is to grow them has all parts for it, and says how they grow."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("verl")

from tests.doctor.setups import ROLLOUT, TURNS, doctor
from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.doctor.start_check import StartCheck
from verl_mtgrpo.doctor.trees import ON_CHAINS, READS
from verl_mtgrpo.integration.settings import BranchSettings
from verl_mtgrpo.integration.trees import takes_leaves

pytestmark = [pytest.mark.usefixtures("surroundings"), pytest.mark.process, pytest.mark.network, pytest.mark.compose]

BRANCH = "trainer.turn.branch"
THREE_TURNS = f"{TURNS}.max_assistant_turns=3"
LOOP, CHAINS = f"{ROLLOUT}.agent.default_agent_loop", "mtgrpo_tool_agent"


@pytest.mark.parametrize(
    ("preset", "says"),
    [
        ("arpo", "8 leaves per prompt for arpo, grown by arpo, 4 of them begun at the prompt; a validation grows none"),
        ("mt_grpo_tree", "8 leaves per prompt for mt_grpo_tree, grown by full; a validation grows none: 1 rollout per"),
    ],
)
def test_a_healthy_tree_says_how_it_grows(preset, says, healthy, configs, capsys):
    code, findings = doctor(capsys, healthy, THREE_TURNS, preset=preset)
    (said,) = [one for one in findings if one["check"] == "trees"]
    assert (code, said["status"]) == (0, "ok"), findings
    assert said["message"].startswith(says)
    StartCheck().on_job_start(config=configs[-1])


REFUSED = [
    ("arpo", (f"{LOOP}={CHAINS}",), r"branch.grow=arpo, but .*default_agent_loop=mtgrpo_tool_agent grows no trees"),
    ("arpo", ("algorithm.adv_estimator=mt_grpo", "~algorithm.turn"), r"uses? an estimator that names node_path"),
    ("arpo", (f"{ROLLOUT}.calculate_log_probs=False",), r"measures the log-probs .*calculate_log_probs=False"),
    ("at2po", (f"{BRANCH}.initial=9",), r"initial=9 is more than actor_rollout_ref.rollout.n=8"),
    ("mt_grpo_tree", (f"{BRANCH}.width=3",), r"3\^2 = 9 leaves per prompt, but actor_rollout_ref.rollout.n=8"),
    ("tree_grpo", (f"{ROLLOUT}.n=1",), r"rollout.n=1 is the number of leaves of each tree"),
    ("arpo", (f"{BRANCH}.width=1",), r"branch.width is 1, expected at least 2, or null"),
]


@pytest.mark.parametrize(("preset", "overrides", "says"), REFUSED, ids=[f"{one[0]} {one[1][0]}" for one in REFUSED])
def test_what_is_refused(preset, overrides, says, healthy, configs, capsys):
    code, findings = doctor(capsys, healthy, THREE_TURNS, *overrides, preset=preset)
    failed = [one for one in findings if one["status"] == "fail"]
    assert code == 1 and all(one["fix"] for one in failed)
    assert any(re.search(says, f"{one['message']}; {one['fix']}") for one in failed), failed
    with pytest.raises(SystemExit):
        StartCheck().on_job_start(config=configs[-1])


WARNED = [
    ("arpo", (f"{BRANCH}.grow=none", f"{LOOP}={CHAINS}"), r"grow=none: no rollout shares a turn: arpo is verl's grpo"),
    ("mt_grpo_tree", (f"{BRANCH}.grow=none",), r"no rollout shares a turn: mt_grpo_tree is mt_grpo there"),
    ("at2po", (f"{BRANCH}.width=3",), r"branch.width=3 is not read with trainer.turn.branch.grow=at2po"),
    ("tree_grpo", (f"{BRANCH}.initial=8",), r"initial=8 rollouts begin at the prompt .*no branch is left"),
    ("arpo", (f"{BRANCH}.probability=0", f"{BRANCH}.weight=0"), r"never branches"),
    ("mt_grpo_tree", (f"{ROLLOUT}.n=7",), r"n=7 is no product .* of the 2 turns .* only the first one does"),
    ("arpo", (f"{BRANCH}.threshold=0.7",), r"threshold=0.7 is not read with trainer.turn.branch.decide=coin"),
]


@pytest.mark.parametrize(("preset", "overrides", "says"), WARNED, ids=[f"{one[0]} {one[1][0]}" for one in WARNED])
def test_what_works_but_perhaps_not_as_meant(preset, overrides, says, healthy, capsys):
    code, findings = doctor(capsys, healthy, THREE_TURNS, *overrides, preset=preset)
    warned = [one for one in findings if one["status"] == "warn"]
    assert (code, [one["check"] for one in warned]) == (0, ["trees"]), findings
    assert re.search(says, warned[0]["message"]) and warned[0]["fix"]
    assert "None" not in warned[0]["fix"], "null is what Hydra reads"


def test_what_the_group_sets_for_its_own_growth_is_no_ones_mistake_with_another(healthy, capsys):
    code, findings = doctor(capsys, healthy, THREE_TURNS, f"{BRANCH}.grow=full", preset="tree_grpo")
    assert (code, [one for one in findings if one["status"] == "warn"]) == (0, [])


def test_chains_say_nothing_of_trees(healthy, capsys):
    assert not [one for one in doctor(capsys, healthy)[1] if one["check"] == "trees"]


def test_the_tables_know_every_estimator_and_every_setting():
    assert set(ON_CHAINS) == set(filter(takes_leaves, ESTIMATORS))
    assert {key for keys in READS.values() for key in keys} == set(BranchSettings.model_fields) - {"grow"}
    assert "none" in READS
