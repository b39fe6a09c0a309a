"""Test what a trial says of the tools' answers."""

from __future__ import annotations

import json

from verl_mtgrpo.rewards import ToolCall, Transcript, Turn
from verl_mtgrpo.toy.answers import answers, calls_in


def test_one_good_and_one_failed_call_of_each_tool_and_errors_that_counted_as_answers(tmp_path):
    calls = (
        ToolCall("sql", '{"query": "x"}', result='SQL error: near "x"'),
        ToolCall("sql", '{"query": "SELECT 1"}', result="1"),
        ToolCall("sql", "{}", result="Error", ok=False, error_kind="tool_error", why="no query"),
        ToolCall("tables", "{}", result="goods"),
        ToolCall("nothing", "{}", result="Error: no tool nothing", ok=False, error_kind="unknown_tool"),
    )
    for name, some in (("10", calls[2:]), ("9", calls[:2])):
        rollout = Transcript(turns=(Turn("a", (0, 1), some), Turn("b", (2, 3))), end_reason="answered")
        line = json.dumps({"transcript": json.dumps(rollout.to_dict())})
        (tmp_path / f"{name}.jsonl").write_text(f"{line}\n")
    assert calls_in(tmp_path) == list(calls), "step 9 comes before step 10"
    assert calls_in(tmp_path / "none") == []
    said = list(answers(calls_in(tmp_path)))
    assert said[0] == "nothing: 1 of 1 calls failed, such as {} -> Error: no tool nothing"
    assert said[1] == 'sql: 2 of 3 calls answered, such as {"query": "x"} -> SQL error: near "x"'
    assert said[2] == "sql: 1 of 3 calls failed, such as {} -> no query"
    assert said[3].startswith("warning: 1 of the 2 answers of sql sound like failures and are paid")
    assert said[4:] == ["tables: 1 of 1 calls answered, such as {} -> goods"], "an error that is reported is no warning"


def test_a_call_without_a_name_is_said_to_have_none():
    (said,) = answers([ToolCall("", '{"na', result="", ok=False, error_kind="bad_arguments")])
    assert said == 'a call without a name that can be read: 1 of 1 calls failed, such as {"na -> bad_arguments'


def test_a_text_for_ok_in_a_dict_that_the_model_reads_is_warned_of():
    said_false = """{"ok": "false", "why": "no such unit"}"""
    calls = [ToolCall("convert", "{}", result=said_false), ToolCall("convert", "{}", result="{'ok': True, 'is': 'no'}")]
    warned = [line for line in answers(calls) if line.startswith("warning: ")]
    assert len(warned) == 1 and "1 of the 2 answers of convert sound like failures" in warned[0]
