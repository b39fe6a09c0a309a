"""Check that the policy's tokenizer can be loaded, has a chat template, and does not change texts."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from verl_mtgrpo.doctor.findings import Finding, one_line
from verl_mtgrpo.doctor.models import MODEL, hub_folder
from verl_mtgrpo.doctor.setup import Policy, Setup
from verl_mtgrpo.integration.preflight import check_tokenizer

_SAMPLE = "Where is the tower?"


def tokenizer(setup: Setup) -> Iterator[Finding]:
    """Yield whether the tokenizer can be loaded, and whether it can be used for a chat."""
    yield from setup.policy.said()


def open_policy(setup: Setup) -> Generator[Finding, None, Policy]:
    """Load the tokenizer and verl's builder of token ids as verl does."""
    from verl.utils.tokenizer import hf_tokenizer
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    path = str(setup.get(f"{MODEL}.tokenizer_path") or setup.get(f"{MODEL}.path"))
    where, problem = _locate(setup, path)
    if problem:
        yield problem
        return Policy()
    try:
        trusted = bool(setup.get(f"{MODEL}.trust_remote_code"))
        loaded = hf_tokenizer(where, trust_remote_code=trusted)
    except Exception as error:  # transformers raises many kinds
        message = f"no tokenizer can be loaded from {path}: {type(error).__name__}: {one_line(str(error))[:200]}"
        yield Finding("tokenizer", "fail", message, f"set {MODEL}.path to the folder of a Hugging Face model")
        return Policy()
    template = setup.get(f"{MODEL}.custom_chat_template")
    if template and "{{" not in template and "{%" not in template:  # probably the path of a file
        key = f"{MODEL}.custom_chat_template"
        message = (
            f"{key} is {one_line(template)[:100]!r}, which is not a Jinja template: verl expects its text, not a path"
        )
        fix = f"""export CHAT_TEMPLATE="$(cat FILE)" and set '{key}=${{oc.env:CHAT_TEMPLATE}}'"""
        yield Finding("tokenizer", "fail", message, fix)
        return Policy()
    if template:
        loaded.chat_template = template
    check_tokenizer(loaded)
    if problem := _lost_spaces(loaded, path):
        yield problem
        return Policy()
    kind, arguments = _model_type(where), setup.get("data.apply_chat_template_kwargs") or {}
    try:
        builder = create_continuous_token_builder(loaded, hf_model_type=kind, chat_template_kwargs=dict(arguments))
    except ValueError as error:  # a multimodal model, or one without the tokens that its family has
        yield Finding("tokenizer", "skip", f"{path}: verl builds its prompts in another way: {one_line(str(error))}")
        return Policy(loaded)
    template_of = "custom chat template" if template else "chat template of the model"
    yield Finding("tokenizer", "ok", f"{path}: {len(loaded)} tokens, {template_of}, model type {kind}")
    return Policy(loaded, builder)


def _lost_spaces(loaded: Any, path: str) -> Finding | None:
    """Return a warning if the tokenizer loses spaces.

    transformers 5 silently breaks byte-level tokenizers in this way if their ``tokenizer_class`` is LlamaTokenizerFast,
    such as those of DeepSeek-V3 and R1 and their distilled models (huggingface/transformers #45488, #48206).
    """
    read = loaded.decode(loaded.encode(_SAMPLE, add_special_tokens=False))
    if read != _SAMPLE.replace(" ", ""):
        return None
    message = f"{path}: the tokenizer, a {type(loaded).__name__}, loses spaces:  {_SAMPLE!r} comes back as {read!r}"
    fix = 'copy its files, set "tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json, and set the '
    return Finding(
        "tokenizer", "warn", message, f"{fix}folder as {MODEL}.tokenizer_path, also to what serves the model"
    )


def _locate(setup: Setup, path: str) -> tuple[str, Finding | None]:
    """Find the folder of a model: the path itself, or one in the cache of the Hugging Face hub, without download."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder), None
    if "://" in path:
        return path, Finding("tokenizer", "skip", f"{path} is not on this machine's disk and was not fetched")
    if path.startswith(("/", "~", ".")) or path.count("/") > 1:
        fix = f"set {MODEL}.path to the folder of a Hugging Face model, or its name on the hub"
        return path, setup.absent("tokenizer", f"{MODEL}.path={path} does not exist", fix)
    if cached := hub_folder(path):
        return cached, None
    message = f"{path} is not a folder here and not in the Hugging Face cache, so its chat template was not tested"
    return path, Finding("tokenizer", "skip", message, f"run `hf download {path}` first")


def _model_type(folder: str) -> str | None:
    config = Path(folder) / "config.json"
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError):
        return None
