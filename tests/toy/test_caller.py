"""Test arguments made up from schemas, against JSON Schema's own validator, and the rates of habits."""

from __future__ import annotations

import json
import random
from collections import Counter

import jsonschema
import pytest

from verl_mtgrpo.errors import DataError
from verl_mtgrpo.toy.arguments import examples, sample_arguments
from verl_mtgrpo.toy.caller import NO_SUCH_TOOL, Caller, Habits, Question, answer_text, question_of_row
from verl_mtgrpo.toy.rows import first_rows, read_calls

PARAMETERS = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "unit": {"type": "string", "enum": ["km", "mi"]},
        "count": {"type": "integer", "minimum": 3, "maximum": 5},
        "share": {"type": "number", "minimum": 0, "maximum": 1},
        "deep": {"type": "boolean"},
        "names": {"type": "array", "items": {"type": "string"}},
        "where": {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}},
        "perhaps": {"type": ["null", "string"]},
    },
    "required": ["text", "unit", "count", "names"],
}
SCHEMA = {"type": "function", "function": {"name": "look", "parameters": PARAMETERS}}
OTHER = {
    "type": "function",
    "function": {
        "name": "sql",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "SQL, for example SELECT a FROM t. Ends."}},
            "required": ["query"],
        },
    },
}
QUESTIONS = [Question(({"role": "user", "content": f"How many lamps are in room {n}?"},), str(n)) for n in range(3)]


def test_made_up_arguments_fit_the_schema():
    rng = random.Random(0)
    seen = Counter[str]()
    for _ in range(300):
        arguments = sample_arguments(SCHEMA, ["how", "many", "lamps"], rng)
        jsonschema.validate(arguments, PARAMETERS)
        json.dumps(arguments)
        seen.update(list(arguments))
        assert set(arguments["text"].split()) <= {"how", "many", "lamps"}, "a text is made of the question's words"
    assert all(seen[name] == 300 for name in PARAMETERS["required"])
    assert all(30 < seen[name] < 170 for name in PARAMETERS["properties"] if name not in PARAMETERS["required"])


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        ({"enum": [1, 2]}, [1, 2]),
        ({"type": "string", "examples": ["a", "b"], "default": "c"}, ["a", "b"]),
        ({"type": "integer", "default": 0}, [0]),
        ({"type": "string", "description": "A query, for example SELECT a.b FROM t WHERE n = 'x'. Short."},
         ["SELECT a.b FROM t WHERE n = 'x'"]),
        ({"type": "string", "description": 'The unit (e.g. "km").'}, ["km"]),
        ({"type": "string", "description": "Anything."}, []),
        ({"type": "integer", "description": "For example 3."}, []),
    ],
)  # fmt: skip
def test_examples_of_the_schema_come_first(schema, found):
    assert examples(schema) == found


def turns(caller: Caller, count: int) -> list[list[str]]:
    made = [caller.drill().messages for _ in range(count)]
    return [[one["content"] for one in messages if one["role"] == "assistant"] for messages in made]


def test_habits_are_as_often_as_asked_for():
    habits = Habits()
    made = turns(Caller([SCHEMA, OTHER], QUESTIONS, seed=1), 4000)
    share = {"no_call": sum("<tool_call>" not in one[0] for one in made) / len(made)}
    calls = [turn.removeprefix("<tool_call>").removesuffix("</tool_call>") for one in made for turn in one]
    calls = [call for call in calls if call.startswith("{")]
    kinds = Counter[str]()
    for call in calls:
        try:
            said = json.loads(call)
        except ValueError:
            kinds["broken_json"] += 1
            continue
        if said["name"] == NO_SUCH_TOOL:
            kinds["unknown_tool"] += 1
            continue
        schema = {"look": PARAMETERS, "sql": OTHER["function"]["parameters"]}[said["name"]]
        missing = [name for name in schema["required"] if name not in said["arguments"]]
        kinds["missing_argument"] += bool(missing)
        kinds[said["name"]] += not missing
    share |= {kind: kinds[kind] / len(calls) for kind in ("broken_json", "unknown_tool", "missing_argument")}
    # Four standard deviations of a share of some 3,500 draws are below 0.03.
    for kind, got in share.items():
        assert got == pytest.approx(getattr(habits, kind), abs=0.03), kind
    assert kinds["look"] == pytest.approx(kinds["sql"], rel=0.15), "each tool as often"
    ends = [one[-1] for one in made if "<tool_call>" not in one[-1]]
    assert sum("<answer>" not in one for one in ends) / len(ends) == pytest.approx(habits.bare_answer, abs=0.03)
    assert sum(len(one) == 3 for one in made) > 500, "some call twice"


def test_calls_of_the_user_replace_made_up_ones_and_without_tools_only_answers_are_given():
    always = Habits(no_call=0, broken_json=0, unknown_tool=0, missing_argument=0)
    caller = Caller([OTHER], QUESTIONS, calls={"sql": [{"query": "SELECT 1"}]}, habits=always)
    assert {one[0] for one in turns(caller, 50)} == {
        '<tool_call>{"name": "sql", "arguments": {"query": "SELECT 1"}}</tool_call>'
    }
    assert all(len(one) == 1 and "<tool_call>" not in one[0] for one in turns(Caller([], QUESTIONS), 50))


def test_half_of_the_answers_end_a_conversation_of_roles():
    ends = [one[-1] for one in turns(Caller([], QUESTIONS, finish="[END]"), 1000)]
    assert sum(one.endswith(" [END]") for one in ends) / len(ends) == pytest.approx(0.5, abs=0.07)


def test_answers_have_the_marks_that_the_prompt_asks_for():
    def asked(text: str) -> str:
        return answer_text(Question(({"role": "user", "content": text},), "7"), "7")

    assert asked("How many?") == "<answer>7</answer>"
    assert asked("Put it after ####.") == "#### 7"
    assert asked("Put it in \\boxed{} and <answer>") == "\\boxed{7} <answer>7</answer>"


def test_rows_of_the_users_own():
    row = {"prompt": [{"role": "user", "content": "q"}], "reward_model": {"ground_truth": {"target": ["a", "b"]}}}
    assert question_of_row(row) == Question(({"role": "user", "content": "q"},), "a")
    for truth, answer in [("72", "72"), (72, "72"), ("x" * 61, ""), (None, "")]:
        assert question_of_row({**row, "reward_model": {"ground_truth": truth}}).answer == answer
    with pytest.raises(DataError, match="the column prompt is 'q', expected a list of messages"):
        question_of_row({"prompt": "q"})


def test_files_of_the_users_own(tmp_path):
    file = tmp_path / "calls.jsonl"
    file.write_text('{"name": "a", "arguments": {"x": 1}}\n{"name": "a", "arguments": {}}\n')
    assert read_calls(file) == {"a": [{"x": 1}, {}]} and read_calls(None) == {}
    file.write_text('{"name": "a"}\n')
    with pytest.raises(DataError, match=r"calls\.jsonl, line 1 is '\{\"name\": \"a\"\}'"):
        read_calls(file)
    assert first_rows(None) == first_rows(["no.parquet", tmp_path]) == []
