"""Work out what the words of a shell script become, as far as that can be read without running anything."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from verl_mtgrpo.init.words import Token, commands, skip

PASSED_ON = "$@"
"""A word that stands for the arguments of the script."""
_NAME = re.compile(r"[A-Za-z_]\w*|[0-9@*#?]")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_BRACES = re.compile(r"(#?)([A-Za-z_]\w*|[0-9@*#])(?:\[([@*0-9]+)\])?(.*)", re.DOTALL)
_OPENS, _CLOSES = {"if", "for", "while", "until", "case", "{"}, {"fi", "done", "esac", "}"}
_PREFIXES = {"then", "do", "else", "elif", "!", "time", "if", "while", "until", "{"}


@dataclass(frozen=True)
class Word:
    """A word of a command after expansion.

    Attributes:
        text: The word; parts that could not be read stand as they are written.
        line: Its line in the script, from 1; 0 if it was typed.
        unknown: The parts that could not be read.
        maybe: True if it depends on a condition.
    """

    text: str
    line: int = 0
    unknown: tuple[str, ...] = ()
    maybe: bool = False


@dataclass
class Value:
    """A variable: the words of an array, or one word."""

    words: list[Word]
    array: bool = False
    maybe: bool = False


@dataclass
class Shell:
    """The variables of a script while it is read from top to bottom, as if no condition held.

    A value that is set under a condition is not taken, and the one before it counts as uncertain (``maybe``); what an
    array gets under conditions is taken as a whole.

    Attributes:
        path: The script.
        environment: Environment variables.
        positional: Parameters such as ``$1`` that the script reads itself.
    """

    path: Path
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    variables: dict[str, Value] = field(default_factory=dict[str, Value])
    positional: set[str] = field(default_factory=set[str])

    def run_through(self, script: str) -> Iterator[list[Word]]:
        """Yield the expanded words of each command; assignments are remembered instead."""
        depth, joined, line = 0, False, 0
        brackets: list[str] = []
        for tokens in commands(script):
            if tokens[0].operator:
                joined, brackets = tokens[0].text in ("&&", "||"), [*brackets, tokens[0].text]
                continue
            joined = joined and tokens[0].line == line
            line = tokens[-1].line
            while tokens and tokens[0].text in _PREFIXES | _OPENS | _CLOSES:
                depth += (tokens[0].text in _OPENS) - (tokens[0].text in _CLOSES)
                tokens = tokens[1:]
            tokens = self._assigned(tokens, maybe=depth > 0 or joined)
            if tokens:
                yield [word for token in tokens for word in self.expand(token)]
            joined = False

    def _assigned(self, tokens: list[Token], *, maybe: bool) -> list[Token]:
        """Remember the assignments at the start of a command; return the rest, all if they hold for a program only."""
        rest = tokens
        if rest and rest[0].text in ("export", "local", "declare", "readonly"):
            rest = [token for token in rest[1:] if not token.text.startswith("-")]
        found = 0
        while found < len(rest) and (match := _ASSIGNMENT.fullmatch(rest[found].text)):
            found += 1
            if found == len(rest) or len(rest) < len(tokens) or _ASSIGNMENT.fullmatch(rest[-1].text):
                token = rest[found - 1]
                array = token.items is not None
                listed = [word for item in token.items or () for word in self.expand(item)]
                words = listed if array else [self._joined(match[3], token)]
                self._set(match[1], Value(words, array, maybe), more=bool(match[2]))
        program_only = found < len(rest) and len(rest) == len(tokens)
        return tokens if program_only else []

    def _set(self, name: str, value: Value, *, more: bool) -> None:
        old = self.variables.get(name)
        if value.maybe:
            value.words = [Word(one.text, one.line, one.unknown, maybe=True) for one in value.words]
        if value.array and old and (more or (value.maybe and (old.maybe or not old.words))):
            old.words, old.maybe = [*old.words, *value.words], old.maybe or not more
        elif value.maybe and old and not old.maybe and (value.array or old.words[0].text):
            if [one.text for one in old.words] != [one.text for one in value.words]:
                old.words = [Word(one.text, one.line, one.unknown, maybe=True) for one in old.words]
        elif value.maybe and not value.array and (not old or old.words[0].text != value.words[0].text):
            word = value.words[0]
            self.variables[name] = Value([Word(f"${name}", word.line, (f"${name}",), maybe=True)], maybe=True)
        elif more and old and not value.array:
            before, after = old.words[0], value.words[0]
            joined = Word(before.text + after.text, after.line, before.unknown + after.unknown, after.maybe)
            self.variables[name] = Value([joined], maybe=old.maybe)
        else:
            self.variables[name] = value

    # ---- expansion

    def expand(self, token: Token) -> list[Word]:
        """Return the words that a word becomes."""
        text = token.text
        bare = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
        if re.fullmatch(r"\$(?:[@*]|\{[@*](?::\d+)?\})", bare):
            return [Word(PASSED_ON, token.line)]
        if whole := re.fullmatch(r"\$\{(\w+)\[[@*]\]\}", bare):
            value = self.variables.get(whole[1])
            return list(value.words) if value else [Word(text, token.line, (bare,))]
        word = self._joined(text, token)
        if not word.unknown and "$" in text and not re.search(r"[\"']", text) and re.search(r"\s", word.text):
            return [Word(one, token.line, (), word.maybe) for one in _split(word.text)]
        return [word]

    def _joined(self, text: str, token: Token) -> Word:
        unknown: list[str] = []
        maybe: list[bool] = []
        done = "".join(self._pieces(text, unknown, maybe))
        return Word(done, token.line, tuple(dict.fromkeys(unknown)), any(maybe))

    def _pieces(self, text: str, unknown: list[str], maybe: list[bool], *, quoted: bool = False) -> Iterator[str]:
        at = 0
        while at < len(text):
            end = skip(text, at) if not (quoted and text[at] == "'") else at + 1
            piece, at = text[at:end], end
            if piece[0] == "\\":
                yield "" if piece == "\\\n" else piece[1:] if not quoted or piece[1:] in '$"\\`' else piece
            elif piece[0] == "'" and len(piece) > 1:
                yield piece[1:-1]
            elif piece[0] == '"' and len(piece) > 1:
                yield from self._pieces(piece[1:-1], unknown, maybe, quoted=True)
            elif piece == "$" and (name := _NAME.match(text, at)):
                at = name.end()
                yield self._variable(name[0], f"${name[0]}", unknown, maybe)
            elif piece.startswith("${"):
                yield self._braces(piece, unknown, maybe)
            elif piece.startswith("$(") or piece[0] == "`":
                yield self._substituted(piece, unknown)
            else:
                yield piece

    def _variable(self, name: str, written: str, unknown: list[str], maybe: list[bool]) -> str:
        if name == "0":
            return str(self.path)
        if name.isdigit():
            self.positional.add(f"${name}")
        value = self.variables.get(name)
        if value:
            maybe.append(value.maybe or any(word.maybe for word in value.words[:1]))
            unknown += value.words[0].unknown if value.words else ()
            return value.words[0].text if value.words else ""
        if name == "PWD":
            return os.getcwd()
        if name in self.environment:
            return self.environment[name]
        unknown.append(written)
        return written

    def _braces(self, piece: str, unknown: list[str], maybe: list[bool]) -> str:
        found = _BRACES.fullmatch(piece[2:-1])
        if not found or found[1]:
            unknown.append(piece)
            return piece
        _, name, index, rest = found.groups()
        if name == "BASH_SOURCE":
            return str(self.path)
        if index and index.isdigit() and name in self.variables and not rest:
            words = self.variables[name].words
            if int(index) < len(words):
                return words[int(index)].text
        given: list[str] = []
        value = self._variable(name, piece, given, maybe)
        default = re.fullmatch(r"(:?)[-=](.*)", rest, re.DOTALL)
        if default and (given or (default[1] and not value)):
            return "".join(self._pieces(default[2], unknown, maybe, quoted=True))
        if (rest and not default) or index:
            unknown.append(piece)
            return piece
        unknown += given
        return value

    def _substituted(self, piece: str, unknown: list[str]) -> str:
        """Return the output of the few commands with which scripts find their own folder."""
        inside = piece[2:-1] if piece.startswith("$(") else piece[1:-1]
        lines = [one for one in commands(inside) if not one[0].operator]
        words = [[token.text for token in one] for one in lines]
        last = self._joined(lines[0][-1].text, lines[0][-1]) if lines else Word("", unknown=("",))
        if words == [["pwd"]]:
            return os.getcwd()
        if not last.unknown and len(words[0]) in (2, 3) and words[0][1:-1] in ([], ["--"], ["-P"]):
            folder = os.path.join(os.getcwd(), last.text)
            if words[0][0] == "cd" and words[1:] and words[1][0] == "pwd":
                return os.path.normpath(folder)
            if words[0][0] in ("dirname", "realpath") and len(words) == 1:
                return os.path.dirname(last.text) or "." if words[0][0] == "dirname" else os.path.normpath(folder)
        unknown.append(piece)
        return piece


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()
