"""Make text from tools safe: it must not contain control tokens, and must not break out of its block.

A tokenizer turns the *text* ``<|im_start|>`` into the control token that opens a message, wherever it occurs. A passage
with this text would open a new turn, in verl's ``tool_agent`` and in any loop that renders chats as text; one with
``</information>`` would break out of the block that search_r1 puts it in. So we insert a space after the first
character of each of them (``< |im_start|>``): people and the model can still read it, and the tokenizer sees ordinary
text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

_MARKUP = re.compile(r"[<\[{].*[>\]}]", re.DOTALL)
_HTML = re.compile(
    r"</?(?:a|b|bbox|blockquote|body|br|caption|code|div|em|footer|h[1-6]|hr|html|i|iframe|img|li|ol|p|pre|s|span|"
    r"strong|sub|sup|table|tbody|td|tfoot|th|thead|tr|u|ul)>"
)
"""HTML elements in some vocabularies (Gemma's ``<td>``), which are ordinary words unless they are special tokens."""


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the texts that this tokenizer reads as one control token, and their ids.

    These are special tokens, and added tokens that look like tags (``<think>``, ``<tool_call>``, ``<|fim_prefix|>``).
    Other added tokens (names, runs of spaces) are ordinary text.
    """
    return {
        str(token.content): number
        for number, token in tokenizer.added_tokens_decoder.items()
        if len(str(token.content)) > 1 and not str(token.content)[1].isspace()
        if token.special or (_MARKUP.fullmatch(str(token.content)) and not _HTML.fullmatch(str(token.content)))
    }


class OutsideText:
    """Breaks up control tokens, and the tags of a block, in a text.

    Args:
        tokenizer: The policy's tokenizer.
        tags: Names of tags that the text may neither open nor close, such as ``information``.
    """

    def __init__(self, tokenizer: Any, tags: Sequence[str] = ()) -> None:
        known = control_tokens(tokenizer)
        texts = {*known, *(f"<{close}{tag}>" for tag in tags for close in ("", "/"))}
        # Vocabularies may have thousands of these, too many alternatives for one pattern, so we search for their first
        # characters and look the rest up.
        self._texts, self._lengths = frozenset(texts), sorted({len(text) for text in texts}, reverse=True)
        self._begins = re.compile("|".join(sorted({re.escape(text[0]) for text in texts})) or "(?!)")
        self._tokenizer, self._ids = tokenizer, frozenset(known.values())
        added = tokenizer.added_tokens_decoder
        # A tokenizer may normalise the text (lower case, other forms of a letter) before it looks for such a token.
        normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
        self._changes = normalizer is not None and any(added[number].normalized for number in self._ids)

    def __call__(self, text: str) -> str:
        """Return the text with a space inside every control token or tag; a second call changes nothing."""
        while starts := self._spelled(text):
            pieces = [text[start:end] for start, end in pairwise((0, *(start + 1 for start in starts), len(text)))]
            text = " ".join(pieces)
        for _ in range(len(text) if self._changes else 0):
            start = self._control_token(text)
            if start is None:
                break
            text = f"{text[: start + 1]} {text[start + 1 :]}"
        return text

    def _spelled(self, text: str) -> list[int]:
        """Return the positions where control tokens and tags begin."""
        starts = [begin.start() for begin in self._begins.finditer(text)]
        return [at for at in starts if any(text[at : at + length] in self._texts for length in self._lengths)]

    def _control_token(self, text: str) -> int | None:
        """Return the position of the first control token that the tokenizer finds."""
        read = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        for number, (start, end) in zip(read["input_ids"], read["offset_mapping"], strict=True):
            if number in self._ids and len(text[start:end].strip()) > 1:
                return end - len(text[start:end].lstrip())  # some tokens take the white space around them
        return None


@lru_cache(maxsize=16)  # verl makes an agent loop for each rollout, and control tokens may number in the thousands
def outside_text(tokenizer: Any, tags: tuple[str, ...]) -> OutsideText:
    """Return the :class:`OutsideText` for this tokenizer and these tags."""
    return OutsideText(tokenizer, tags)
