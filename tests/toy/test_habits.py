"""Test that the policy of `mtgrpo toy` calls its tools as often as its demonstrations do."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from verl_mtgrpo.demo.policy import load_policy
from verl_mtgrpo.toy.caller import Habits
from verl_mtgrpo.toy.policy import made_up_rows, make_caller

pytestmark = pytest.mark.heavy


def tool(name: str, argument: str, **schema: str) -> dict:
    parameters = {"type": "object", "properties": {argument: schema}, "required": [argument]}
    return {"type": "function", "function": {"name": name, "description": f"{name} it", "parameters": parameters}}


TOOLS = [tool("weigh", "thing", type="string", description="For example a stone."), tool("count", "n", type="integer")]


def test_it_answers_at_once_as_often_as_its_habits_say(tmp_path: Path):
    import torch

    model, tokenizer = load_policy(make_caller(tmp_path / "toy", TOOLS).folder / "policy")
    torch.manual_seed(0)
    said = []
    for row in made_up_rows(TOOLS):
        prompt = tokenizer.apply_chat_template(row["prompt"], tools=TOOLS, add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
        made = model.generate(ids, do_sample=True, num_return_sequences=40, max_new_tokens=8, top_k=0, pad_token_id=0)
        said += [tokenizer.decode(one[ids.shape[1] :]) for one in made]
    # Three standard deviations of a share of 320 draws are 0.07.
    assert sum("<tool_call>" not in one for one in said) / len(said) == pytest.approx(Habits().no_call, abs=0.08)
