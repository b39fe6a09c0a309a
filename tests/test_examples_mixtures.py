"""examples/mixtures: the served policy, the turns' advantages, and what is counted where methods are compared."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import torch

from verl_mtgrpo.cpu.sampling import SamplingParams
from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.data.rows import make_row
from verl_mtgrpo.demo.policy import build_model, build_tokenizer, save_policy
from verl_mtgrpo.own_code import load_file
from verl_mtgrpo.rewards import ToolCall, Transcript, Turn

FOLDER = Path(__file__).parents[1] / "examples" / "mixtures"
QUESTION = "Where is the tower of Pim?"


def load(name):
    return load_file(FOLDER / f"{name}.py")


@pytest.fixture(scope="module")
def run():
    return load("run")


def row(question_id, em, tokens, hit, extra):
    text = json.dumps(Transcript((Turn("", (0, tokens)),), "answered").to_dict())
    told = {"transcript": text, "outcome/em": em, "tool/hit": hit, "decide/extra_tokens": extra}
    return {"question_id": question_id, **told}


def test_each_method_answers_all_questions_under_a_name_of_its_own(run):
    questions = [
        make_row(text, ["a"], index=number, split="val", id=f"q{number}", data_source="d")
        for number, text in enumerate(("x", "y"))
    ]
    methods = run.methods_of(["one", "two"], {"servers": ["A", "B"]}, [[1.0, 2.0]], 0.5, None)
    rows = run.for_each(questions, list(methods))
    assert [made["extra_info"]["index"] for made in rows] == list(range(10))
    assert [made["extra_info"]["id"] for made in rows[:3]] == ["one alone/q0", "one alone/q1", "two alone/q0"]
    assert [made["prompt"] for made in rows[2:4]] == [made["prompt"] for made in questions]
    asked = [torch.tensor(methods[f"{name} alone"]["logits"]).softmax(-1).tolist() for name in ("one", "two")]
    assert asked == [[[1.0, 0.0]], [[0.0, 1.0]]]
    assert questions[0]["extra_info"]["id"] == "q0"


def test_what_is_counted_of_each_method(run):
    rows = [row("a/1", 1.0, 10, 1.0, 5.0), row("a/2", 0.0, 20, None, 0.0), row("b/1", 0.0, 7, 0.0, None)]
    found = run.measured(rows, ["a", "b"])
    assert list(found["a"].values()) == [0.5, 1.0, 17.5] and list(found["b"].values()) == [0.0, 0.0, 7.0]
    table = run.describe([found, run.measured([*rows, row("b/2", 1.0, 9, 1.0, 0.0)], ["a", "b"])])
    assert "0.250 (0.000 to 0.500)" in table and "8 (7 to 8)" in table


def test_every_offered_estimator_takes_a_batch_of_outcomes(run):
    rewards, mask = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 0]]), torch.tensor([[1.0, 0, 1, 0], [1, 0, 1, 0]])
    assert {"turn_rloo", "mt_grpo"} <= set(run.usable())
    for name in run.usable():
        assert ESTIMATORS[name](rewards, mask, ["q", "q"])[0].shape == rewards.shape


@pytest.mark.imports_verl
def test_the_advantage_of_a_turn_compares_it_with_rollouts_that_got_as_far():
    pytest.importorskip("verl")
    learn = load("learn")
    outcomes = (((0, 1), 1.0), ((1, 1), 0.0), ((0,), 0.0))
    empty = Transcript((), "answered")
    played = [learn.Played(0, empty, asked, right) for asked, right in outcomes]
    chosen, advantage = learn.advantages(played, "turn_rloo")
    assert chosen.tolist() == [[0, 1], [1, 1], [0, -1]]
    assert advantage.tolist() == [[1.0, 1.0], [-0.5, -1.0], [-0.5, 0.0]]  # leave one out, by hand


@pytest.mark.heavy
@pytest.mark.network
def test_a_served_policy_reads_a_rollouts_tokens_and_tells_its_log_prob(tmp_path):
    pytest.importorskip("openai")
    pytest.importorskip("uvicorn")
    mixture, server = load("mixture"), load("server")
    tokenizer = build_tokenizer([QUESTION], ["Pim", "Oslo"])
    model = build_model(tokenizer, seed=0)
    save_policy(model, tokenizer, tmp_path)
    call = ToolCall("search", "{}", result="It is in Oslo.", seen=True)
    transcript = Transcript((Turn("So it is", (0, 3), (call,)),), "answered", [{"role": "user", "content": QUESTION}])
    chat = (
        "<|im_start|>system\nTools: search<|im_end|>\n<|im_start|>user\n" + QUESTION + "<|im_end|>\n"
        "<|im_start|>assistant\nSo it is<|im_end|>\n<|im_start|>tool\nIt is in Oslo.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )

    async def ask(address):
        return await mixture.Server(address, "policy", 6, (), "tool").write(transcript)

    with server.serve(tmp_path, seed=3) as address:
        text, log_prob = asyncio.run(ask(address))
    policy = server.Policy(tmp_path, seed=3)
    prompt = policy.prompt(mixture.chat(transcript, "tool"))
    assert prompt == tokenizer.encode(chat, add_special_tokens=False)
    written = policy.thread.submit(prompt, SamplingParams(6)).result().token_ids
    policy.thread.close()
    assert text == tokenizer.decode(written, skip_special_tokens=True)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *written]])).logits[0].log_softmax(-1)
    own = sum(logits[len(prompt) - 1 + at, token].item() for at, token in enumerate(written))
    assert log_prob == pytest.approx(own, abs=1e-3)


def test_a_request_that_asks_for_more_than_the_server_does_is_refused():
    pytest.importorskip("uvicorn")
    asked = load("server").Asked
    assert asked(messages=[]).max_tokens == 64
    with pytest.raises(ValueError, match="top_p"):
        asked(messages=[], top_p=0.5)
