"""Mistakes for which a new user got wrong, repeated or no advice.

Each row has the input, the only check that should complain, and its message. A new user with nothing but the README
found them on 2026-11-26.
"""

from __future__ import annotations

import re

import pytest

pytest.importorskip("verl")

from omegaconf import OmegaConf, open_dict

from tests.doctor.setups import TURNS, doctor
from verl_mtgrpo.cli.main import main
from verl_mtgrpo.data.questions import read_questions
from verl_mtgrpo.doctor.checks import examine
from verl_mtgrpo.doctor.compose import compose_config, parse
from verl_mtgrpo.doctor.setup import Setup
from verl_mtgrpo.doctor.start_check import StartCheck
from verl_mtgrpo.errors import ConfigError, DataError

pytestmark = [pytest.mark.usefixtures("surroundings"), pytest.mark.compose]

FILTER = "algorithm.filter_groups.enable=True"
METRIC = "algorithm.filter_groups.metric"


@pytest.mark.parametrize(
    ("status", "check", "says", "change"),
    [
        ("fail", "reward", r"metric=turn_patern.*turn_pattern", (f"{METRIC}=turn_patern",)),
        # verl's DAPO recipes have it; no preset of ours gives "acc"
        ("fail", "reward", r"metric=acc", (f"{METRIC}=acc",)),
        ("ok", "", "", (f"{METRIC}=outcome/em",)),
        ("ok", "", "", (f"{METRIC}=turn_pattern",)),
        ("fail", "rewards", r"reward.turn.pay is 'turn'.*did you mean turns", ("reward.turn.pay=turn",)),
        (
            "fail",
            "turns",
            r"mtgrpo_raw_agent needs a format with closing tags",
            ("actor_rollout_ref.rollout.agent.default_agent_loop=mtgrpo_raw_agent",),
        ),
        ("fail", "parts", r"the agent has no tool", (f"{TURNS}.tool_config_path=null",)),
    ],
)
def test_one_mistake_is_said_once(status, check, says, change, healthy, capsys):
    more = (FILTER,) if change[0].startswith(METRIC) else ()
    _, findings = doctor(capsys, healthy, *more, *change)
    told = [one for one in findings if one["status"] in ("fail", "warn")]
    if status == "ok":
        assert not told
        return
    same = {one["message"] for one in told}
    assert len(same) == len(told) == 1, told
    assert (told[0]["status"], told[0]["check"] in (check, "estimator")) == (status, True), told
    assert re.search(says, f"{told[0]['message']}; {told[0]['fix']}")


MAPPING = r"expected a mapping of settings; .*set single keys instead"
GROUPS = ("algorithm.turn", "reward.turn", "trainer.turn", "trainer.turn.guards", "trainer.turn.dump")


@pytest.mark.parametrize("key", GROUPS)
def test_a_group_of_settings_replaced_by_null_is_refused_once(key, healthy, configs, capsys):
    code, findings = doctor(capsys, healthy, f"{key}=null")
    (told,) = [one for one in findings if one["status"] in ("fail", "warn")]
    assert code == 1 and told["message"].startswith(key)
    assert re.search(f"is null, {MAPPING}", f"{told['message']}; {told['fix']}")
    with pytest.raises(SystemExit) as ended:
        StartCheck().on_job_start(config=configs[-1])
    assert re.fullmatch(rf"verl_mtgrpo.errors.ConfigError: {key}.* is null, {MAPPING}.*", str(ended.value.code))


@pytest.mark.parametrize(
    ("key", "value"),
    [*((key, [1]) for key in (*GROUPS, "reward.turn.judge")), ("reward.turn", "x"), ("trainer.turn.dump", 3)],
)
def test_a_group_of_settings_replaced_by_something_else_is_refused_once(key, value, healthy, configs, capsys):
    """Hydra refuses a list in an override, but the user's own config may contain one."""
    doctor(capsys, healthy)
    config = configs[-1]
    with open_dict(config):
        OmegaConf.update(config, key, value, merge=False)
    (told,) = [one for one in examine(Setup(config)) if one.status == "fail"]
    assert told.message.startswith(key) and re.search(rf"is .*{value}.*, {MAPPING}", str(told))


def test_a_setting_out_of_range_is_said_once(healthy, configs, capsys):
    _, findings = doctor(capsys, healthy, "trainer.turn.guards.steps=0")
    (told,) = [one["message"] for one in findings if one["status"] in ("fail", "warn")]
    assert told == "trainer.turn.guards.steps is 0, expected at least 1"
    with pytest.raises(SystemExit) as ended:
        StartCheck().on_job_start(config=configs[-1])
    assert str(ended.value.code).count("guards.steps") == 1


def test_a_function_that_is_no_tool_yet(healthy, capsys):
    file = healthy.file("plain.py", "def look(query: str) -> str:\n    return query\n")
    _, findings = doctor(capsys, healthy, f"{TURNS}.function_tool_path={file}")
    (told,) = [one for one in findings if one["status"] == "fail"]
    assert told["message"].endswith("plain.py declares no tool")
    assert told["fix"].startswith("put @function_tool")


def test_a_group_without_its_plus():
    with pytest.raises(ConfigError, match=r"mtgrpo is a config group .*add it with a plus: \+mtgrpo=NAME"):
        compose_config(parse(["mtgrpo=mt_grpo"]))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.turn.guards=[1]", r"=\[1\] cannot be set \(Cannot merge.*\); .*\(trainer.turn.guards.NAME=VALUE\)"),
        ("data=[1]", r"Hydra cannot apply the overrides: TypeError: .*set single keys"),
    ],
)
def test_a_group_of_settings_that_hydra_cannot_replace(override, says):
    with pytest.raises(ConfigError, match=says):
        compose_config(parse(["hydra.searchpath=[pkg://verl_mtgrpo.config]", "+mtgrpo=mt_grpo", override]))


def test_a_group_of_settings_to_which_others_refer():
    groups = ["hydra.searchpath=[pkg://verl_mtgrpo.config]", "+mtgrpo=mt_grpo", "+mtgrpo_recipe=default"]
    with pytest.raises(ConfigError, match=r"trainer.turn was replaced as a whole, .*\(trainer.turn.NAME=VALUE\)"):
        compose_config(parse([*groups, "trainer.turn=null"]))


def test_a_key_that_only_other_groups_have_is_not_suggested_to_itself():
    with pytest.raises(ConfigError, match=r"verl has no setting algorithm.turn; correct the name \(to add"):
        compose_config(parse(["hydra.searchpath=[pkg://verl_mtgrpo.config]", "+mtgrpo=mt_ppo", "algorithm.turn=null"]))


def test_an_unknown_name_of_ours_is_not_told_to_be_added_with_a_plus():
    with pytest.raises(
        ConfigError, match=r"verl has no setting reward.turn.presset; did you mean reward.turn.preset\?$"
    ):
        compose_config(
            parse(["hydra.searchpath=[pkg://verl_mtgrpo.config]", "+mtgrpo=mt_grpo", "reward.turn.presset=x"])
        )


def test_a_question_without_a_value(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "a?", "answers": null}\n')
    with pytest.raises(DataError, match=r"line 1 has no value \(null\) in answers"):
        list(read_questions(file))


def test_a_file_where_a_folder_is_expected(tmp_path, capsys):
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "a?", "answers": ["b"]}\n' * 2)
    assert main(["data", str(file), "--out", str(file)]) == 1
    assert "q.jsonl is a file, or inside one; name a folder" in capsys.readouterr().err
