"""Test what is added to a recipe's command: the whole command runs through bash and composes with verl's config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl")

from omegaconf import OmegaConf

from tests.composed import composed
from tests.init.scripts import ARRAYS, GSM8K, GSM8K_FILES, as_bash_reads_it, write
from tests.recipes import RECIPES
from verl_mtgrpo.cli.main import main
from verl_mtgrpo.doctor.compose import compose_config, parse
from verl_mtgrpo.integration.preflight import check_run

pytestmark = [pytest.mark.process, pytest.mark.compose]
RECIPES_OF_OURS = [
    "paper_v1_triviaqa",
    "paper_v2_search_r1",
    "small_single_gpu",
    "megatron",
    "multi_node",
    "arpo",
    "mt_grpo_tree",
]
TURNS = "actor_rollout_ref.rollout.multi_turn"


@pytest.fixture
def switched(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[Path, str]]:
    """Return a function that switches a recipe; it returns the folder that is written, and what is printed."""
    monkeypatch.chdir(tmp_path)

    def switch(script: Path, *options: str) -> tuple[Path, str]:
        assert main(["init", str(script), "--out", "mine", *options]) == 0
        return tmp_path / "mine", capsys.readouterr().out

    return switch


def config_of(words: list[str], folder: Path) -> Any:
    """Compose what verl would be given, with all checks of a start that need no files."""
    line = parse(words)
    config = compose_config(line) if line.name else composed(*line.overrides)
    OmegaConf.resolve(config)
    check_run(config)
    return config


def test_a_recipe_with_its_own_tool_and_reward_function(tmp_path, switched):
    before = {path: path.read_text() for path in (RECIPES / "migrate").iterdir()}
    folder, said = switched(RECIPES / "migrate" / "before.sh")
    plain = as_bash_reads_it(RECIPES / "migrate" / "before.sh", tmp_path)
    words = as_bash_reads_it(folder / "run.sh", tmp_path, "trainer.total_epochs=7")
    assert words[: len(plain)] == plain and words[-1] == "trainer.total_epochs=7"
    added = words[len(plain) : -1]
    assert added == [
        "+mtgrpo=mt_grpo",
        "algorithm.adv_estimator=mt_grpo",
        "actor_rollout_ref.rollout.agent.default_agent_loop=mtgrpo_tool_agent",
        f"reward.turn.preset={folder}/turn_rewards.py:turn_rewards",
        "trainer.experiment_name=grpo_mt_grpo",
    ], "what recipes/migrate explains, and turn rewards of one's own"
    config = config_of(words, tmp_path)
    assert config.trainer.turn.preset == config.algorithm.adv_estimator == "mt_grpo"
    assert "tools   search (" in said and "not decided here" not in said
    assert before == {path: path.read_text() for path in before}, "nothing of the user's is edited"


@pytest.mark.parametrize("name", RECIPES_OF_OURS)
def test_recipes_that_have_turn_credit_already(name, tmp_path, switched):
    folder, said = switched(RECIPES / name / "run.sh")
    plain = as_bash_reads_it(RECIPES / name / "run.sh", tmp_path)
    words = as_bash_reads_it(folder / "run.sh", tmp_path)
    assert words == [*plain, f"reward.turn.preset={folder}/turn_rewards.py:turn_rewards"]
    config = config_of(words, tmp_path)
    assert config.reward.turn.preset.endswith("mine/turn_rewards.py:turn_rewards")
    assert "names a config group +mtgrpo=... itself" in said
    method = as_bash_reads_it(folder / "run.sh", tmp_path, "mt_grpo", "trainer.total_epochs=7")
    assert "+mtgrpo=mt_grpo" in method and "trainer.total_epochs=7" in method, "the script's own arguments still work"


def test_an_example_like_verls_with_a_primary_config_of_its_own(tmp_path, switched):
    script = write(tmp_path, GSM8K, **GSM8K_FILES)
    folder, said = switched(script)
    words = as_bash_reads_it(folder / "run.sh", tmp_path)
    plain = as_bash_reads_it(script, tmp_path)
    assert words[: len(plain)] == plain and len(words) - len(plain) == 5
    config = config_of(words, tmp_path)
    assert config.algorithm.adv_estimator == "mt_grpo"
    assert config.actor_rollout_ref.rollout.agent.default_agent_loop == "mtgrpo_tool_agent"
    assert config.actor_rollout_ref.rollout.multi_turn.tool_config_path == f"{tmp_path}/config/gsm8k_tool.yaml"
    assert config.actor_rollout_ref.rollout.multi_turn.max_assistant_turns == 5, "of the user's primary config"
    assert config.trainer.experiment_name == "qwen2.5-3b-tool_mt_grpo"
    assert "tools   calc_gsm8k_reward" in said and "not decided here" not in said
    assert 'WORTH = {"calc_gsm8k_reward": 0.2}' in (folder / "turn_rewards.py").read_text()


def test_an_example_like_verls_with_arrays_and_a_parameter(tmp_path, switched):
    tools = tmp_path / "tools.yaml"
    tools.write_text(GSM8K_FILES["config/gsm8k_tool.yaml"])
    script = write(tmp_path, ARRAYS)
    folder, said = switched(script, "--tools", str(tools), "--preset", "turn_rloo")
    words = as_bash_reads_it(folder / "run.sh", tmp_path, "sglang")
    config = config_of(words, tmp_path)
    assert config.actor_rollout_ref.rollout.name == "sglang", "the script's own parameter"
    assert config.algorithm.adv_estimator == "turn_rloo"
    assert Path(config.actor_rollout_ref.rollout.multi_turn.tool_config_path).resolve() == tools
    assert config.actor_rollout_ref.rollout.agent.default_agent_loop == "mtgrpo_tool_agent"
    assert config.trainer.experiment_name == "turn_rloo", "the old name has a date in it"
    for part in ("$rollout_tp", "$NGPUS_PER_NODE", "$(date +%Y%m%d)", "depend on a condition"):
        assert part in said


HIDDEN = """ARGS=$(cat <<X
actor_rollout_ref.rollout.n=8
actor_rollout_ref.rollout.multi_turn.function_tool_path=tools.py
X
)
python3 -m verl.trainer.main_ppo $ARGS "$@"
"""


def test_nothing_is_claimed_of_settings_that_may_be_in_what_could_not_be_read(tmp_path, switched):
    _, said = switched(write(tmp_path, HIDDEN))
    assert "rollout.n is 1" not in said and "no tools were found" not in said
    assert "may hold settings that are not known here" in said and "`mtgrpo doctor` reads the command" in said
    assert all(len(line) < 300 for line in said.splitlines()) and "\nX\n" not in said, "one line for each"


@pytest.mark.parametrize(
    ("setting", "added", "said"),
    [
        ("critic.enable=True", "critic.enable=False", ""),
        ("reward.reward_manager.name=dapo", "reward.reward_manager.name=mtgrpo", "the reward manager dapo is replaced"),
        ("trainer.v1.trainer_mode=colocate_async", "trainer.v1.trainer_mode=mtgrpo_colocate_async", ""),
        ("trainer.use_v1=False", "trainer.use_v1=True", ""),
        ("actor_rollout_ref.rollout.agent.default_agent_loop=mine", "", "mine is an agent loop of your own"),
        ("reward.reward_model.enable=True", "", "a reward model scores this recipe"),
        ("algorithm.use_kl_in_reward=True", "", "does not go with group statistics"),
        ("actor_rollout_ref.rollout.n=1", "", "actor_rollout_ref.rollout.n is 1"),
        (
            f"{TURNS}.max_tool_response_length=300",
            "",
            f"{TURNS}.max_tool_response_length=300 stays; the group has 4096",
        ),
        ("trainer.default_local_dir=/x", "", "checkpoints still go to /x"),
        ("model_engine=megatron", "", "the run is on Megatron"),
        (f"{TURNS}.function_tool_path=$NO/tools.py", "", "is not a file here, so its tools are not known"),
    ],
)
def test_settings_that_change_what_is_added_or_are_left_open(setting, added, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["python3", "-m", "verl.trainer.main_ppo", "actor_rollout_ref.rollout.n=4", setting]
    assert main(["init", "--out", "mine", "--", *given]) == 0
    printed = capsys.readouterr().out
    words = as_bash_reads_it(tmp_path / "mine" / "run.sh", tmp_path)
    assert words[: len(given) - 1] == given[1:]
    assert not added or added in words
    assert said in printed
    untouched = [word for word in words[len(given) - 1 :] if word.partition("=")[0] == setting.partition("=")[0]]
    assert untouched == [added] * bool(added)
