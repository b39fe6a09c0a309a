"""Render passages as the text that the model reads."""

from __future__ import annotations

import string
from collections.abc import Sequence

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.passages import Passage

DEFAULT_TEMPLATE = "Doc {rank} (Title: {title}) {text}"
NOTHING_FOUND = "No passage was found for this query. Try other words."
CUT_MARK = " ..."
_FIELDS = ("rank", "title", "text")


def render_passages(
    passages: Sequence[Passage], *, template: str = DEFAULT_TEMPLATE, max_chars: int | None = None
) -> str:
    """Return one block of text for all passages, best first, joined by newlines.

    Args:
        passages: Hits in order; the first gets ``{rank}`` 1. An empty list gives ``NOTHING_FOUND``.
        template: How one passage is written, with the fields ``{rank}``, ``{title}`` and ``{text}``.
        max_chars: Longest text to return, in characters; longer text is cut after a whole word and
            ends with ``" ..."`` (included in the limit). None for no limit. ``NOTHING_FOUND`` is never cut.
    """
    check_template(template)
    if max_chars is not None and max_chars < 1:
        raise ConfigError(f"max_chars is {max_chars}", expected="at least 1, or null for no limit")
    if not passages:
        return NOTHING_FOUND
    blocks = [
        template.format(rank=rank, title=passage.title, text=passage.text)
        for rank, passage in enumerate(passages, start=1)
    ]
    return _cut("\n".join(blocks), max_chars)


def check_template(template: object) -> None:
    """Raise ``ConfigError`` unless ``template`` can be filled in and shows the text."""
    expected = f"the fields {{rank}}, {{title}} and {{text}}, for example {DEFAULT_TEMPLATE!r}"
    if not isinstance(template, str):
        raise ConfigError(f"template is a {type(template).__name__}", expected=f"a string with {expected}")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"template {template!r} is not valid ({error})", expected=expected) from error
    names = [name for _, name, _, _ in parts if name is not None]
    unknown = sorted({name for name in names if name not in _FIELDS})
    if unknown:
        raise ConfigError(f"template {template!r} has the unknown field {{{unknown[0]}}}", expected=expected)
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise ConfigError(
            f"template {template!r} has a field with ':' or '!', which is not supported", expected=expected
        )
    if "text" not in names:
        raise ConfigError(f"template {template!r} does not show the {{text}}", expected=expected)


def _cut(text: str, max_chars: int | None) -> str:
    if max_chars is None or len(text) <= max_chars:
        return text
    room = max_chars - len(CUT_MARK)
    if room < 1:
        return text[:max_chars]
    head = text[:room]
    if not text[room].isspace() and not head[-1].isspace():
        words = head.rsplit(maxsplit=1)
        # A single word longer than the limit has no boundary to cut at.
        head = words[0] if len(words) == 2 else head
    return head.rstrip() + CUT_MARK
