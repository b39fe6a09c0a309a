"""Issue 21, F38 and "must show": what ``mtgrpo doctor`` says of real models' tokenizers, and what it advises.

| number | input | right value | source |
|---|---|---|---|
| F38 | raw loop or hermes, whatever the tokenizer's end token | nothing about end tokens | review-gpu.md 1 |
| F38 | a base model in a cut format, Qwen's template | nothing: its turns end as the template says | issue 21, A1 |
| F38 | raw loop, template that fails | advice that is not the raw loop | issue 21, F38 |
| A1 | a tokenizer that loses spaces | a warning with the way out | huggingface/transformers #45488 |
| A3 | a template that opens thoughts | the reciter goes on behind the tag; said where no format holds it | issue 21 |
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl")

from tests.doctor.setups import DATA, ROLLOUT, TURNS, Healthy, doctor
from tests.regressions.tokens import QWEN3, needs_qwen3, qwen3

pytestmark = pytest.mark.compose

RAW = f"{ROLLOUT}.agent.default_agent_loop=mtgrpo_raw_agent"


def said_of_chat(healthy: Healthy, capsys: Any, model: Path, format: str, *more: str) -> dict[str, Any]:
    rows = f"{DATA}{healthy.questions(format, format=format)}"
    overrides = (f"actor_rollout_ref.model.path={model}", f"{TURNS}.format={format}", rows, *more)
    _, findings = doctor(capsys, healthy, *overrides)
    (chat,) = [one for one in findings if one["check"] == "chat"]
    return chat


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tokenizer as an instruct, a base and a thinking model have it, each in a folder."""
    folder, made = tmp_path_factory.mktemp("models"), {}
    for variant in ("instruct", "base", "thinking"):
        made[variant] = folder / variant
        qwen3(variant).save_pretrained(made[variant])
        shutil.copy(QWEN3 / "config.json", made[variant])
    return made


@needs_qwen3
@pytest.mark.parametrize("variant", ["instruct", "base", "thinking"])
@pytest.mark.parametrize(
    ("format", "more"),
    [("hermes", ()), ("search_r1", ()), ("search_r1", (RAW,)), ("mtgrpo_xml", ()), ("mtgrpo_xml", (RAW,))],
)
def test_sound_set_ups_are_found_sound(healthy, capsys, models, variant, format, more):
    chat = said_of_chat(healthy, capsys, models[variant], format, *more)
    if (variant, format) == ("thinking", "mtgrpo_xml"):  # its turns begin with <reasoning>, the template with <think>
        assert chat["status"] == "warn"
        assert "opens turns with <think>: no such turn is well formed in mtgrpo_xml" in chat["message"], chat
        return
    assert chat["status"] == "ok", chat
    assert f"two turns of {format} through " in chat["message"]
    assert ("opens them with <think>" in chat["message"]) == (variant == "thinking")


def test_the_advice_is_not_what_has_just_failed(healthy, capsys):
    from verl_mtgrpo.demo.policy import CHAT_TEMPLATE

    template = CHAT_TEMPLATE.replace(
        "<|im_start|>{{ message.role }}",
        "<|im_start|>{{ message.role if message.role != 'user' else raise_exception('No.') }}",
    )
    folder = Path(healthy.with_template("fails", template).partition("=")[2])
    chat = said_of_chat(healthy, capsys, folder, "search_r1", RAW)
    assert (chat["status"], "fails on the question" in chat["message"]) == ("fail", True), chat
    assert "mtgrpo_raw_agent" not in chat["fix"]
    chat = said_of_chat(healthy, capsys, folder, "search_r1")
    assert re.search(r"without chat roles: .*default_agent_loop=mtgrpo_raw_agent", chat["fix"])


@needs_qwen3
@pytest.mark.parametrize(("kind", "status"), [("LlamaTokenizerFast", "warn"), ("PreTrainedTokenizerFast", "ok")])
def test_a_tokenizer_that_loses_spaces(healthy, capsys, tmp_path, kind, status):
    """Use the tokenizer class of DeepSeek-R1's distilled Qwen models (huggingface/transformers #45488)."""
    for file in QWEN3.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": kind}))
    rows = f"{DATA}{healthy.questions('hermes', format='hermes')}"
    _, findings = doctor(capsys, healthy, f"actor_rollout_ref.model.path={tmp_path}", f"{TURNS}.format=hermes", rows)
    (found,) = [one for one in findings if one["check"] == "tokenizer"]
    assert found["status"] == status, found
    assert ("loses spaces" in found["message"]) == (status == "warn")
