"""What a role reads: templates with the question and what other roles wrote."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

QUESTION = "question"
"""The placeholder of the question: the text of the last user message of its row."""
_PLACE = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)(\.result)?\}")
_ALMOST = re.compile(r"\{\s*([A-Za-z_]\w*)\b[^{}\n]*\}")


@dataclass(frozen=True)
class Said:
    """What the others can read of an output.

    Attributes:
        text: What the role wrote.
        result: What its tools answered, in order, joined by newlines.
    """

    text: str
    result: str = ""


def names_in(template: str) -> list[str]:
    """Return the roles whose outputs a template shows, each once."""
    return list(dict.fromkeys(name for name, _ in _places(template)))


def texts_in(template: str) -> list[str]:
    """Return the roles of which a template shows what they wrote, each once."""
    return list(dict.fromkeys(name for name, of_tools in _places(template) if not of_tools))


def results_in(template: str) -> list[str]:
    """Return the roles of which a template shows what their tools answered, each once."""
    return list(dict.fromkeys(name for name, of_tools in _places(template) if of_tools))


def _places(template: str) -> Iterator[tuple[str, bool]]:
    """Yield each placeholder of a role's output: the role, and whether it stands for what the role's tools answered."""
    for match in _PLACE.finditer(template):
        if match.group(1) not in (None, QUESTION):
            yield match.group(1), bool(match.group(2))


def misspelt_in(template: str, names: Collection[str]) -> list[str]:
    """Return what looks like a placeholder of one of these names and is none, such as ``{ NAME }`` or ``{NAME.text}``.

    Args:
        template: The text.
        names: The roles, and ``question``.
    """
    rest = _PLACE.sub("", template)
    return [match.group() for match in _ALMOST.finditer(rest) if match.group(1) in names]


def fill(template: str, question: str, said: Mapping[str, Said]) -> str:
    """Return a template with the question and the outputs in place. What they contain is not filled in again.

    Args:
        template: The text with ``{question}``, ``{NAME}`` and ``{NAME.result}``.
        question: The question.
        said: Name -> what the role said.
    """

    def put(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return match.group()[0]
        if name == QUESTION:
            return question
        return said[name].result if match.group(2) else said[name].text

    return _PLACE.sub(put, template)


def default_prompt(names: Sequence[str], *, named: bool) -> str:
    """Return the template of a role that has none: the question, then the outputs of these roles.

    Args:
        names: The roles that it reads.
        named: True puts the name of each in front of what it wrote.
    """
    parts = (f"{name}: {{{name}}}" if named else f"{{{name}}}" for name in names)
    return "\n\n".join([f"{{{QUESTION}}}", *parts])


def question_of(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Return the messages before a row's last user message, and the text of that one.

    Args:
        messages: The chat of the row.
    """
    for at in range(len(messages) - 1, -1, -1):
        if messages[at].get("role") == "user":
            return [dict(one) for one in messages[:at]], _text(messages[at].get("content"))
    return [dict(one) for one in messages], ""


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


def messages_for(system: str, before: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Return the chat that a role begins with.

    Args:
        system: The role's system message; empty keeps what the row has before its question.
        before: That.
        text: What the role reads.
    """
    head = [{"role": "system", "content": system}] if system else list(before)
    return [*head, {"role": "user", "content": text}]


def passed_on(pattern: str, text: str) -> tuple[str, bool]:
    """Return what the others read of an output, and True if it has the form that its role asks for.

    Args:
        pattern: The role's ``pattern``; empty asks for nothing.
        text: What the role wrote.
    """
    if not pattern:
        return text, True
    match = re.fullmatch(pattern, text.strip(), re.DOTALL)
    if match is None:
        return text, False
    groups = match.groups()
    return (groups[0] or "" if groups else text), True
