"""Issue 21, A1, A3 and A4: templates of other families, thoughts that a template opens, no token at all."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("verl")

from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.agent_loops import scored, transcript_of
from tests.regressions.tokens import (
    CHAT,
    END,
    OPENS,
    RAW,
    answer,
    assert_paid,
    assert_tokens,
    encode,
    message,
    needs_qwen3,
    qwen3,
    result,
    roll,
)
from verl_mtgrpo.demo.policy import build_tokenizer
from verl_mtgrpo.rewards import Transcript
from verl_mtgrpo.rewards.paper_v2 import paper_v2

pytestmark = pytest.mark.compose

HEADERS = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
)
GEMMA = (
    "<bos>{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n{{ m.content }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
HARMONY = (  # gpt-oss: the last message ends otherwise than one of the past
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
)
PHI = (  # ends the whole text too
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}"
)
GLM = "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
ALPACA = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

ENDS = [
    # special tokens; the tokenizer's end; generation config's list; template -> closes a cut turn, stops a turn
    (
        "<|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|>",
        "<|eot_id|>",
        None,
        HEADERS,
        "<|eot_id|>",
        "<|eot_id|>",
    ),
    ("<|start_header_id|> <|end_header_id|> <|eot_id|>", "</s>", None, HEADERS, "<|eot_id|>", "<|eot_id|>"),
    ("<bos> <start_of_turn> <end_of_turn>", "<eos>", None, GEMMA, "<end_of_turn>", "<end_of_turn>"),
    ("<|start|> <|message|> <|end|>", "<|return|>", None, HARMONY, "<|end|>", "<|return|>"),
    ("<|user|> <|assistant|> <|end|>", "<|endoftext|>", None, PHI, "<|end|>", "<|end|>"),
    ("<|user|> <|assistant|> <|observation|>", "<|endoftext|>", "<|user|>", GLM, "", "<|user|>"),
    ("", "</s>", None, ALPACA, "", None),
    ("", "</s>", None, CHATML, "<|im_end|>", None),  # not one token: still what the template writes
]


@pytest.mark.parametrize(("special", "eos", "listed", "template", "closing", "stop"), ENDS)
def test_the_end_of_a_turn_is_the_templates(tmp_path, special, eos, listed, template, closing, stop):
    """1. For templates of seven families, as their model cards have them, shortened."""
    from verl_mtgrpo.integration.rollout.end_of_turn import end_of_turn

    tokenizer = special_tokenizer(special, eos, template)
    number = tokenizer.convert_tokens_to_ids
    if listed:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [number(eos), number(listed)]}))
    known = end_of_turn(tokenizer, {}, [tmp_path])
    assert (tokenizer.decode(list(known.closing)), known.token) == (closing, number(stop) if stop else None)
    assert known.opened == ""
    ends = [one for one in (eos, stop, listed, "<|eom_id|>") if one and one in (*special.split(), eos)]
    assert tokenizer.decode(list(known.trimmed(encode(tokenizer, "Oslo" + "".join(ends))))) == "Oslo"
    assert tokenizer.decode(list(known.trimmed(encode(tokenizer, eos + "Oslo")))) == eos + "Oslo"


def special_tokenizer(special: str, eos: str, template: str) -> Any:
    """A small tokenizer with these special tokens; ChatML's own two are text."""
    inner = build_tokenizer(["Oslo"], []).backend_tokenizer.to_str()
    inner = inner.replace("<|im_start|>", "<|other_1|>").replace("<|im_end|>", "<|other_2|>")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(inner),
        eos_token=eos,
        pad_token="<|endoftext|>",
        additional_special_tokens=special.split(),
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


# ---- 3. a thought that the template opens


@needs_qwen3
@pytest.mark.parametrize("cls", [CHAT, RAW])
def test_a_thought_opened_by_the_template(config, tools, cls):
    """The rewards of formulas.md for the second study: 0.3 · hit + 0.1 format - 0.1 a search = 0.3, and 1.0."""
    tokenizer = qwen3("thinking")
    # In the raw loop the template is asked once, so the model opens its second thought itself.
    second = "b</think><answer>Oslo</answer>" if cls is CHAT else f"{OPENS}b</think><answer>Oslo</answer>"
    script = ["a</think><search>q</search>", second]
    output = roll(cls, config, tokenizer, tools, [one + END for one in script], "search_r1")
    shown = result("search_r1", "q")
    between = END + message(shown) + OPENS if cls is CHAT else f"\n\n{shown}\n\n"
    ends = assert_tokens(output, tokenizer, [(script[0], 1), (between, 0), (script[1], 1)])
    assert tokenizer.decode(output.prompt_ids).endswith(f"<|im_start|>assistant\n{OPENS}")
    transcript = transcript_of(output)
    opened = [OPENS, OPENS] if cls is CHAT else [OPENS, ""]
    assert [turn.text for turn in transcript.turns] == [
        f"{OPENS}a</think><search>q</search>",
        f"{OPENS}b</think><answer>Oslo</answer>",
    ]
    assert [getattr(turn, "opened", None) for turn in transcript.turns] == opened
    rewards = paper_v2(transcript, {"target": ["Oslo"]})
    assert (rewards.turns, rewards.outcome) == (pytest.approx((0.3, 0.0)), 1.0)
    assert Transcript.from_dict(json.loads(json.dumps(transcript.to_dict()))) == transcript
    assert_paid(output, ends)


@needs_qwen3
def test_a_thought_that_the_template_also_closes_is_nobodys(config, tools):
    """Qwen3 with ``enable_thinking=False``: its prompt ends in an empty thought."""
    tokenizer = qwen3("instruct")
    config = config.copy()
    config.data.apply_chat_template_kwargs = {"enable_thinking": False}
    output = roll(CHAT, config, tokenizer, tools, [answer("search_r1") + END], "search_r1")
    assert tokenizer.decode(output.prompt_ids).endswith("<think>\n\n</think>\n\n")
    (turn,) = transcript_of(output).turns
    assert (turn.text, turn.opened) == (answer("search_r1"), "")


@pytest.mark.parametrize(
    ("template", "opened"),
    [
        (CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}", "<think>\n"),
        (CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n<reasoning>{% endif %}", "<reasoning>"),
        (CHATML + "{% if add_generation_prompt %}[THINK]So, {% endif %}", "[THINK]So, "),
        (CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n<think></think>\n{% endif %}", ""),
        # A tag that is the header of every assistant message opens no thought.
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
         "{% if add_generation_prompt %}<assistant>{% endif %}", ""),
    ],
)  # fmt: skip
def test_what_is_open_at_the_end_of_the_prompt(template, opened):
    from verl_mtgrpo.integration.rollout.end_of_turn import end_of_turn

    assert end_of_turn(special_tokenizer("", "</s>", template)).opened == opened


# ---- 4. no token at all


def test_a_rollout_without_a_token_is_a_row_like_the_others(config):
    tokenizer = build_tokenizer(["Oslo"], [])
    output = roll(CHAT, config, tokenizer, [], [[]], "hermes")
    transcript = transcript_of(output)
    assert (transcript.turns, transcript.end_reason) == ((), "no_tokens")
    assert tokenizer.decode(output.prompt_ids).endswith("<|im_start|>assistant\n")
    other = scored(roll(CHAT, config, tokenizer, [], ["Oslo"], "hermes"), [1.0]).as_dict()
    row = scored(output, []).as_dict()
    assert row.keys() == other.keys()
    names = ("response_mask", "rollout_log_probs", "rm_scores")
    assert [row[name].tolist() for name in names] == [[0], [0.0], [0.0]]


def test_it_is_dropped_and_says_why(config):
    from verl_mtgrpo.errors import DropRollout
    from verl_mtgrpo.integration.reward_manager import refuse_unfinished

    output = roll(CHAT, config, build_tokenizer(["Oslo"], []), [], [[]], "hermes")
    with pytest.raises(DropRollout, match="the rollout server returned no token for turn 1"):
        refuse_unfinished(transcript_of(output))


def test_where_experts_are_replayed_it_fails_instead(config):
    """No row can be made, because we do not know which experts the model would have used."""
    from verl_mtgrpo.errors import NoTokensError

    with pytest.raises(NoTokensError, match="enable_rollout_routing_replay=True"):
        roll(CHAT, config, build_tokenizer(["Oslo"], []), [], [[]], "hermes", enable_rollout_routing_replay=True)
