"""Test the folder that `mtgrpo toy` makes; what its policy learns is shown by the run of test_try_step.py."""

from __future__ import annotations

import json
import shlex
import warnings

import pyarrow.parquet as pq
import pytest

pytest.importorskip("verl")

from verl.utils.reward_score import default_compute_score

from tests.composed import composed
from verl_mtgrpo.cli.main import main
from verl_mtgrpo.data.rows import make_row, write_parquet
from verl_mtgrpo.demo.policy import load_policy
from verl_mtgrpo.doctor.compose import CommandLine
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.preflight import check_run
from verl_mtgrpo.toy import policy
from verl_mtgrpo.toy.assets import make_assets
from verl_mtgrpo.toy.policy import Toy, made_up_rows, make_caller
from verl_mtgrpo.toy.try_step import Trial, check_config, summary, try_steps

pytestmark = [pytest.mark.heavy, pytest.mark.compose]

TOOLS = '''
from verl.tools.function_tool import function_tool

@function_tool
def toy_weigh(thing: str, unit: str) -> str:
    """Weigh a thing.

    Args:
        thing: For example a stone.
        unit: For example kg.
    """
    return "3"
'''


@pytest.fixture(autouse=True)
def one_step(monkeypatch):
    monkeypatch.setattr(policy, "_DRILL_STEPS", 1)


def test_the_command_makes_a_policy_and_says_how_to_train_it(tmp_path, capsys):
    (tmp_path / "tools.py").write_text(TOOLS)
    assert main(["toy", "--tools", str(tmp_path / "tools.py"), "--out", str(tmp_path / "toy")]) == 0
    said = capsys.readouterr().out
    assert "a policy that calls toy_weigh" in said
    words = shlex.split(said.partition("train it:\n")[2].replace("\\\n", " "))
    run = composed(*words[words.index("verl.trainer.main_ppo") + 1 :])
    check_run(run)
    assert run.actor_rollout_ref.model.path == f"{tmp_path}/toy/policy"
    assert run.actor_rollout_ref.rollout.multi_turn.function_tool_path == f"{tmp_path}/tools.py"
    model, tokenizer = load_policy(tmp_path / "toy" / "policy")
    assert sum(one.numel() for one in model.parameters()) < 2_000_000
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Weigh a stone"}],
        tools=[{"function": {"name": "toy_weigh"}}],
        tokenize=False,
    )
    assert tokenizer.decode(tokenizer.encode(text)) == text and "Tools: toy_weigh" in text
    rows = pq.read_table(tmp_path / "toy" / "train.parquet").to_pylist()
    assert len(rows) == 64 and len({row["prompt"][0]["content"] for row in rows}) == 8
    assert rows[0]["reward_model"]["ground_truth"] == {"target": ["a stone"]}


def test_a_file_without_tools_is_refused(tmp_path, capsys):
    (tmp_path / "tools.py").write_text("x = 1\n")
    assert main(["toy", "--tools", str(tmp_path / "tools.py"), "--out", str(tmp_path / "toy")]) == 1
    assert "declares no tool" in capsys.readouterr().err
    assert main(["toy", "--tools", str(tmp_path / "no.py")]) == 1
    assert "there is no file" in capsys.readouterr().err


def test_the_shortest_of_the_users_questions_are_asked_and_the_folder_is_kept(tmp_path):
    def row(n: int) -> dict:
        return {
            "prompt": [{"role": "user", "content": "word " * (n + 1)}],
            "data_source": "mine",
            "reward_model": {"ground_truth": str(n)},
            "extra_info": {"kept": n},
        }

    toy = make_caller(tmp_path / "toy", [], rows=[row(n) for n in range(20)], repeated=10)
    rows = pq.read_table(tmp_path / "toy" / "train.parquet").to_pylist()
    assert sorted({one["extra_info"]["kept"] for one in rows}) == list(range(8)), "columns of the user's stay"
    assert len(rows) == 10
    assert toy.prompt_tokens > 8
    before = (tmp_path / "toy" / "policy" / "model.safetensors").stat().st_mtime_ns
    assert make_caller(tmp_path / "toy", [], rows=[row(n) for n in range(20)], repeated=10) == toy
    assert (tmp_path / "toy" / "policy" / "model.safetensors").stat().st_mtime_ns == before
    make_caller(tmp_path / "toy", [], rows=[row(n) for n in range(3)], repeated=10)
    assert (tmp_path / "toy" / "policy" / "model.safetensors").stat().st_mtime_ns != before
    assert json.loads((tmp_path / "toy" / "toy.json").read_text())["prompt_tokens"] > 8


def test_another_column_of_the_same_rows_is_another_prompt(tmp_path):
    chats = {"prompt": "word", "long": "word " * 40}
    row = {name: [{"role": "user", "content": text}] for name, text in chats.items()}
    row["reward_model"] = {"ground_truth": "x"}
    short, long = (make_caller(tmp_path / "toy", [], rows=[row], prompt_key=name).prompt_tokens for name in chats)
    assert long > short + 30


def test_questions_are_made_from_what_tools_say():
    schema = {"function": {"name": "f", "description": "Add numbers.\nMore.", "parameters": {}}}
    rows = made_up_rows([schema])
    assert rows[3]["prompt"] == [{"role": "user", "content": "Add numbers: 3. Question 3"}]
    assert rows[3]["reward_model"]["ground_truth"] == {"target": ["3"]}


def test_questions_that_name_another_agent_loop_stop_a_try_before_a_policy_is_made(tmp_path, monkeypatch):
    (tmp_path / "tools.py").write_text(TOOLS)
    row = make_row("Where?", ["Oslo"], index=0, split="train", id="0", data_source="toy")
    write_parquet([{**row, "agent_name": "single_turn_agent"}], tmp_path / "mine.parquet")
    monkeypatch.setattr(policy, "_make", lambda *_: pytest.fail("a policy was made"))
    line = CommandLine(
        overrides=(
            *("hydra.searchpath=[pkg://verl_mtgrpo.config]", "+mtgrpo=mt_grpo"),
            f"actor_rollout_ref.rollout.multi_turn.function_tool_path={tmp_path}/tools.py",
            "actor_rollout_ref.rollout.n=4",
            f"data.train_files={tmp_path}/mine.parquet",
        )
    )
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/mine.parquet has a column agent_name with single_turn_agent"):
        try_steps(Trial("try", line, tmp_path / "run", tmp_path / "made"))
    assert not (tmp_path / "made").exists()


def test_verls_warning_that_there_is_no_critic_is_not_printed_by_a_try(tmp_path, capsys):
    (tmp_path / "tools.py").write_text(TOOLS.replace("toy_weigh", "toy_weigh_quietly"))
    tools = f"actor_rollout_ref.rollout.multi_turn.function_tool_path={tmp_path}/tools.py"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check_config(CommandLine(overrides=("+mtgrpo=mt_grpo", "actor_rollout_ref.rollout.n=4", tools)))
    assert not [one.message for one in said if "critic" in str(one.message)]
    assert "as written: mt_grpo on fsdp" in capsys.readouterr().out


def test_a_try_says_that_it_makes_a_policy_before_it_does(tmp_path, monkeypatch, capsys):
    # verl knows the tools of a process by their names, and another test has loaded these.
    (tmp_path / "tools.py").write_text(TOOLS.replace("toy_weigh", "toy_weigh_again"))
    said: list[str] = []

    def make(folder, *_, **__):
        said.append(capsys.readouterr().out)
        return Toy(folder, 64)

    monkeypatch.setattr(policy, "make_caller", make)
    config = composed(f"actor_rollout_ref.rollout.multi_turn.function_tool_path={tmp_path}/tools.py")
    config.data.train_files, config.actor_rollout_ref.rollout.multi_turn.format = None, "hermes"
    make_assets(tmp_path / "made", config)
    assert said[0].startswith(f"a policy that calls toy_weigh_again, in {tmp_path}/made; making it takes")


def test_roles_have_room_for_what_they_read_and_few_rounds(tmp_path):
    config = composed("+mtgrpo=rema")
    config.data.train_files = None
    made = make_assets(tmp_path / "made", config)
    _, tokenizer = load_policy(made.folder / "policy")
    longest = 0
    for role, reads in (("planner", 0), ("worker", 1)):
        system = config.trainer.turn.roles.names[role].system
        chat = [
            {"role": "system", "content": system},
            {"role": "user", "content": made_up_rows([])[0]["prompt"][0]["content"]},
        ]
        longest = max(
            longest,
            len(tokenizer(tokenizer.apply_chat_template(chat, tokenize=False)).input_ids) + reads * made.response,
        )
    assert longest <= made.prompt < longest + 64
    assert config.trainer.turn.roles.rounds == 30 and made.changes == {"trainer.turn.roles.rounds": 4}


def test_verls_own_reward_function_scores_the_made_up_rows():
    row = made_up_rows([])[0]
    (answer,) = row["reward_model"]["ground_truth"]["target"]
    for said, score in ((f"<answer>{answer}</answer>", 1.0), ("<answer>x</answer>", 0.0)):
        assert default_compute_score(row["data_source"], said, row["reward_model"]["ground_truth"]) == score


def test_the_summary_of_a_try_says_why_its_numbers_do_not_add_up():
    lines = list(summary({1: {"turn/1/reward": 0.19, "outcome/reward": 0.156, "other": 3.0}}))
    assert lines[0] == "step 1: turn/1/reward 0.19, outcome/reward 0.16"
    assert "do not add up to the score" in lines[1]
