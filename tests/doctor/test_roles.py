"""Roles: a run that plays them has all parts for it, and says what a prompt becomes."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("verl")

from tests.composed import composed
from tests.doctor.setups import ROLLOUT, doctor
from verl_mtgrpo.doctor.lengths import lengths
from verl_mtgrpo.doctor.roles import READS, roles
from verl_mtgrpo.doctor.setup import Setup
from verl_mtgrpo.doctor.start_check import StartCheck
from verl_mtgrpo.doctor.tools import tools
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.roles import cast_of
from verl_mtgrpo.roles import RolesSettings

pytestmark = [pytest.mark.usefixtures("surroundings"), pytest.mark.process, pytest.mark.network, pytest.mark.compose]

ROLES = "trainer.turn.roles"
NAMES = f"+{ROLES}.names={{rewriter:{{tools:[search],call_ends:true,max_tokens:16}},answerer:{{frozen:true}}}}"


def test_a_healthy_chain_says_what_a_prompt_becomes(healthy, configs, capsys):
    code, findings = doctor(capsys, healthy, NAMES, preset="mhgpo")
    (said,) = [one for one in findings if one["check"] == "roles"]
    assert (code, said["status"]) == (0, "ok"), findings
    says = r"rewriter -> answerer: 8 branches \(fof\), 16 rows per prompt, 2 updates per step .*; answerer frozen"
    assert re.fullmatch(says, said["message"]), said
    StartCheck().on_job_start(config=configs[-1])


def looked_at(*overrides):
    """Return what the check says of a composed config."""
    return list(roles(Setup(composed(f"{ROLLOUT}.n=4", NAMES, *overrides, preset="mhgpo"))))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ((f"{ROLLOUT}.agent.default_agent_loop=mtgrpo_tool_agent",), r"names roles, but .* plays none"),
        ((f"+{ROLES}.names.rewriter.next=[nobody]",), r"names.rewriter.next names nobody"),
        ((f"+{ROLES}.names.rewriter.reward=papper_v1",), r"names.rewriter.reward is 'papper_v1', expected one of"),
    ],
    ids=str,
)
def test_what_is_refused(overrides, says):
    with pytest.raises(ConfigError, match=says):
        looked_at(*overrides)


def test_the_file_wins_over_the_roles_of_a_preset(tmp_path):
    (tmp_path / "own.yaml").write_text("finish: DONE\nnames: {boss: {}, hand: {}}\n")
    found = cast_of(composed(f"{ROLES}.file={tmp_path / 'own.yaml'}", f"{ROLES}.rounds=4", preset="rema"))
    assert (found.names, found.settings.finish, found.settings.rounds) == (["boss", "hand"], "DONE", 4)
    assert (found.talks, found.settings.unfinished) == (True, "zero"), "what the file does not say is the preset's"


def test_a_reward_function_of_a_role_is_tried_before_the_run(healthy, capsys):
    own = healthy.file("own.py", "def pays(transcript, truth):\n    return 1\n")
    more = f"+{ROLES}.names.rewriter.reward={own}"
    for name, says in (("pays", "pays returned int"), ("gone", r"names.rewriter.reward is .* has no function 'gone'")):
        code, findings = doctor(capsys, healthy, NAMES, f"{more}:{name}", preset="mhgpo")
        failed = [one["message"] for one in findings if one["status"] == "fail"]
        assert code == 1 and re.search(says, " ".join(failed)), failed


def test_a_tool_that_the_run_does_not_have_is_refused():
    config = composed(f"{ROLLOUT}.n=4", NAMES, f"{ROLES}.names.rewriter.tools=[lookup]", preset="mhgpo")
    failed = [one for one in tools(Setup(config)) if one.status == "fail"]
    assert [one.message for one in failed] == [
        "trainer.turn.roles.names.rewriter.tools has lookup, but the tools of this run are search"
    ]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ((f"{ROLES}.rounds=3",), r"roles.rounds=3 is not read with trainer.turn.roles.order=chain"),
        (
            (f"{ROLES}.order=alternate", f"{ROLES}.unfinished=mask"),
            r"without trainer.turn.roles.finish only a full row",
        ),
        (("data.max_prompt_length=16",), r"answerer may read 16 tokens of rewriter, and data.max_prompt_length=16"),
        (
            (f"{ROLES}.order=alternate", f"{ROLLOUT}.multi_turn.max_assistant_turns=3"),
            r"max_assistant_turns=3 ends the row of rewriter before trainer.turn.roles.rounds=30",
        ),
    ],
    ids=str,
)
def test_what_works_but_perhaps_not_as_meant(overrides, says):
    (warned,) = looked_at(*overrides)
    assert warned.status == "warn" and warned.fix
    assert re.search(says, warned.message), warned.message


READS_RESULTS = "prompt:'{rewriter.result}'"
OF_TWO = f"+{ROLES}.names={{rewriter:{{tools:[search],call_ends:ENDS,max_tokens:16}},answerer:{{{READS_RESULTS}}}}}"


@pytest.mark.parametrize(
    ("ends", "room", "status", "says"),
    [
        ("true", 1024, "ok", r"tool results of \d+ to \d+ in the prompt of answerer$"),
        (
            "true",
            512,
            "fail",
            r"^answerer reads results of \d+ tokens \(median\), data.max_prompt_length=512: .* dropped",
        ),
        ("false", 1024, "fail", r"data.max_response_length=160: no answer can follow them"),
    ],
    ids=str,
)
def test_results_need_room_where_they_are_read(ends, room, status, says, healthy, capsys):
    """Those of a role whose call ends its output leave its row, and are in the prompts of others."""
    long = healthy.tool("long", index=str(healthy.long_index()))
    overrides = (OF_TWO.replace("ENDS", ends), long, f"data.max_prompt_length={room}")
    _, findings = doctor(capsys, healthy, *overrides, preset="mhgpo")
    (found,) = [one for one in findings if one["check"] == "lengths"]
    assert found["status"] == status and re.search(says, found["message"]), found
    assert status == "ok" or ("prompt" if ends == "true" else "response") in found["fix"]


@pytest.mark.parametrize(
    ("ends", "length"), [("true", "data.max_prompt_length"), ("false", "data.max_response_length")]
)
def test_results_that_nobody_measured_are_estimated_where_they_are_read(ends, length):
    roles_of_two = OF_TWO.replace("ENDS", ends)
    lengths_of = {"data.max_prompt_length": 4096, "data.max_response_length": 4096, length: 512}
    config = composed(roles_of_two, *(f"{key}={value}" for key, value in lengths_of.items()), preset="mhgpo")
    (found,) = lengths(Setup(config))
    assert found.status == "warn" and f"{length}=512" in found.message and f"raise {length}" in found.fix


def test_an_estimator_for_roles_in_a_run_without_any_is_warned_of():
    loop = f"{ROLLOUT}.agent.default_agent_loop"
    (warned,) = roles(Setup(composed(f"{loop}=mtgrpo_tool_agent", preset="mhgpo")))
    assert warned.status == "warn" and f"{loop}=mtgrpo_roles_agent" in warned.fix
    assert re.search(r"mtgrpo_tool_agent plays no roles: .* is verl's grpo", warned.message), warned.message
    assert not list(roles(Setup(composed(f"{loop}=mine", preset="mhgpo")))), "it may write roles itself"


def test_the_table_knows_every_setting():
    others = {"file", "names", "order", "answers"}
    assert {key for keys in READS.values() for key in keys} == set(RolesSettings.model_fields) - others
