"""A tiny language model for the synthetic world: its tokenizer, its chat template, its weights.

It is an ordinary Hugging Face folder (Qwen2 architecture, a byte-level BPE tokenizer), so everything
that takes a real model also takes this one. Two things make it learn in minutes on a CPU: every name of the
world is one token, and so is the JSON around a search query.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_mtgrpo.demo.policy_start import START

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
QUERY_OPEN, QUERY_CLOSE = '{"name": "search", "arguments": {"query": "', '"}}'

# Single tokens, but not *special* ones: tool parsers and reward functions must see them in decoded text.
_MARKUP = (CALL_OPEN, CALL_CLOSE, ANSWER_OPEN, ANSWER_CLOSE, QUERY_OPEN, QUERY_CLOSE)

# ChatML. Each message is rendered alone, so that a longer chat only ever appends; verl's builder for
# Qwen2 relies on that, on <|im_end|> and on "\n" being one token. The policy knows one tool and is too
# small to read a schema, so only the names of `tools` are shown.
CHAT_TEMPLATE = """\
{%- if tools %}<|im_start|>system
Tools: {% for tool in tools %}{{ (tool.function or tool).name }}{{ ", " if not loop.last }}{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content or [] %}{{ part.text }}{% endfor %}
{%- endif %}
{%- for call in message.tool_calls or [] %}{% set call = call.function or call %}<tool_call>{"name": "\
{{- call.name }}", "arguments": {{ call.arguments if call.arguments is string else call.arguments | tojson }}}\
{{- "</tool_call>" }}
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def search_call(query: str) -> str:
    """Return the text by which the policy calls the search tool."""
    return f"{CALL_OPEN}{QUERY_OPEN}{query}{QUERY_CLOSE}{CALL_CLOSE}"


def finding(noun: str, name: str) -> str:
    """Return what the policy states at the start of a turn, before it answers or continues to search.

    The relation is written as passages write it, with a capital, and only passages contain that word,
    so a model this small can find the name by continuing as an earlier text did.
    """
    return f"So {noun.capitalize()} {name}"


def final_answer(noun: str, name: str) -> str:
    """Return the text by which the policy answers. The space is part of the name's token."""
    return f"{finding(noun, name)}{ANSWER_OPEN} {name}{ANSWER_CLOSE}"


def name_token(name: str) -> str:
    """Return a name as a token: with a space before it, which it always has."""
    return f" {name}"


def build_tokenizer(texts: Iterable[str], names: Sequence[str], *, vocab_size: int = 800) -> PreTrainedTokenizerBase:
    """Make a tokenizer that encodes every string exactly and the world's texts in few tokens.

    Byte-level BPE: any text survives encoding and decoding unchanged.

    Args:
        texts: Texts to learn words from.
        names: Each becomes one token (with the space before it).
        vocab_size: The most tokens to learn from ``texts``, including bytes but not names and markup.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Names are added below and never reach the BPE: they must not use up its vocabulary.
    plain = sorted({_without(names, text) for text in texts})
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*plain, "\nuser\nassistant\nsystem\ntool\nTools: search"], trainer)
    words = [*_MARKUP, *(name_token(name) for name in names)]
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in words])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Return the id of a token that is in the vocabulary."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)  # of one token, one number
    return found


def build_model(tokenizer: PreTrainedTokenizerBase, *, seed: int, start: str = "names") -> Qwen2ForCausalLM:
    """Make a randomly initialised Qwen2 of under a million parameters for ``tokenizer``.

    Embeddings are untied: otherwise vLLM on a CPU keeps a stale output head after a weight update.

    Args:
        tokenizer: What the model reads and writes.
        seed: Seed of the random weights.
        start: What attention is initialised to copy (:data:`~verl_mtgrpo.demo.policy_start.START`).
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    turn_end, pad = token_id(tokenizer, TURN_END), token_id(tokenizer, PAD)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        initializer_range=128**-0.5,
        bos_token_id=None,
        eos_token_id=turn_end,
        pad_token_id=pad,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
        START[start](model)
    model.generation_config.eos_token_id = turn_end
    model.generation_config.pad_token_id = pad
    return model


def save_policy(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write model, tokenizer and chat template as one Hugging Face folder."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def load_policy(path: Path) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase]:
    """Read what :func:`save_policy` wrote."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    return model, AutoTokenizer.from_pretrained(path)


def _without(names: Sequence[str], text: str) -> str:
    known = set(names)
    return " ".join(word for word in text.split(" ") if word.strip(".,:;?!") not in known)
