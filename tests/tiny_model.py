"""A random Qwen2 of a few hundred thousand parameters with a tokenizer, and questions for it.

For tests that need a real model directory and real parquet files but no particular behaviour.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = "the of a what which river city king is was in born capital name where who first old north"
_WORDS = _TEXT.split()


def make_tokenizer() -> Any:
    """A byte-pair tokenizer trained on a few made-up sentences; ends turns with <|im_end|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(_WORDS[i:] + _WORDS[:i]) for i in range(len(_WORDS))], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", model_max_length=1024
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(vocab_size: int, *, layers: int = 3, hidden: int = 128, seed: int = 0, **config: Any) -> Any:
    """A random Qwen2 in float32 and eval mode, untied embeddings."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 64,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
        "use_sliding_window": False,
    }
    return Qwen2ForCausalLM(Qwen2Config(**{**settings, **config})).eval()


def save_model(folder: Path, **kwargs: Any) -> Path:
    """Write model and tokenizer to ``folder`` as Hugging Face does; returns it."""
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer), **kwargs)
    for config in (model.config, model.generation_config):
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_questions(file: Path, count: int) -> Path:
    """A parquet file of ``count`` one-turn prompts in verl's layout."""
    import pandas

    rows = [
        {
            "prompt": [{"role": "user", "content": f"what is the {_WORDS[i % len(_WORDS)]} of {i}"}],
            "data_source": "toy",
            "ability": "qa",
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": {"index": i, "split": "train"},
        }
        for i in range(count)
    ]
    pandas.DataFrame(rows).to_parquet(file)
    return file
