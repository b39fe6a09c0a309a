"""Read the command of verl's trainer in a shell script, or as it was typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_mtgrpo.doctor.compose import MAIN
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.init.shell import PASSED_ON, Shell, Word

_BEFORE_PROGRAM = {"exec", "nohup", "env", "command", "time"}
_OVERRIDE = re.compile(r"(\+{0,2}|~)([^=\s]+?)(?:=(.*))?", re.DOTALL)
_OTHER_MAIN = re.compile(r"[\w.]*\bmain_\w+")


@dataclass(frozen=True)
class Setting:
    """An override in the command.

    Attributes:
        key: The dotted key, without ``+``.
        value: What it is set to; parts that could not be read stand as they are written.
        word: The word.
    """

    key: str
    value: str
    word: Word

    @property
    def known(self) -> bool:
        """Return True if the value could be read."""
        return not self.word.unknown


@dataclass(frozen=True)
class Recipe:
    """A verl recipe.

    Attributes:
        words: The whole command, program included.
        script: The script that it stands in; None for a typed command.
        positional: Parameters such as ``$1`` that the script reads itself.
    """

    words: tuple[Word, ...]
    script: Path | None = None
    positional: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[Word, ...]:
        """Return the words behind verl's main program."""
        return self.words[_main_at(self.words) + 1 :]

    @property
    def program(self) -> str:
        """Return the interpreter, as it is called."""
        return self._called()[-1] if self._called() else ""

    @property
    def plain_python(self) -> bool:
        """Return True if the shell looks the interpreter up by name, and nothing else starts it."""
        return self._called() in (["python"], ["python3"])

    def _called(self) -> list[str]:
        called = [word.text for word in self.words[: _main_at(self.words)]]
        return [one for one in called if one not in _BEFORE_PROGRAM and not re.match(r"-|\w+=", one)]

    @property
    def settings(self) -> dict[str, Setting]:
        """Return the overrides by key; the last one counts."""
        found: dict[str, Setting] = {}
        for word in self.arguments:
            match = _OVERRIDE.fullmatch(word.text)
            if match and match[3] is not None and not word.text.startswith("-"):
                found[match[2]] = Setting(match[2], match[3].strip("'\""), word)
        return found

    @property
    def unread(self) -> list[Word]:
        """Return the words that could not be read completely."""
        return [word for word in self.words if word.unknown]

    def behind_arguments(self) -> list[Word] | None:
        """Return the words behind ``"$@"``, which win over what is passed; None if the script passes nothing on."""
        texts = [word.text for word in self.words]
        if PASSED_ON not in texts:
            return None
        return list(self.words[texts.index(PASSED_ON) + 1 :])


def read_script(path: Path) -> Recipe:
    """Read the command of verl's trainer in a script. Nothing of the script is run.

    Raises:
        ConfigError: There is no such command, or there are several.
    """
    text = path.read_text(encoding="utf-8")
    shell = Shell(path.resolve())
    every = list(shell.run_through(text))
    found = [words for words in every if _main_at(words) >= 0]
    if not found:
        raise ConfigError(f"{path} does not call {MAIN}{_called_instead(every)}", fix=_GIVE_COMMAND)
    if len(found) > 1:
        lines = ", ".join(str(words[0].line) for words in found)
        raise ConfigError(f"{path} calls {MAIN} {len(found)} times (lines {lines})", fix=_GIVE_COMMAND)
    return Recipe(tuple(found[0]), path.resolve(), tuple(sorted(shell.positional)))


def read_command(words: Sequence[str]) -> Recipe:
    """Read a command that was typed: the shell has expanded it already.

    Raises:
        ConfigError: It is not a command of verl's trainer.
    """
    typed = tuple(Word(word) for word in words if word.strip(" \\\n"))
    if _main_at(typed) < 0:
        given = " ".join(words)
        raise ConfigError(f"{given[:80]!r} does not call {MAIN}", fix="give a script, or the whole command behind --")
    return Recipe(typed)


_GIVE_COMMAND = f"give the command itself: mtgrpo init -- python3 -m {MAIN} ..."


def _called_instead(commands: list[list[Word]]) -> str:
    """Return what a script calls that may lead to verl, for the message."""
    for words in commands:
        texts = [word.text for word in words if word.text not in _BEFORE_PROGRAM]
        if texts[0] in ("bash", "sh", "source", ".") and len(texts) > 1:
            return f" but runs {texts[1]} (line {words[0].line}), which may"
        if other := [text for text in texts if _OTHER_MAIN.fullmatch(text)]:
            return f" but {other[0]} (line {words[0].line}), which is another trainer"
    return ""


def _main_at(words: Sequence[Word]) -> int:
    for position, word in enumerate(words):
        if word.text == MAIN or word.text.endswith("main_ppo.py"):
            return position
    return -1
