"""examples/mixtures: real HTTP servers that propose turns, and the router's gradient."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import torch
from omegaconf import OmegaConf

pytest.importorskip("verl")
pytest.importorskip("openai")

from tests.agent_loops import GOOD, PROMPT, final_answer, run, transcript_of
from verl_mtgrpo.data.rows import make_row, write_parquet
from verl_mtgrpo.demo.policy import build_tokenizer
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.rollout.agent_loop import TurnToolAgentLoop
from verl_mtgrpo.integration.rollout.decide_loop import DecideAgentLoop
from verl_mtgrpo.launch.command import TrainCommand
from verl_mtgrpo.own_code import load_file
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.retrieval import BM25Index

pytestmark = [pytest.mark.compose, pytest.mark.network]

FILE = Path(__file__).parents[3] / "examples" / "mixtures" / "mixture.py"
RIGHT, WRONG = [GOOD, final_answer("Oslo")], [final_answer("Pim"), final_answer("Pim")]


def load(name):
    return load_file(FILE.with_name(f"{name}.py"))


@pytest.fixture(scope="module")
def mixture():
    return load("mixture")


class _Policy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open unless the client closes them

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked["messages"])
        text = self.server.says[sum(one["role"] == "assistant" for one in asked["messages"])]
        log_probs = {"content": [{"token": "t", "logprob": -0.25, "top_logprobs": []}] * 2}
        choice = {"index": 0, "finish_reason": "stop", "logprobs": log_probs}
        choice["message"] = {"role": "assistant", "content": text}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "policy", "choices": [choice]}
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def policies():
    """Return the addresses of two servers, a skilled one and another, and the servers."""
    servers = []
    for says in (WRONG, RIGHT):
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Policy)
        server.says, server.asked = says, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
    yield [f"http://127.0.0.1:{server.server_address[1]}/v1" for server in servers], servers
    for server in servers:
        server.shutdown()
        server.server_close()


def supported(transcript, turn):
    """Score searches, and answers that a result supports."""
    return 1.0 if turn.tool_calls or (transcript.turns and "Oslo" in turn.text) else 0.0


async def prefers_pim(transcript, text):
    """Return a reference's log-prob: the answer Pim is what it writes."""
    return 0.0 if text == final_answer("Pim") else -100.0


def played(config, tokenizer, tools, name, options, index=0):
    whole = config.copy()
    OmegaConf.set_struct(whole, False)
    score = "" if name == "Router" else "tests.integration.rollout.test_example_mixtures:supported"
    whole.trainer = {"turn": {"decide": {"by": f"{FILE}:{name}", "score": score, "options": options}}}
    row = {"global_steps": 0, "index": index, "session_id": 0, "mtgrpo_decides": "validation"}
    return run(DecideAgentLoop, whole, tokenizer, tools, row=row, response_length=400)


@pytest.mark.parametrize(("asked", "script"), [(0, WRONG[:1]), (1, RIGHT)])
def test_a_one_hot_router_is_that_server_alone_token_for_token(config, tokenizer, tools, policies, asked, script):
    addresses, servers = policies
    one_hot = [[100.0 if one == asked else -100.0 for one in range(2)]]
    output = played(config, tokenizer, tools, "Router", {"servers": addresses, "logits": one_hot})
    alone = run(TurnToolAgentLoop, config, tokenizer, tools, script=list(script), response_length=400)
    assert output.response_ids == alone.response_ids and output.response_mask == alone.response_mask
    assert len(servers[asked].asked) == len(script) and not servers[1 - asked].asked
    if asked:
        said = [(one["role"], one["content"]) for one in servers[1].asked[-1]]
        assert said[-2:] == [("assistant", GOOD), ("user", "Doc 1 about tower of Pim: it is in Oslo.")]


def test_the_mixture_takes_the_turns_of_the_server_with_the_higher_value(config, tokenizer, tools, policies):
    addresses, servers = policies
    output = played(config, tokenizer, tools, "Mixture", {"servers": addresses})
    assert [turn.text for turn in transcript_of(output).turns] == RIGHT
    assert len(servers[0].asked) == len(servers[1].asked) == 2
    assert output.extra_fields["decide"]["decide/changed"] == 1.0


def test_a_reference_named_on_the_command_line_pulls_the_mixture_to_it(config, tokenizer, tools, policies):
    addresses, _ = policies
    name = "tests.integration.rollout.test_example_mixtures:prefers_pim"
    for alpha, turns in ((0.1, WRONG[:1]), (0.0, RIGHT)):  # 0.1 (-0.5 + 100) outweighs the scorer's 1
        options = {"servers": addresses, "alpha": alpha, "reference": name}
        output = played(config, tokenizer, tools, "Mixture", options)
        assert [turn.text for turn in transcript_of(output).turns] == turns


def test_several_methods_share_a_validation_by_the_rows_number(config, tokenizer, tools, policies, tmp_path):
    addresses, _ = policies
    alone = {"by": "Router", "servers": addresses, "logits": [[0.0, -1e9]]}
    methods = [alone, {"by": "Mixture", "servers": addresses}]
    file = tmp_path / "methods.json"
    file.write_text(json.dumps({"size": 2, "deciders": methods}))
    said = []
    for index in range(4):
        output = played(config, tokenizer, tools, "Methods", {"file": str(file)}, index=index)
        said.append([turn.text for turn in transcript_of(output).turns])
    assert said == [WRONG[:1], WRONG[:1], RIGHT, RIGHT]


def test_no_connection_is_left_to_be_closed_when_a_decider_is_garbage(config, tokenizer, tools, policies):
    """Closed there, in another thread than its event loop's, it took requests of other deciders with it."""
    addresses, _ = policies
    played(config, tokenizer, tools, "Mixture", {"servers": addresses})
    ports = [int(address.rpartition(":")[2].partition("/")[0]) for address in addresses]
    open_now = [one for one in psutil.Process().net_connections("tcp") if one.raddr and one.raddr.port in ports]
    assert [one.status for one in open_now if one.status in ("ESTABLISHED", "CLOSE_WAIT")] == []


def test_another_name_is_no_mixture(mixture, tmp_path):
    file = tmp_path / "methods.json"
    file.write_text(json.dumps({"size": 2, "deciders": [{"by": "Roter", "servers": ["http://127.0.0.1:1/v1"]}]}))
    with pytest.raises(ConfigError, match="by='Roter', expected Mixture or Router"):
        mixture.Methods(str(file), scorer=len)


def test_values_worked_by_hand(mixture):
    assert mixture.mixture_values([1.0, 2.0, 3.0], [-1.0, -1.0, None], [-2.0, -0.5, -9.0], 0.5) == [0.5, 2.25, 3.0]


def test_the_routers_gradient_is_autograds_and_finds_the_better_server(mixture):
    torch.manual_seed(0)
    logits = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    chosen = torch.tensor([[0, 1, -1], [1, 1, 0], [0, -1, -1]])
    advantage = torch.randn(3, 3, dtype=torch.float64)
    total = sum(
        advantage[i, k] * logits[k].log_softmax(-1)[chosen[i, k]]
        for i in range(3)
        for k in range(3)
        if chosen[i, k] >= 0
    )
    (expected,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(mixture.router_gradient(logits.detach(), chosen, advantage), expected)
    learned = torch.zeros(2, 2, dtype=torch.float64)  # server 0 searches well, server 1 answers well
    for _ in range(200):
        asked = torch.stack([torch.multinomial(row.softmax(-1), 16, replacement=True) for row in learned], dim=1)
        earned = (asked == torch.tensor([0, 1])).double()
        learned += 0.05 * mixture.router_gradient(learned, asked, earned - earned.mean(0))
    assert learned.softmax(-1)[0, 0] > 0.95 and learned.softmax(-1)[1, 1] > 0.95


def test_a_router_learns_from_outcomes_whom_to_ask_in_which_turn(mixture, policies, tmp_path):
    """Of two servers, only one searches, and only the other one answers right: real loop, real tool, real rewards."""
    addresses, servers = policies
    servers[0].says, servers[1].says = [GOOD, final_answer("Pim")], [final_answer("Pim"), final_answer("Oslo")]
    learn = load("learn")
    argv, questions = small_run(tmp_path)
    player = learn.Player(argv, tmp_path / "asked.jsonl")
    given = {"estimator": "turn_rloo", "rounds": 6, "questions": 1, "rollouts": 24, "lr": 10.0, "seed": 0}
    rounds = learn.learn(player, questions, {"servers": addresses, "result_role": "tool"}, turns=2, **given)
    assert len(rounds) == 7 and rounds[0]["logits"] == [[0.0, 0.0]] * 2
    learnt = torch.tensor(rounds[-1]["logits"]).softmax(-1)
    assert learnt[0, 0] > 0.9 and learnt[1, 1] > 0.9
    assert rounds[0]["right"] < 0.6 and rounds[-2]["right"] > 0.8
    assert servers[1].asked[-1][-1]["role"] in ("tool", "user")


def small_run(folder):
    """Return a command line with one question and an index that has its answer, and the file of the question."""
    question = PROMPT[0]["content"]
    row = make_row(question, ["Oslo"], index=0, split="train", id="q", data_source="d", system_prompt=None)
    write_parquet([row], folder / "train.parquet")
    passages = [Passage("1", "Pim", "The tower of Pim is in Oslo.")]
    index = BM25Index.build(passages, folder / "index", source="test", analyser="plain")
    build_tokenizer([GOOD, question], ["Pim", "Oslo"]).save_pretrained(folder / "policy")
    tool = {"class_name": "verl_mtgrpo.integration.rollout.search_tool.SearchTool"}
    tool["config"] = {"type": "native", "index": str(index.path), "k": 1}
    (folder / "tool.yaml").write_text(json.dumps({"tools": [tool]}))
    rollout = "actor_rollout_ref.rollout"
    overrides = [f"{rollout}.multi_turn.tool_config_path={folder}/tool.yaml", f"{rollout}.response_length=256"]
    overrides += [f"actor_rollout_ref.model.path={folder}/policy", f"trainer.turn.decide.by={FILE}:Router"]
    overrides += [f"{rollout}.multi_turn.max_assistant_turns=2", "trainer.turn.decide.when=validation"]
    command = TrainCommand(preset="mt_grpo", overrides=(f"{rollout}.name=hf", *overrides))
    return command.argv(), folder / "train.parquet"
