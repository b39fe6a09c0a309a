"""Test the outcome of tool calls: the dict that verl passes on, and tools that raise or return odd values."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest

pytest.importorskip("verl")

from verl.tools.base_tool import BaseTool
from verl.tools.function_tool import FUNCTION_TOOL_REGISTRY, FunctionTool, function_tool
from verl.tools.schemas import OpenAIFunctionToolSchema, ToolResponse

from tests.agent_loops import GOOD, final_answer, run, transcript_of
from verl_mtgrpo.errors import ToolError
from verl_mtgrpo.integration.rollout.agent_loop import TurnToolAgentLoop
from verl_mtgrpo.integration.rollout.tool_outcome import ToolOutcome, watched
from verl_mtgrpo.passages import Passage

pytestmark = pytest.mark.compose

PASSAGE = Passage("p1", "Velm", "A town.", 1.5)


def test_an_outcome_goes_through_verls_dict_and_back():
    outcome = ToolOutcome(
        ok=False,
        error_kind="busy",
        documents=[PASSAGE],
        repeat=True,
        faults=("timeout", "busy"),
        outage="overloaded",
        on_outage="raise",
        latency_s=0.5,
        why="too many",
        changed=False,
    )
    info = outcome.to_info()
    assert info["documents"] == [{"id": "p1", "title": "Velm", "text": "A town.", "score": 1.5}]
    assert ToolOutcome.from_info(info) == outcome
    assert ToolOutcome.from_info(ToolOutcome().to_info()) == ToolOutcome()


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({}, ToolOutcome()),
        (None, ToolOutcome()),
        ("a text", ToolOutcome()),
        ({"mine": 3}, ToolOutcome()),
        ({"ok": True}, ToolOutcome()),
        ({"ok": False}, ToolOutcome(ok=False, error_kind="tool_error")),
        ({"ok": False, "error_kind": "bad_arguments"}, ToolOutcome(ok=False, error_kind="bad_arguments")),
        ({"ok": False, "why": "no table"}, ToolOutcome(ok=False, error_kind="tool_error", why="no table")),
        ({"ok": True, "why": "because"}, ToolOutcome()),
        ({"why": "measurement of its own"}, ToolOutcome()),
        ({"ok": 0}, ToolOutcome(ok=False, error_kind="tool_error")),
        ({"ok": 1.0}, ToolOutcome()),
        ({"ok": True, "changed": True}, ToolOutcome(changed=True)),
        ({"ok": True, "changed": False}, ToolOutcome(changed=False)),
        ({"changed": True}, ToolOutcome(changed=True)),
        ({"changed": 3}, ToolOutcome()),
        ({"changed": "3 rows"}, ToolOutcome()),
        ({"ok": True, "error_kind": "no_hits"}, ToolOutcome(error_kind="no_hits")),
        ({"error_kind": "a word of my own"}, ToolOutcome()),
        ({"outage": "why"}, ToolOutcome(ok=False, error_kind="outage", outage="why")),
        ({"ok": False, "outage": "why"}, ToolOutcome(ok=False, error_kind="outage", outage="why")),
        ({"outage": "why", "error_kind": "timeout"}, ToolOutcome(ok=False, error_kind="timeout", outage="why")),
        ({"outage": "why", "error_kind": "mine"}, ToolOutcome(ok=False, error_kind="outage", outage="why")),
        ({"documents": "three of them"}, ToolOutcome()),
        ({"documents": [{"id": "1", "page": 2}]}, ToolOutcome()),
        ({"documents": [{"id": "1", "title": "T", "text": "x"}]}, ToolOutcome(documents=[Passage("1", "T", "x")])),
        ({"faults": "timeout"}, ToolOutcome()),
        ({"faults": ["timeout", 3]}, ToolOutcome(faults=("timeout", "3"))),
        ({"latency_s": "soon"}, ToolOutcome()),
        ({"latency_s": float("nan")}, ToolOutcome()),
        ({"latency_s": 2}, ToolOutcome(latency_s=2.0)),
    ],
    ids=str,
)
def test_a_tool_of_ones_own_may_say_a_part_of_it_or_use_the_names_otherwise(info, expected):
    assert ToolOutcome.from_info(info) == expected


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (
            {"ok": "false"},
            r"the tool 'sql' reported ok='false' \(str\) of a call \(in its third return value\), expected True or "
            r'False; return \{"ok": False, "why": "the reason"\} for a call that failed, \{"ok": True\} for one that',
        ),
        ({"ok": "true"}, "ok='true'"),
        ({"ok": ""}, "ok=''"),
        ({"ok": b"no"}, "ok=b'no'"),
        ({"ok": 0.3}, r"ok=0.3 \(float\)"),
        ({"ok": float("nan")}, "ok=nan"),
        ({"ok": 2}, "ok=2"),
        ({"ok": "x" * 200}, "ok='x{78}…"),
        ({"ok": True, "changed": "false"}, "reported changed='false'"),
        ({"ok": False, "changed": 3}, "reported changed=3"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_report_that_python_would_take_for_something_else_is_refused(info, message):
    with pytest.raises(ToolError, match=message):
        ToolOutcome.from_info(info, "sql")


class Odd(BaseTool):
    """Fails in the given way."""

    def __init__(self, how):
        parameters = {"type": "object", "properties": {}, "required": []}
        function = {"name": "search", "description": "Search.", "parameters": parameters}
        super().__init__({}, OpenAIFunctionToolSchema.model_validate({"type": "function", "function": function}))
        self.how, self.released = how, 0

    async def create(self, instance_id=None, **kwargs):
        if self.how == "create":
            raise RuntimeError("no room")
        return await super().create(instance_id, **kwargs)

    async def execute(self, instance_id, parameters, **kwargs):
        if self.how == "execute":
            raise RuntimeError("no connection")
        if self.how == "two values":
            return ToolResponse(text="found"), 0.0
        reports = {"plain": {"status": "success", "rows": 3}, "no": {"ok": "false"}, "nothing": None}
        report = reports.get(self.how, {})
        return ToolResponse(text="Error executing tool 'search': an article on error messages"), 0.25, report

    async def release(self, instance_id, **kwargs):
        self.released += 1


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("create", "tool_exception"),
        ("execute", "tool_exception"),
        ("two values", "tool_exception"),
        ("quotes", None),
        ("plain", None),
        ("nothing", None),
    ],
)
def test_a_tool_that_raises_and_one_that_only_sounds_like_it(config, tokenizer, how, kind):
    tool = Odd(how)
    output = run(TurnToolAgentLoop, config, tokenizer, [tool], script=[GOOD, final_answer("x")], response_length=400)
    (call,) = transcript_of(output).turns[0].tool_calls
    assert (call.ok, call.error_kind, call.reward) == (kind is None, kind, 0.25 if kind is None else 0.0)
    assert call.result.startswith("Error executing tool 'search'")
    assert tool.released == (how != "create")


def search_function_that(answers):
    """Return a function tool, and leave verl's global registry as it was."""

    @function_tool
    def search(query: str):
        """Search.

        Args:
            query: What to look for.
        """
        return answers(query)

    return FUNCTION_TOOL_REGISTRY.pop("search")


def test_a_rollout_fails_whose_tool_says_no_in_words(config, tokenizer):
    script = [GOOD, final_answer("x")]
    with pytest.raises(ToolError, match=r"the tool 'search' reported ok='false'"):
        run(TurnToolAgentLoop, config, tokenizer, [Odd("no")], script=script, response_length=400)


@pytest.mark.parametrize(
    ("answer", "ok", "why", "changed"),
    [
        ({"ok": False, "why": "no table"}, False, "no table", None),
        (({"ok": False, "why": "no table"}, 0.0), False, "no table", None),
        (("no table", 0.0, {"ok": False, "why": "no table"}), False, "no table", None),
        ({"ok": True, "changed": True, "rows": [1]}, True, "", True),
        ({"ok": True, "changed": "3 rows"}, True, "", None),
        ({"ok": "false"}, True, "", None),
        ({"rows": 3}, True, "", None),
    ],
    ids=str,
)
def test_a_function_tool_reports_beside_its_answer_or_as_its_answer(config, tokenizer, answer, ok, why, changed):
    """A dict that is the answer itself is what the model reads: only a boolean ok in it is a report."""
    tool = search_function_that(lambda query: answer)
    output = run(TurnToolAgentLoop, config, tokenizer, [tool], script=[GOOD, final_answer("x")], response_length=400)
    (call,) = transcript_of(output).turns[0].tool_calls
    assert (call.ok, call.why, call.changed) == (ok, why, changed)
    first = answer[0] if isinstance(answer, tuple) else answer
    assert call.result == (first if isinstance(first, str) else json.dumps(first)), "the model reads all of it"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (("one", 0.0, {}, "too many"), "tool_exception"),
        ({"found": "Oslo"}, None),
        (7, None),
        (("one", 0.5, None), None),
    ],
    ids=str,
)
def test_what_a_function_tool_may_return_is_verls_to_say(config, tokenizer, answer, kind):
    tool = search_function_that(lambda query: answer)
    output = run(TurnToolAgentLoop, config, tokenizer, [tool], script=[GOOD, final_answer("x")], response_length=400)
    (call,) = transcript_of(output).turns[0].tool_calls
    assert (call.ok, call.error_kind) == (kind is None, kind)


def test_a_watched_tool_is_the_tool_in_everything_else():
    tool = Odd("quotes")
    seen = watched(tool)
    assert (seen.name, seen.tool_schema, seen.how) == ("search", tool.tool_schema, "quotes")

    class Mine(FunctionTool):
        """A subclass of verl's function tool, as a user may write one."""

    mine = watched(Mine(name="mine", fn=str, tool_schema=tool.tool_schema))
    assert isinstance(mine, FunctionTool) and mine.name == "mine"


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda tool: pickle.loads(pickle.dumps(tool))])
def test_a_copy_of_a_watched_tool_is_a_watched_tool(twin):
    copied = twin(watched(Odd("quotes")))
    assert (type(copied), copied.how) == (type(watched(Odd("quotes"))), "quotes")
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = copied.no_such_name


@pytest.mark.process
def test_the_module_can_be_imported_first():
    subprocess.run([sys.executable, "-c", "import verl_mtgrpo.integration.rollout.tool_outcome"], check=True)
