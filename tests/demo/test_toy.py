"""Test what the policy of dry runs does in its first turn."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from verl_mtgrpo.demo.policy import load_policy
from verl_mtgrpo.demo.toy import QUESTION, SEARCH_R1, TOOLS, make_toy

pytestmark = pytest.mark.heavy


def test_half_of_the_first_turns_search_and_the_answers_differ(tmp_path: Path):
    import torch

    model, tokenizer = load_policy(make_toy(tmp_path / "toy", SEARCH_R1) / "policy")
    chat = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(chat, tools=TOOLS, add_generation_prompt=True, tokenize=False)
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    torch.manual_seed(0)
    made = model.generate(ids, do_sample=True, num_return_sequences=200, max_new_tokens=24, top_k=0, pad_token_id=0)
    said = [tokenizer.decode(one[ids.shape[1] :]) for one in made]
    shares = [sum(text in one for one in said) / len(said) for text in (SEARCH_R1.call, "Oslo", "Rome")]
    # Three standard deviations of a share of 200 draws are 0.1.
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.12)
