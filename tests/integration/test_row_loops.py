"""Rows that name verl's tool agent, as those of verl's tool examples do: which loop they get, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("verl")

from verl.utils import tensordict_utils as tu

from tests.composed import composed
from verl_mtgrpo.data.rows import make_row, write_parquet
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.parts import LOOPS
from verl_mtgrpo.integration.row_loops import check_agent_names, use_default_loop
from verl_mtgrpo.integration.trees import ask_for_trees

pytestmark = pytest.mark.compose

AGENT = "actor_rollout_ref.rollout.agent"
LOOP, MANAGER = f"{AGENT}.default_agent_loop", f"{AGENT}.agent_loop_manager_class"
FILE = f"{AGENT}.agent_loop_config_path"


def config(*overrides: str, preset: str = "mt_grpo"):
    return composed("actor_rollout_ref.rollout.n=8", *overrides, preset=preset)


@pytest.fixture
def questions(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("theirs.yaml").write_text("- name: tool_agent\n  _target_: my.Loop\n")
    Path("mine.yaml").write_text("- name: my_loop\n  _target_: my.Loop\n")

    def write(*agents: str) -> str:
        row = make_row("Where?", ["Oslo"], index=0, split="train", id="0", data_source="toy")
        write_parquet([{**row, "agent_name": agent} for agent in agents], tmp_path / "train.parquet")
        return str(tmp_path / "train.parquet")

    return write


def read(batch, column: str = "agent_name") -> list:
    """What verl's worker reads of each row."""
    return [dict(batch.items())[column][row].data for row in range(len(batch))]


def prompts(*agents: str):
    return tu.get_tensordict({"uid": np.array([*"abc"], dtype=object), "agent_name": np.array(agents, dtype=object)})


# ---- the batch


@pytest.mark.parametrize("loop", LOOPS)
def test_verls_tool_agent_means_the_loop_of_the_run(loop):
    batch = prompts("tool_agent", "my_loop", "tool_agent")
    assert use_default_loop(batch, config(f"{LOOP}={loop}")) == 2
    assert read(batch) == [loop, "my_loop", loop]
    assert [name for part in batch.chunk(2) for name in read(part)] == [loop, "my_loop", loop], "as for two workers"


def test_rows_of_verls_tool_examples_grow_trees():
    batch = prompts("tool_agent", "single_turn_agent", "tool_agent")
    use_default_loop(batch, run := config(preset="arpo"))
    ask_for_trees(batch, run)
    assert read(batch, "mtgrpo_leaves") == [8, 0, 8]


@pytest.mark.parametrize(
    ("agents", "overrides"),
    [
        (["mtgrpo_raw_agent", "single_turn_agent", "my_loop"], []),
        (["tool_agent"] * 3, [f"{LOOP}=my_loop"]),
        (["tool_agent"] * 3, [f"{FILE}=theirs.yaml"]),
    ],
)
def test_other_rows_keep_their_loop(questions, agents, overrides):
    batch = prompts(*agents)
    assert use_default_loop(batch, config(*overrides)) == 0
    assert read(batch) == agents


def test_rows_without_the_column_get_none():
    batch = tu.get_tensordict({"uid": np.array(["a"], dtype=object)})
    assert use_default_loop(batch, config()) == 0
    assert "agent_name" not in batch


# ---- the file


@pytest.mark.parametrize(
    ("agents", "overrides", "said"),
    [
        (["tool_agent"], [], "agent_name=tool_agent in rows means mtgrpo_tool_agent"),
        (["tool_agent", "my_loop"], [f"{FILE}=mine.yaml"], "agent_name=tool_agent in rows means mtgrpo_tool_agent"),
        (["tool_agent"], [f"{LOOP}=mtgrpo_raw_agent"], "agent_name=tool_agent in rows means mtgrpo_raw_agent"),
        (["mtgrpo_tool_agent"], [], ""),
        (["my_loop"], [], ""),
        (["my_loop"], [f"{LOOP}=my_loop"], ""),
    ],
)
def test_what_becomes_of_rows_is_said(questions, agents, overrides, said):
    assert check_agent_names(questions(*agents), config(*overrides)) == said


@pytest.mark.parametrize(
    ("agents", "overrides", "said"),
    [
        (
            ["single_turn_agent"],
            [f"{LOOP}=mtgrpo_raw_agent"],
            r"single_turn_agent, .*drop.*mtgrpo_raw_agent into it\. A copy",
        ),
        (["single_turn_agent", "tool_agent"], [], r"single_turn_agent, which"),
        (["tool_agent"], [f"{LOOP}=my_loop"], r"tool_agent, .*write mtgrpo_tool_agent into it\. A copy"),
        (["tool_agent"], [f"{LOOP}=tool_agent"], rf"tool_agent, .*set {LOOP}=mtgrpo_tool_agent: .*can stay as it is$"),
        (["tool_agent"], [f"{LOOP}=tool_agent", f"{FILE}=theirs.yaml"], r"tool_agent, .*into it\. A copy"),
        (["tool_agent"], [f"{FILE}=theirs.yaml"], r"tool_agent, .*into it\. A copy"),
        (
            ["tool_agent"],
            [f"{MANAGER}=null"],
            rf"tool_agent, .*, or set {MANAGER}=verl_mtgrpo.*TurnAgentLoopManager, which",
        ),
    ],
)
def test_rows_that_would_be_rolled_out_by_a_loop_of_verls_are_refused(questions, agents, overrides, said):
    with pytest.raises(ConfigError, match=rf"train.parquet has a column agent_name with {said}"):
        check_agent_names(questions(*agents), config(*overrides))
