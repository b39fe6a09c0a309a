"""Split a text into passages that each fit a number of characters, with the heading that each stands under."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator

_BLOCK_CHARS = 20_000
"""What the splitter is given at a time: its time grows with the square of a text that has no paragraphs."""
_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_FENCE = re.compile(r"^ {0,3}(```|~~~)")
_LEADING_HEADINGS = re.compile(r"(?:\s*#{1,6}[ \t][^\n]*(?:\n|$))*\s*")


def chunk(text: str, chars: int, *, markdown: bool = False) -> Iterator[tuple[str, str]]:
    """Yield ``(heading, passage)`` in order; a passage has at most ``chars`` characters.

    It ends at a heading, a paragraph, a sentence or a word, whichever is the highest that fits. Headings without a
    text below them are no passage. Without ``markdown`` there are no headings, and ``heading`` is empty.
    """
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    splitter = MarkdownSplitter(chars) if markdown else TextSplitter(chars)
    headings = _headings(text) if markdown else []
    starts = [start for start, _ in headings]
    for offset, block in _blocks(text):
        for start, passage in splitter.chunk_indices(block):
            above = _LEADING_HEADINGS.match(passage) if markdown else None
            text_at = above.end() if above else 0
            if not passage[text_at:].strip():
                continue
            at = bisect_right(starts, offset + start + text_at)
            yield headings[at - 1][1] if at else "", passage.strip()


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield a long text in pieces that end at a blank line, or else at a line's or a word's end, with their offsets."""
    start = 0
    while len(text) - start > _BLOCK_CHARS:
        end = start + _BLOCK_CHARS
        # No sooner than in the second half: a block should not become a passage of a few words.
        cuts = (text.rfind(mark, start + _BLOCK_CHARS // 2, end) for mark in ("\n\n", "\n", " "))
        cut = next((at for at in cuts if at >= 0), end)
        yield start, text[start:cut]
        start = cut
    yield start, text[start:]


def _headings(text: str) -> list[tuple[int, str]]:
    """Return the headings of a Markdown text, ``# like this``, with their offsets; not those in fenced code."""
    found: list[tuple[int, str]] = []
    fence, start = "", 0
    for line in text.splitlines(keepends=True):
        if mark := _FENCE.match(line):
            fence = "" if fence == mark[1] else fence or mark[1]
        elif not fence and (heading := _HEADING.match(line.rstrip("\r\n"))):
            found.append((start, heading[2]))
        start += len(line)
    return found
