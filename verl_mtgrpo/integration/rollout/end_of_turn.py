"""Find out from the tokenizer and its chat template how a turn ends, and which part of it the prompt already contains.

``tokenizer.eos_token`` does not say how a turn of a chat ends. For a base model it is the end of a *document*
(``<|endoftext|>``), while its chat template ends turns with ``<|im_end|>``; other models stop at any of several tokens
(Llama 3.1: ``<|eot_id|>``, ``<|eom_id|>``, ``<|end_of_text|>``). So we render the template with three short messages
and look at the text that it writes around them.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

logger = logging.getLogger(__name__)

KNOWN_ENDS = (
    *("<|im_end|>", "<|endoftext|>"),  # Qwen, ChatML
    *("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|eot|>", "<|eom|>"),  # Llama 3 and 4
    *("<end_of_turn>", "<turn|>", "<eos>"),  # Gemma
    *("<|end|>", "<|return|>", "<|call|>"),  # gpt-oss, Phi
    *("<｜end▁of▁sentence｜>", "<|EOT|>", "</s>"),  # DeepSeek, Mistral and Llama 2
)
"""Tokens that end a generation if they are special tokens of the tokenizer."""
ASKED, SAID, ASKED_AGAIN = "Is this the first message?", "This is what was said.", "Is this the third message?"
_TAG = re.compile(r"<(/?)([A-Za-z]\w*)>|\[(/?)([A-Z]+)\]")


@dataclass(frozen=True)
class EndOfTurn:
    r"""How turns end, for one tokenizer and chat template.

    Attributes:
        text: What the chat template writes after an assistant message; empty if nothing.
        closing: ``text`` in token ids, which have to follow a cut turn before another message.
        token: The one token at which a turn ends and generation should stop; None if there is no such token.
        ends: Every token that may end a generation, including padding.
        opened: The part of a turn that the chat template writes into the generation prompt, such as ``<think>\n``: from
            the first tag that is still open at the end of the prompt. Empty if the model writes the whole turn.
    """

    text: str
    closing: tuple[int, ...]
    token: int | None
    ends: frozenset[int]
    opened: str = ""

    def trimmed(self, ids: Sequence[int]) -> Sequence[int]:
        """Return the ids of a turn without the end tokens after it."""
        length = len(ids)
        while length and ids[length - 1] in self.ends:
            length -= 1
        return ids[:length]

    def opened_in(self, context: Sequence[int], tokenizer: Any) -> str:
        """Return ``opened`` if the tokens before a turn end with it, which may not be so for later turns."""
        if not self.opened:
            return ""
        tail = tokenizer.decode(list(context[-4 * len(self.opened) :]))
        return self.opened if tail.endswith(self.opened) else ""


def end_of_turn(
    tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None, models: Iterable[Any] = ()
) -> EndOfTurn:
    """Return how turns end.

    Args:
        tokenizer: verl's tokenizer, with its chat template.
        template_kwargs: ``data.apply_chat_template_kwargs``.
        models: Folders or hub names that may have a ``generation_config.json``, whose end tokens are added. Only files
            on this machine are read.
    """
    places = (*models, getattr(tokenizer, "name_or_path", None))
    plain = OmegaConf.to_container(OmegaConf.create(dict(template_kwargs or {})), resolve=True)
    given = json.dumps(plain, sort_keys=True, default=str)
    named = tuple(dict.fromkeys(str(place) for place in places if place))
    return _end_of_turn(tokenizer, str(tokenizer.chat_template), given, named)


@lru_cache(maxsize=16)  # verl makes an agent loop for each rollout
def _end_of_turn(tokenizer: Any, template: str, template_kwargs: str, models: tuple[str, ...]) -> EndOfTurn:
    del template  # part of the cache key only: verl sets a custom template after loading the tokenizer
    known = _known_ends(tokenizer, models)
    try:
        last, before, behind, prompt = _around_a_turn(tokenizer, json.loads(template_kwargs))
    except Exception as error:  # the template may raise anything, jinja2's errors or Python's
        logger.warning("the chat template cannot show how turns end (%s: %s)", type(error).__name__, error)
        eos = tokenizer.eos_token_id
        return EndOfTurn("", () if eos is None else (eos,), None, frozenset(known))
    text, token = _closing(tokenizer, known, last, behind)
    closing = tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()
    ends = frozenset({*known, token} if token is not None else known)
    return EndOfTurn(text, closing, token, ends, _still_open(prompt, before))


def _around_a_turn(tokenizer: Any, template_kwargs: dict[str, Any]) -> tuple[str, str, str, str]:
    """Return the text after the last assistant message, before and after an earlier one, and the generation prompt."""

    def render(*messages: dict[str, str], prompt: bool = False) -> str:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompt, **template_kwargs
        )

    asked, said = {"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}
    last = render(asked, said).rpartition(SAID)[2]
    whole = render(asked, said, {"role": "user", "content": ASKED_AGAIN})
    before = whole.partition(ASKED)[2].partition(SAID)[0]
    behind = whole.partition(SAID)[2].partition(ASKED_AGAIN)[0]
    return last, before, behind, render(asked, prompt=True).partition(ASKED)[2]


def _closing(tokenizer: Any, known: set[int], last: str, behind: str) -> tuple[str, int | None]:
    """Return the text that closes a turn and the token that ends it, from the text after an assistant message.

    The two are not always the same token: gpt-oss's template closes earlier messages with ``<|end|>``, which the model
    also writes between its thoughts and the rest; the last message ends with ``<|return|>``, where the model stops.

    The text after a message may also be the header of the next one, as in GLM's templates, which do not close turns
    (the model stops at that header). After the last message of a chat there is no such header.
    """
    first = tokenizer.encode(behind.lstrip(), add_special_tokens=False)[:1]
    if first and first[0] in tokenizer.added_tokens_decoder:
        if last.strip() or first[0] == tokenizer.eos_token_id:
            ended = tokenizer.encode(last.lstrip(), add_special_tokens=False)[:1]
            stop = ended[0] if ended and ended[0] in known else first[0]
            return str(tokenizer.added_tokens_decoder[first[0]].content), stop
        return "", first[0] if first[0] in known else None
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(last, behind, strict=False))
    return "".join(one for one, _ in shared).strip(), None


def _known_ends(tokenizer: Any, models: Sequence[str]) -> set[int]:
    """Return the end tokens: the tokenizer's end and padding tokens, those listed by the model, and known names."""
    added = tokenizer.added_tokens_decoder
    special = {str(token.content): number for number, token in added.items() if token.special}
    ends = {special[name] for name in KNOWN_ENDS if name in special}
    listed = [tokenizer.eos_token_id, tokenizer.pad_token_id, *(one for model in models for one in _listed(model))]
    # In a faulty config, padding or end may be an ordinary word, which must not be cut off the end of texts.
    return ends | {number for number in listed if number in added}


def _listed(model: str) -> list[int]:
    """Return ``eos_token_id`` of the model's ``generation_config.json``, if that is on this machine."""
    path = _on_this_machine(model, "generation_config.json")
    if path is None:
        return []
    try:
        ends = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("%s cannot be read, so its end tokens are unknown: %s", path, error)
        return []
    return [one for one in (ends if isinstance(ends, list) else [ends]) if isinstance(one, int)]


def _on_this_machine(model: str, name: str) -> Path | None:
    """Return a file from a model's folder or the Hugging Face cache; None if it is not there."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if "://" in model or model.startswith(("/", "~", ".")) or model.count("/") > 1:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, name)
    except HFValidationError:  # not a name on the hub, but a folder that does not exist
        return None
    return Path(found) if isinstance(found, str) else None


def _still_open(prompt: str, before: str) -> str:
    """Return the generation prompt from the first tag that is still open at its end.

    A tag that is also open before an earlier assistant message (``<assistant>``) belongs to the message's header, not
    to its text.
    """
    headers = [name for name, _ in _open_tags(before)]
    for name, start in _open_tags(prompt):
        if name not in headers:
            return prompt[start:]
    return ""


def _open_tags(text: str) -> list[tuple[str, int]]:
    """Return names and positions of the tags that are not closed, in order."""
    opened: list[tuple[str, int]] = []
    for tag in _TAG.finditer(text):
        closes, name = tag[1] or tag[3], tag[2] or tag[4]
        if not closes:
            opened.append((name, tag.start()))
        elif name in [one for one, _ in opened]:
            while opened.pop()[0] != name:
                pass
    return opened


def closing_tags(opened: str) -> str:
    r"""Return the tags that close the open ones, innermost first: ``</think>`` for ``<think>\n``."""
    closed = (f"</{name}>" if opened[start] == "<" else f"[/{name}]" for name, start in reversed(_open_tags(opened)))
    return "".join(closed)
