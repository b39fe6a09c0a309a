"""Split the text of a shell script into commands and words, without running any of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_OPERATORS = ("&&", "||", ";;", ";", "&", "|", "(", ")", "\n")
_BLANK = re.compile(r"(?:[ \t]|\\\n)+")
_ARRAY = re.compile(r"[A-Za-z_]\w*\+?=$")
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
_CLOSING = {"(": ")", "{": "}"}


@dataclass(frozen=True)
class Token:
    """A word as it is written, quotes included, or an operator.

    Attributes:
        text: The text in the script.
        line: The line it begins on, from 1.
        operator: True for ``;``, ``|``, a line break and the like.
        items: The words of an array, for ``NAME=(…)``; the text is then ``NAME=`` or ``NAME+=``.
    """

    text: str
    line: int
    operator: bool = False
    items: tuple[Token, ...] | None = None


def tokens(script: str) -> Iterator[Token]:
    """Yield words and operators; comments, line continuations and here-documents are left out."""
    at = 0
    while at < len(script):
        if blank := _BLANK.match(script, at):
            at = blank.end()
        elif script[at] == "#":
            at = _line_end(script, at)
        elif heredoc := _HEREDOC.match(script, at):
            at = _heredoc_end(script, heredoc)
        elif operator := next((one for one in _OPERATORS if script.startswith(one, at)), None):
            yield Token(operator, _line(script, at), operator=True)
            at += len(operator)
        else:
            token, at = _word(script, at)
            yield token


def commands(script: str) -> Iterator[list[Token]]:
    """Yield the words of each command; operators that are part of compound commands come as commands of their own."""
    words: list[Token] = []
    for token in tokens(script):
        if not token.operator:
            words.append(token)
            continue
        if words:
            yield words
            words = []
        if token.text in ("&&", "||", ";;", "(", ")"):
            yield [token]
    if words:
        yield words


def skip(text: str, at: int) -> int:
    """Return the position behind the quoted, escaped or bracketed piece, or the character, that begins at ``at``."""
    if text[at] == "\\":
        return at + 2
    if text[at] == "'":
        return _end(text, text.find("'", at + 1))
    if text[at] == '"':
        return _until(text, at + 1, '"', single=False)
    if text[at] == "`":
        return _end(text, text.find("`", at + 1))
    if text[at] == "$" and text[at + 1 : at + 2] in _CLOSING:
        return _until(text, at + 2, _CLOSING[text[at + 1]], opening=text[at + 1])
    return at + 1


def _until(text: str, at: int, closing: str, *, opening: str = "", single: bool = True) -> int:
    """Return the position behind ``closing``; pieces inside are skipped as a whole."""
    while at < len(text) and text[at] != closing:
        if opening == "(" and text[at] == "#" and text[at - 1] in " \t\n(":
            at = _line_end(text, at)
        elif opening == "(" and text[at] == "(":
            at = _until(text, at + 1, ")", opening="(")
        elif text[at] == "'" and not single:
            at += 1
        else:
            at = skip(text, at)
    return at + 1


def _end(text: str, found: int) -> int:
    return len(text) if found < 0 else found + 1


def _word(script: str, start: int) -> tuple[Token, int]:
    at = start
    while at < len(script) and script[at] not in " \t\n;&|)":
        if script[at] == "(":
            if not _ARRAY.fullmatch(script[start:at]):
                break
            end = _until(script, at + 1, ")", opening="(")
            first = _line(script, at) - 1
            inside = [one for one in tokens(script[at + 1 : end - 1]) if not one.operator]
            items = tuple(Token(one.text, one.line + first) for one in inside)
            return Token(script[start:at], _line(script, start), items=items), end
        at = skip(script, at)
    return Token(script[start:at].replace("\\\n", ""), _line(script, start)), min(at, len(script))


def _line(script: str, at: int) -> int:
    return script.count("\n", 0, at) + 1


def _line_end(script: str, at: int) -> int:
    end = script.find("\n", at)
    return len(script) if end < 0 else end


def _heredoc_end(script: str, found: re.Match[str]) -> int:
    """Return the position behind the closing word; what stands on the first line behind ``<<WORD`` is left out too."""
    closing = re.compile(rf"^\s*{found[2]}$", re.MULTILINE).search(script, _line_end(script, found.end()))
    return closing.end() if closing else len(script)
