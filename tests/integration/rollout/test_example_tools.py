"""The tools of ``examples/tools`` in our agent loop: a real MCP server, and a server with the sandbox's API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

pytest.importorskip("verl")

from verl.tools.function_tool import load_function_tools_from_path
from verl.tools.schemas import OpenAIFunctionToolSchema

from tests.agent_loops import run, transcript_of
from tests.retrieval.services import free_port
from verl_mtgrpo.integration.rollout.agent_loop import TurnToolAgentLoop
from verl_mtgrpo.own_code import load_file
from verl_mtgrpo.rewards import load_preset, pay

pytestmark = [pytest.mark.compose, pytest.mark.process, pytest.mark.network]

EXAMPLES = Path(__file__).parents[3] / "examples" / "tools"
CALLS = f"{EXAMPLES / 'call_rewards.py'}:calls"
RIGHT = "<answer>{}</answer>"


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def played(config, tokenizer, tool, script, truth):
    """Return the calls of a rollout, why it ended, and what its turns are paid."""
    output = run(TurnToolAgentLoop, config, tokenizer, [tool], script=script, response_length=600)
    transcript = transcript_of(output)
    rewards = load_preset(CALLS)(transcript, {"target": [truth]})
    calls = [one for turn in transcript.turns for one in turn.tool_calls]
    return calls, transcript.end_reason, pay(rewards, len(transcript.turns), "turns")


# ---- the sandbox


class Sandbox(BaseHTTPRequestHandler):
    """Answers as SandboxFusion's ``/run_code`` does, and really runs the program."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["language"] == "python" and asked["run_timeout"] == 10
        done = subprocess.run([sys.executable, "-I", "-c", asked["code"]], capture_output=True, text=True, check=False)
        result = {"status": "Finished", "stdout": done.stdout, "stderr": done.stderr, "return_code": done.returncode}
        body = json.dumps({"status": "Failed" if done.returncode else "Success", "run_result": result}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def sandbox(monkeypatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sandbox)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SANDBOX_URL", f"http://127.0.0.1:{server.server_port}/run_code")
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture
def python_tool():
    (tool,) = load_function_tools_from_path(str(EXAMPLES / "code_tool.py"))
    return tool


def test_code_that_runs_and_code_that_fails(config, tokenizer, python_tool, sandbox):
    script = [call("python", code="print(6 * 7)"), call("python", code="print(1 / 0)"), RIGHT.format(42)]
    calls, reason, paid = played(config, tokenizer, python_tool, script, "42")
    assert [(one.ok, one.error_kind, one.reward) for one in calls] == [(True, None, 0.2), (False, "tool_error", 0.0)]
    assert calls[0].result == "42"
    assert calls[1].result.endswith("ZeroDivisionError: division by zero")
    assert (reason, paid) == ("answered", [0.2, 0.0, 1.0])


def test_a_sandbox_that_is_down(config, tokenizer, python_tool, monkeypatch):
    monkeypatch.setenv("SANDBOX_URL", f"http://127.0.0.1:{free_port()}/run_code")
    (one,), reason, _ = played(config, tokenizer, python_tool, [call("python", code="1"), RIGHT.format(1)], "42")
    assert (reason, one.ok, one.error_kind) == ("outage", False, "outage")
    assert "the sandbox: " in one.error


# ---- MCP


def mcp_tool(**changes):
    pytest.importorskip("mcp")
    module = load_file(EXAMPLES / "mcp_tool.py")
    (entry,) = yaml.safe_load((EXAMPLES / "mcp_tool.yaml").read_text())["tools"]
    command = [sys.executable, str(EXAMPLES / "mcp_server.py")]
    env = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    settings = {**entry["config"], "timeout_s": 120, "command": command, "env": env, **changes}
    return module.MCPTool(settings, OpenAIFunctionToolSchema.model_validate(entry["tool_schema"]))


@contextmanager
def served() -> Iterator[str]:
    """Start the server over HTTP and yield its address."""
    port = free_port()
    process = subprocess.Popen([sys.executable, str(EXAMPLES / "mcp_server.py"), str(port)])
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/mcp", timeout=5)
            except urllib.error.HTTPError:  # it is there, and wants another kind of request
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait()


SCRIPT = [
    call("convert", value=3, unit="km", to="m"),
    call("convert", value=3, unit="parsec", to="m"),
    RIGHT.format("3000 m"),
]


@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_a_tool_of_an_mcp_server(config, tokenizer, transport):
    tool = mcp_tool()
    if transport == "stdio":
        calls, reason, paid = played(config, tokenizer, tool, SCRIPT, "3000 m")
    else:
        with served() as url:
            calls, reason, paid = played(config, tokenizer, mcp_tool(command=None, url=url), SCRIPT, "3000 m")
    assert [(one.ok, one.error_kind, one.reward) for one in calls] == [(True, None, 0.1), (False, "tool_error", 0.0)]
    assert calls[0].result == "3000 m"
    assert "unknown unit 'parsec', known are m, km, mile, foot" in calls[1].result
    assert (reason, paid) == ("answered", [0.1, 0.0, 1.0])


def test_an_mcp_server_that_is_down(config, tokenizer):
    tool = mcp_tool(command=None, url=f"http://127.0.0.1:{free_port()}/mcp")
    (one,), reason, _ = played(config, tokenizer, tool, SCRIPT[:1], "3000 m")
    assert (reason, one.ok, one.error_kind) == ("outage", False, "outage")
    assert "the MCP server of convert: " in one.error
