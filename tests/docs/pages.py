"""Read the pages of the documentation: code blocks, commands, code in the text, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
"""The documentation."""
OTHERS_PAGE = ROOT / "docs" / "coming-from.md"
"""The page with commands, keys and files of other projects, in the left column of its tables."""
FOLDERS = ("recipes", "examples", "tests/gpu")
ALL_PAGES = [*PAGES, ROOT / "CONTRIBUTING.md", *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
"""The documentation and what it links to."""

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """One command of a shell, with placeholders (``...``) taken out.

    Attributes:
        page: Where it stands.
        words: Program and arguments.
        variables: What stands before the program, ``NAME=value``.
    """

    page: Path
    words: tuple[str, ...]
    variables: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{name_of(self.page)}: {' '.join([*self.variables, *self.words])[:70]}"


def name_of(page: Path) -> str:
    """The page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


@cache
def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in one of the languages, indentation of lists removed."""
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [re.sub(f"^{indent}", "", code, flags=re.M) for indent, language, code in found if language in languages]


@cache
def prose(page: Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def code_spans(page: Path) -> list[str]:
    """Code that stands in the text."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def links(page: Path) -> list[str]:
    """Return the links of the page."""
    return _LINK.findall(re.sub(r"`[^`\n]+`", "`", prose(page)))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = [re.sub(r"[^\w\- ]", "", title.strip().lower()) for title in _HEADING.findall(prose(page))]
    return {title.replace(" ", "-") for title in titles}


def commands(page: Path) -> Iterator[Command]:
    """The commands of a page: lines of ``bash`` blocks, and what follows a ``$`` in ``console`` blocks."""
    for block in blocks(page, "bash"):
        yield from _commands(page, block)
    for block in blocks(page, "console"):
        for typed in re.findall(r"^\$ ((?:.*\\\n)*.*)$", block, re.MULTILINE):
            yield from _commands(page, typed)


def _commands(page: Path, block: str) -> Iterator[Command]:
    for line in block.replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line, comments=True) if word not in ("...", "…", "&")]
        while "&&" in words:
            yield from _command(page, words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        yield from _command(page, words)


def _command(page: Path, words: list[str]) -> Iterator[Command]:
    names = [word for word in words if re.match(r"[A-Z_]+=", word)]
    variables = tuple(names) if words[: len(names)] == names else ()
    if words:
        yield Command(page, tuple(words[len(variables) :]), variables)


COMMANDS = [command for page in PAGES for command in commands(page)]


def of(*start: str) -> list[Command]:
    return [command for command in COMMANDS if command.words[: len(start)] == start]


def is_overrides(command: Command) -> bool:
    return all("=" in word for word in command.words)
