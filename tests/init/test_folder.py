"""Test the folder that is written: what is refused, and the turn rewards in it with rewards worked out by hand."""

from __future__ import annotations

import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import verl_mtgrpo.config
from tests.init.scripts import write
from verl_mtgrpo.cli.main import main
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.init.failures import unreported
from verl_mtgrpo.init.tools import tool_names
from verl_mtgrpo.rewards import Transcript, Turn
from verl_mtgrpo.rewards.presets import load_preset
from verl_mtgrpo.rewards.transcript import ToolCall

MAIN = "python3 -m verl.trainer.main_ppo"
LOOP = "actor_rollout_ref.rollout.agent.default_agent_loop"
TOOLS = """
from verl.tools import function_tool as ft
from verl.tools.function_tool import function_tool

raise SystemExit("this file was run")

@function_tool
def sql(query: str) -> str: ...

@function_tool("tables")
def list_tables() -> str: ...

@ft.function_tool(name="count")
async def counted(table: str) -> str: ...

def helper(): ...
"""


def init(folder: Path, *words: str) -> int:
    return main(["init", "--out", str(folder / "mine"), *words])


def test_names_of_tools_are_read_and_nothing_is_run(tmp_path):
    (tmp_path / "tools.py").write_text(TOOLS)
    assert tool_names(tmp_path / "tools.py") == ["sql", "tables", "count"]


@pytest.mark.parametrize("text", ["tools: [", "tools: 2026-13-45"])
def test_tools_that_cannot_be_read_are_refused(text, tmp_path):
    (tmp_path / "tools.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"(?s)tools in .*tools.yaml cannot be read: .*; name a Python file with"):
        tool_names(tmp_path / "tools.yaml")


def test_an_existing_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "turn_rewards.py").write_text("mine")
    assert init(tmp_path, "--", *MAIN.split(), "a=1") == 1
    assert "exists already; name another folder by --out" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["turn_rewards.py"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("/opt/venv/bin/python -m verl.trainer.main_ppo a=1", 'passes no arguments on to verl ("$@")'),
        ('uv run python3 -m verl.trainer.main_ppo "$@" algorithm.adv_estimator=grpo', 'behind "$@", where it wins'),
        ('uv run python3 -m verl.trainer.main_ppo a=${1:-2} "$@"', "reads $1 itself"),
    ],
)
def test_a_script_that_cannot_be_given_overrides(command, says, tmp_path, capsys):
    script = write(tmp_path, f"{command}\n")
    assert init(tmp_path, str(script)) == 1
    error = capsys.readouterr().err
    assert says in error and 'put "$@" at the end of its command' in error
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("words", [["no.sh"], ["--preset", "no", "--", *MAIN.split()], ["--", "a=1", "b=2"]])
def test_what_cannot_be_read_is_refused(words, tmp_path, capsys):
    assert init(tmp_path, *words) == 1
    assert "mtgrpo: error: " in capsys.readouterr().err


def written_rewards(folder: Path, *settings: str, function: str = "turn_rewards"):
    (folder / "tools.py").write_text(TOOLS)
    assert init(folder, "--tools", str(folder / "tools.py"), "--", *MAIN.split(), *settings) == 0
    return load_preset(f"{folder}/mine/turn_rewards.py:{function}")


def call(name: str, *, ok: bool = True) -> ToolCall:
    return ToolCall(name, "{}", result="r", ok=ok, why="" if ok else "no such table")


def test_the_written_turn_rewards(tmp_path):
    reward = written_rewards(tmp_path)
    turns = (
        Turn("a", (0, 1), (call("sql"), call("sql", ok=False))),
        Turn("b", (2, 3), (call("sql"), call("tables"))),
        Turn("c", (4, 5), (call("other"), call("unknown", ok=False))),
        Turn("d", (6, 7), (call("count", ok=False),)),
    )
    paid = reward(Transcript(turns=turns, end_reason="answered"), "x")
    # The first call of sql works (0.2) and the second fails (-0.1); later calls of sql earn nothing, the first of
    # tables does; a tool without a worth earns nothing; the last turn earns the outcome alone.
    assert paid.turns == pytest.approx((0.1, 0.2, -0.1, 0.0))
    assert paid.notes == (
        "first sql that worked; sql failed: no such table",
        "first tables that worked",
        "unknown failed: no such table",
        "",
    )
    assert paid.outcome == 0.0
    assert paid.components == {"tool/sql_worked": 1.0, "tool/tables_worked": 1.0, "tool/count_worked": 0.0}
    assert reward(Transcript(turns=(), end_reason="no_tokens"), "x").turns == ()
    assert "is in the last turn, which earns the outcome alone" in " ".join(
        (tmp_path / "mine" / "turn_rewards.py").read_text().replace("\n#", "").split()
    ), "broken JSON ends a rollout and costs nothing, as for the last turn above"
    assert len((tmp_path / "mine" / "turn_rewards.py").read_text().splitlines()) <= 40


def test_with_a_group_in_the_command_the_file_has_an_outcome_of_its_own(tmp_path):
    reward = written_rewards(tmp_path, "+mtgrpo=mt_grpo")
    right, wrong = (
        reward(Transcript(turns=(Turn(f"<answer>{said}</answer>", (0, 1)),), end_reason="answered"), ["Oslo"])
        for said in ("oslo", "Rome")
    )
    assert (right.outcome, wrong.outcome) == (1.0, 0.0)
    assert right.components["outcome/em"] == 1.0


FAILING = """
from verl.tools.function_tool import function_tool

def ask(query):
    try:
        return connection.execute(query)
    except ValueError as error:
        return f"SQL: {error}"

@function_tool
def catches(query: str) -> str:
    return ask(query)

@function_tool("says")
def in_words(query: str) -> str:
    return "Error: read only" if "DROP" in query else "3 rows"

@function_tool
def raises(query: str) -> str:
    'An error ends the call.'
    try:
        return connection.execute(query)
    except ValueError as error:
        raise RuntimeError("no such table: not found") from error

@function_tool
def plain(query: str) -> str:
    'Return rows, or an error.'
    return connection.execute(query)

@function_tool
def reports(query: str):
    try:
        return ask(query)
    except ValueError as error:
        return str(error), 0.0, {"ok": False, "why": str(error)}

@function_tool
def reports_by_name(query: str):
    try:
        return ask(query)
    except ValueError as error:
        return dict(ok=False)
"""


def test_tools_that_fail_in_words_are_warned_of_and_written_all_the_same(tmp_path, capsys):
    (tmp_path / "tools.py").write_text(FAILING)
    assert unreported(tmp_path / "tools.py") == ["catches", "says"]
    assert init(tmp_path, "--tools", str(tmp_path / "tools.py"), "--", *MAIN.split()) == 0
    said = capsys.readouterr().out
    assert "warning: catches seems never to report a failure" in said
    assert said.count("warning: ") == 2
    assert (tmp_path / "mine" / "run.sh").is_file()


CLASSES = """
from verl.tools.base_tool import BaseTool

def unreachable(error):
    return f"Error: {error}"

class Sums(BaseTool):
    async def execute(self, instance_id, parameters, **kwargs):
        return self.result(parameters["terms"]), 0.0, {}

    def result(self, terms):
        try:
            return str(sum(terms))
        except TypeError as error:
            return f"no sum: {error}"

class Reports(Sums):
    async def execute(self, instance_id, parameters, **kwargs):
        try:
            return str(sum(parameters["terms"])), 0.0, {}
        except TypeError as error:
            return unreachable(error), 0.0, {"ok": False, "why": str(error)}

class Raises(BaseTool):
    async def execute(self, instance_id, parameters, **kwargs):
        return str(sum(parameters["terms"])), 0.0, {}

    async def release(self, instance_id, **kwargs):
        try:
            del self.open[instance_id]
        except KeyError:
            pass

class Inherits(Sums):
    pass
"""


def test_tool_classes_of_a_yaml_that_fail_in_words_are_warned_of_too(tmp_path, monkeypatch):
    classes = [("sums", "tools.Sums"), ("reports", "tools.Reports"), ("raises", "tools.Raises")]
    classes += [("inherits", "tools.Inherits"), ("elsewhere", "no.such.module.Tool"), ("unnamed", "Tool")]
    listed = "".join(
        f"  - {{class_name: {of}, config: {{type: native}}, tool_schema: {{function: {{name: {name}}}}}}}\n"
        for name, of in classes
    )
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "tools.yaml").write_text(f"tools:\n{listed}")
    (tmp_path / "tools.py").write_text(CLASSES)
    monkeypatch.chdir("/")  # the classes are found from the YAML's own folder
    assert unreported(tmp_path / "config" / "tools.yaml") == ["sums"]
    assert unreported(Path(verl_mtgrpo.config.__path__[0]) / "tools" / "search_tool.yaml") == []


def test_questions_that_name_an_agent_loop_of_verls_are_told_with_a_command_that_writes_a_copy(tmp_path, capsys):
    file = tmp_path / "my train.parquet"
    pq.write_table(pa.table({"prompt": ["Where?", "When?"], "agent_name": ["tool_agent", "single_turn_agent"]}), file)
    assert init(tmp_path, "--", *MAIN.split(), f"data.train_files={file}") == 0
    line = next(one for one in capsys.readouterr().out.splitlines() if "agent_name" in one)
    assert f"rows of {file} name the agent loop single_turn_agent, tool_agent" in line
    python, option, code = shlex.split(line[line.index("python3 -c") :])
    assert (python, option) == ("python3", "-c")
    exec(code, {})
    assert pq.read_table(tmp_path / "my train_turns.parquet").to_pydict() == {"prompt": ["Where?", "When?"]}
    assert pq.read_schema(file).names == ["prompt", "agent_name"], "the user's file is left as it is"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "in this run it means mtgrpo_tool_agent, so the file can stay"),
        ((f"{LOOP}=tool_agent",), "in this run it means mtgrpo_tool_agent, so the file can stay"),
        ((f"{LOOP}=mtgrpo_raw_agent",), "in this run it means mtgrpo_raw_agent, so the file can stay"),
        ((f"{LOOP}=my_loop",), "Use a copy without the column"),
    ],
)
def test_questions_of_verls_tool_examples_stay_as_they_are(tmp_path, capsys, words, said):
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table({"prompt": ["Where?"], "agent_name": ["tool_agent"]}), file)
    assert init(tmp_path, "--", *MAIN.split(), f"data.train_files={file}", *words) == 0
    assert said in next(one for one in capsys.readouterr().out.splitlines() if "(column agent_name)" in one)
